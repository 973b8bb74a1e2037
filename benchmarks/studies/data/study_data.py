"""Study of data that comes in while a run trains: a model of a desktop, whose data lacks two behaviours at first.

Its runs are on a real cluster: two CPU ranks, the shipped workload. In the arm `live` sequences of the missing
behaviours are sent through the gateway while it trains, one request each; the arm `alone` gets none. Results are
appended to a file (`--answers`, else in Steerway's home) as runs end; a call goes on where the last one stopped.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS, wait_closed
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.studies.data import data_page
from benchmarks.studies.data.live_source import first_steps, send, stop, wait_for_step, wait_taken_in
from benchmarks.studies.data.series import carried_out
from benchmarks.studies.results import Row, place_of, results_of
from control_plane import config_text
from control_plane.client import SteerwayClient
from control_plane.client.data import SUFFIXES
from control_plane.config import Settings
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit
from ray_jobs.workloads import desktop
from ray_jobs.workloads import desktop_screen as screen

ARMS = {"live": "records sent while it trains", "alone": "without them"}
SEEDS = tuple(range(1, data_page.SEEDS + 1))
SOURCE = "fresh"
WEIGHTS = data_page.WEIGHTS
PAGE = Path(__file__).parents[3] / "docs" / "studies" / "data.md"

PAGE_POINTS = 20_000
SHOWN = 4
"""Held-out transitions of which a result keeps the frames."""

_REQUESTS = UUID("9d5d9a9c-0b0e-4d5e-8a6c-6d0c4c5b7a31")


@dataclass(frozen=True)
class Size:
    """Size of a run: steps, the step from which records are sent, and sequences of each behaviour.

    The first evaluation is before anything is sent: `evaluate_every` is at most `sent_from`.
    """

    steps: int
    sent_from: int
    evaluate_every: int
    base_sequences: int
    fresh_sequences: int
    samples: int = 32


WHOLE = Size(steps=data_page.STEPS, sent_from=400, evaluate_every=50, base_sequences=200, fresh_sequences=60)
QUICK = Size(steps=120, sent_from=20, evaluate_every=20, base_sequences=20, fresh_sequences=6)


@dataclass(frozen=True)
class Study:
    """Results of a study: `rows` by arm, seeds in one order."""

    size: Size
    rows: Mapping[str, Sequence[Row]]

    def errors(self, arm: str, behaviours: str) -> list[float]:
        """Return the errors at the end on `old` or `missing` behaviours, one a seed."""
        return [row["evals"][behaviours][-1][1] for row in self.rows[arm]]

    def before(self, behaviours: str) -> list[float]:
        """Return the errors at the last evaluation that no sent record could have changed, one a seed."""
        return [
            [error for step, error in row["evals"][behaviours] if step < row["first_step"]][-1]
            for row in self.rows["live"]
        ]

    @property
    def step_s(self) -> float:
        """Return the median time of a step, boundary and evaluations left out, over all runs."""
        return median(row["step_s"] for rows in self.rows.values() for row in rows)


def measure(n: int, quick: bool, say: Say, answers: str | None = None) -> Result:
    """Run the study on its first `n` seeds; `answers`: the file of results. Raises `SteerwayError` if a run fails."""
    size, seeds = QUICK if quick else WHOLE, SEEDS[:n]
    study = carry_out(results_of(PAGE, answers), say, seeds, size)
    result = result_of(study, n)
    page = place_of(PAGE, is_whole=len(seeds) == len(SEEDS) and not quick)
    data_page.write(page, study, result, data_page.draw(study, page.parent, say))
    say(f"study-data: {page} is written")
    return result


def carry_out(results: Path, say: Say, seeds: Sequence[int], size: Size) -> Study:
    """Run what is not in the file of results yet, and return the study."""
    rows = carried_out(
        results,
        lambda line: say(f"study-data: {line}"),
        tuple(ARMS),
        seeds,
        lambda arm, seed: key_of(arm, seed, size),
        lambda where, client, arm, seed, folder: one_run(where, client, arm, seed, size, folder),
        lambda row: f"{row['evals']['missing'][-1][1]:.3f} on missing behaviours",
    )
    return Study(size, rows)


def key_of(arm: str, seed: int, size: Size) -> str:
    """Return the key of a run's result."""
    return f"{arm} {seed} {size} {WEIGHTS}"


def one_run(where: Settings, client: SteerwayClient, arm: str, seed: int, size: Size, folder: Path) -> Row:
    """Train one run to its end, and return its result. Raises `SteerwayError` if it fails, or records are lost."""
    run, sent = start(where, arm, seed, size, folder), dict[str, Any]()
    try:
        if arm == "live":
            wait_for_step(client, run, size.sent_from)
            sent = send_all(client, run, seed, size)
        wait_for_step(client, run, size.steps)
        wait_closed(client, run)
    except BaseException:
        stop(client, run)
        raise
    points = _metrics(client, run)
    evals = {name: [[step, value] for step, value in points[f"eval_{name}"]] for name in ("old", "missing")}
    row: dict[str, Any] = {"key": key_of(arm, seed, size), "arm": arm, "seed": seed, "evals": evals, **sent}
    row["step_s"] = median(value for _, value in points["own_step_s"])
    row["first_step"] = sent.get("first_step", size.steps + 1)
    row["frames"] = frames_of(folder, row["first_step"], size)
    return row


def start(where: Settings, arm: str, seed: int, size: Size, folder: Path) -> str:
    """Write the base data and submit a run."""
    base = [
        screen.sequence(behaviour, _seed(seed, at)) for behaviour in screen.OLD for at in range(size.base_sequences)
    ]
    (folder / "base.npz").write_bytes(screen.shard(base))
    common = {"format": "arrays", "fields": screen.FIELDS}
    arguments = ["--steps", size.steps, "--samples", size.samples, "--seed", seed, "--shown", folder]
    arguments += ["--evaluate-every", size.evaluate_every]
    raw: dict[str, Any] = {
        "name": f"desktop-{arm}-{seed}",
        "seed": seed,
        "scaling": {"ranks": RANKS, "cpus_per_rank": 1, "use_gpu": False},
        "workload": {"kind": "script", "path": desktop.__file__, "args": [str(each) for each in arguments]},
        "checkpoint": {"every_steps": 0},
        "sources": {
            "base": common | {"path": str(folder / "base.npz"), "weight": WEIGHTS["base"]},
            SOURCE: common | {"live": True, "weight": WEIGHTS[SOURCE]},
        },
    }
    path = folder / "desktop.yaml"
    path.write_text(config_text.to_yaml(raw))
    files = prepare(load(path), where.runs_dir, f"desktop-{arm}-{seed}")
    submit(files, where)
    return files.run


def _seed(seed: int, at: int) -> int:
    """Return the seed of a sequence: other ones for each run, and none that the model is evaluated on."""
    return seed * 10_000 + at


def send_all(client: SteerwayClient, run: str, seed: int, size: Size) -> dict[str, Any]:
    """Send the sequences of the missing behaviours, one request each, and wait until the ranks have all of them.

    Returns: `requests`, `records`, `duplicates` (left out by their content), `bytes`, `seconds` until the last answer,
    `in_mixture` (records that the ranks read back), and `first_step`, the first that could draw from the first shard.
    """
    sums = dict.fromkeys(("requests", "records", "duplicates", "bytes"), 0)
    began_s = time.monotonic()
    for at in range(size.fresh_sequences):
        for behaviour in screen.MISSING:
            body = screen.shard([screen.sequence(behaviour, _seed(seed, at))])
            answer = send(client, run, SOURCE, body, SUFFIXES[".npz"], uuid5(_REQUESTS, f"{run} {behaviour} {at}"))
            sums["requests"] += 1
            sums["records"] += answer.records
            sums["duplicates"] += answer.duplicates
            sums["bytes"] += len(body)
    seconds = time.monotonic() - began_s
    in_mixture = wait_taken_in(client, run, SOURCE)
    first_step = min(first_steps(client, run))
    return sums | {"seconds": seconds, "in_mixture": in_mixture, "first_step": first_step}


def _metrics(client: SteerwayClient, run: str) -> dict[str, list[tuple[int, float]]]:
    points, after = dict[str, list[tuple[int, float]]](), 0
    while True:
        page = client.metrics(run, after=after, limit=PAGE_POINTS, names=("eval_old", "eval_missing", "own_step_s"))
        for point in page.points:
            points.setdefault(point.name, []).append((point.step, point.value))
        if not page.points or page.cursor == after:
            return points
        after = page.cursor


def frames_of(folder: Path, first_step: int, size: Size) -> dict[str, str]:
    """Return frames of a few held-out transitions as hexadecimal bytes: `last`, `next`, and what the model predicted
    `before` the first step that drew from sent records, and `after` the last step."""
    steps = range(size.evaluate_every, size.steps + 1, size.evaluate_every)
    before = np.load(folder / f"frames-{max(step for step in steps if step < first_step)}.npz")
    after = np.load(folder / f"frames-{max(steps)}.npz")
    # Half of the held-out transitions are of each behaviour; of a new folder, first the menu opens.
    count = len(after["next"])
    kept = np.linspace(0, count - 1, SHOWN).round().astype(int)
    parts = {"last": after["last"], "next": after["next"], "before": before["predicted"], "after": after["predicted"]}
    return {name: part[kept].astype(np.uint8).tobytes().hex() for name, part in parts.items()}


def result_of(study: Study, n: int) -> Result:
    """Return the figures and their targets, which were set before the first run."""
    live = study.rows["live"]
    before, after = study.before("missing"), study.errors("live", "missing")
    figures = {
        "missing_before": fmean(before),
        "missing_after": fmean(after),
        "missing_alone": fmean(study.errors("alone", "missing")),
        "old_before": fmean(study.before("old")),
        "old_after": fmean(study.errors("live", "old")),
        "old_alone": fmean(study.errors("alone", "old")),
        "missing_ratio": max(late / early for late, early in zip(after, before, strict=True)),
        "forgetting": fmean(study.errors("live", "old")) / fmean(study.errors("alone", "old")) - 1,
        "records_lost_or_doubled": float(sum(abs(row["in_mixture"] - row["records"]) for row in live)),
        "step_s": study.step_s,
    }
    targets: dict[str, Bound] = {
        "missing_ratio": {"max": 0.5},
        "forgetting": {"max": 0.25},
        "records_lost_or_doubled": {"max": 0.0},
    }
    rows = tuple(
        (ARMS[arm], f"{fmean(study.errors(arm, 'missing')):.3f}", f"{fmean(study.errors(arm, 'old')):.3f}")
        for arm in ARMS
    )
    return Result(figures, targets, n, (Table("error at the end", ("missing behaviours", "old ones"), rows),))
