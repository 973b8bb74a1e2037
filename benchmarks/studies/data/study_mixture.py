"""Study of automatic mixtures: a small GPT-2 on a clean text and on one of shuffled words, by four policies.

Its runs are on a real cluster: two CPU ranks, the shipped workload, the policy in its own process beside the gateway,
its weights as commands. Results are appended to a file (`--answers`, else in Steerway's home) as runs end; a call goes
on where the last one stopped.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar
from uuid import UUID

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import wait_closed
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.studies.data import mixture_page
from benchmarks.studies.data.live_source import stop
from benchmarks.studies.data.mixture_plan import ARMS, CLEAN, NOISY, QUICK, SEEDS, WHOLE, Size, key_of, write
from benchmarks.studies.data.series import carried_out
from benchmarks.studies.paired import Difference, difference
from benchmarks.studies.results import Row, place_of, results_of
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.intents.agent import Propose
from control_plane.core.model.intents.data import SetMixture
from control_plane.core.model.records import CommandAccepted, CommandSettled, GenerationStarted
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit

PAGE = Path(__file__).parents[3] / "docs" / "studies" / "mixture.md"
MEASURED = ("eval_loss", f"source_loss/{CLEAN}", f"source_loss/{NOISY}")
WAIT_S, LOOK_EVERY_S = 1800.0, 0.5
PAGE_POINTS = 20_000
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Study:
    """Results of a study: `rows` by arm, seeds in one order."""

    size: Size
    rows: Mapping[str, Sequence[Row]]

    def losses(self, arm: str) -> list[float]:
        """Return the losses on the held-out clean text at the end, one a seed, in nats a token."""
        return [row["evals"][-1][1] for row in self.rows[arm]]

    def difference(self, arm: str, other: str) -> Difference:
        """Return by how much an arm ends above another one, paired by seed."""
        return difference(self.losses(arm), self.losses(other))

    def clean_shares(self, arm: str) -> list[float]:
        """Return the mean share of the clean text over a run's steps, one a seed."""
        steps = self.size.steps
        means = []
        for row in self.rows[arm]:
            ends = [step for step, _ in row["shares"][1:]] + [steps]
            parts = [share * (end - step) for (step, share), end in zip(row["shares"], ends, strict=True)]
            means.append(sum(parts) / steps)
        return means


def measure(n: int, quick: bool, say: Say, answers: str | None = None) -> Result:
    """Run the study on its first `n` seeds; `answers`: the file of results. Raises `SteerwayError` if a run fails."""
    size, seeds = QUICK if quick else WHOLE, SEEDS[:n]
    study = carry_out(results_of(PAGE, answers), say, seeds, size)
    result = result_of(study, n)
    page = place_of(PAGE, is_whole=len(seeds) == len(SEEDS) and not quick)
    mixture_page.write(page, study, result, mixture_page.draw(study, page.parent, say))
    say(f"study-mixture: {page} is written")
    return result


def carry_out(results: Path, say: Say, seeds: Sequence[int], size: Size, arms: Sequence[str] = tuple(ARMS)) -> Study:
    """Run what is not in the file of results yet, and return the study."""
    rows = carried_out(
        results,
        lambda line: say(f"study-mixture: {line}"),
        tuple(arms),
        seeds,
        lambda arm, seed: key_of(arm, seed, size),
        lambda where, client, arm, seed, folder: one_run(where, client, arm, seed, size, folder),
        lambda row: f"{row['evals'][-1][1]:.4f} after {row['seconds']:.0f} s",
    )
    return Study(size, rows)


def one_run(where: Settings, client: SteerwayClient, arm: str, seed: int, size: Size, folder: Path) -> Row:
    """Train one run to its end, and return its result. Raises `SteerwayError` if it fails."""
    began_s = time.monotonic()
    files = prepare(load(write(folder, arm, seed, size)), where.runs_dir, f"mixture-{arm}-{seed}")
    submit(files, where)
    try:
        _wait_for_end(client, files.run, size.steps)
    except BaseException:
        stop(client, files.run)
        raise
    row = {"key": key_of(arm, seed, size), "arm": arm, "seed": seed, "seconds": time.monotonic() - began_s}
    points = _metrics(client, files.run)
    if not points.get("eval_loss") or points["eval_loss"][-1][0] != size.steps:
        raise SteerwayError(f"run {files.run} has no loss on the held-out text at its end")
    curves = {name: points.get(f"source_loss/{name}", []) for name in (CLEAN, NOISY)}
    return row | {"evals": points["eval_loss"], "source_losses": curves} | _changes(client, files.run)


def _changes(client: SteerwayClient, run: str) -> dict[str, Any]:
    """Return what the journal has of the agent's changes.

    Returns: `looks`, the steps of its proposals; `shares`, (first step that is drawn with it, share of the clean text)
    as all ranks read it back, from the start on; `failed`, changes that were rejected or failed. Raises `SteerwayError`
    if the run was started again: it would be another training.
    """
    looks, failed, shares = list[int](), 0, list[tuple[int, float]]()
    changes, after = set[UUID](), 0
    while entries := _patiently(client.journal, run, after=after):
        after = entries[-1].seq
        for record in (entry.record for entry in entries):
            match record:
                case GenerationStarted(facts=facts) if not shares:
                    shares.append((0, float(facts["mixture"][CLEAN]["share"])))
                case GenerationStarted():
                    raise SteerwayError(f"run {run} was started again after a failure; it has no result")
                case CommandAccepted(command=Command(intent=Propose(step=step))):
                    looks.append(step or 0)
                case CommandAccepted(command=Command(intent=SetMixture(), uuid=uuid)):
                    changes.add(uuid)
                case CommandSettled(status="applied", after=now) if record.uuid in changes and now:
                    shares.append((int(now["first_step"]), float(now["mixture"][CLEAN]["share"])))
                case CommandSettled(status="rejected" | "failed") if record.uuid in changes:
                    failed += 1
    return {"looks": looks, "shares": shares, "failed": failed}


def _metrics(client: SteerwayClient, run: str) -> dict[str, list[tuple[int, float]]]:
    points, after = dict[str, list[tuple[int, float]]](), 0
    while True:
        page = _patiently(client.metrics, run, after=after, limit=PAGE_POINTS, names=MEASURED)
        for point in page.points:
            points.setdefault(point.name, []).append((point.step, float(f"{point.value:.6g}")))
        if not page.points or page.cursor == after:
            return points
        after = page.cursor


def _patiently(ask: Callable[..., Answer], *given: Any, **named: Any) -> Answer:
    """Return an answer of the gateway, which may take long on a busy machine. Raises `Unavailable` in the end."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return ask(*given, **named)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_EVERY_S)


def _wait_for_end(client: SteerwayClient, run: str, steps: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while (snapshot := _patiently(client.snapshot, run)).step < steps:
        if snapshot.closed or time.monotonic() > deadline:
            raise SteerwayError(
                f"run {run} did not reach step {steps}: it is at {snapshot.step} ({snapshot.reason}); its log ends:\n"
                f"{client.logs(run, lines=15)}"
            )
        time.sleep(LOOK_EVERY_S)
    _patiently(wait_closed, client, run)


def result_of(study: Study, n: int) -> Result:
    """Return the figures and their targets, which were set before the first counted run."""
    figures = {f"{arm}_loss": fmean(study.losses(arm)) for arm in study.rows}
    for arm, other in (("ado", "natural"), ("ado", "uniform"), ("odm", "natural"), ("ado", "odm")):
        figures |= study.difference(arm, other).figures(f"{arm}_minus_{other}")
    figures["ado_clean_share"] = fmean(study.clean_shares("ado"))
    every = [row for rows in study.rows.values() for row in rows]
    figures["changes_applied"] = float(sum(len(row["shares"]) - 1 for row in every))
    figures["changes_failed"] = float(sum(row["failed"] for row in every))
    targets: dict[str, Bound] = {"ado_minus_natural_high": {"max": 0.0}, "changes_failed": {"max": 0.0}}
    undecided = frozenset({"ado_minus_natural_high"} if figures["ado_minus_natural_low"] <= 0 else ())
    rows = tuple(
        (ARMS[arm], f"{fmean(study.losses(arm)):.4f}", f"{fmean(study.clean_shares(arm)):.2f}") for arm in study.rows
    )
    table = Table("at the end", ("held-out loss, nats a token", "mean share of the clean text"), rows)
    return Result(figures, targets, n, (table,), undecided)
