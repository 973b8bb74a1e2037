"""Study of feedback on episodes: a policy gets to its goal by a way that a person dislikes, and the person says so.

Its runs are on a real cluster: two CPU ranks, the shipped workload. A scripted person, see `person`, looks at the games
that a run writes out, and sends scores, or preferences, through the gateway while it trains; the arm `alone` gets none.
Results are appended to a file (`--answers`, else in Steerway's home) as runs end; a call goes on where the last one
stopped.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from uuid import UUID, uuid5

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS, wait_closed
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.studies.data import feedback_page
from benchmarks.studies.data.live_source import first_steps, send, stop, wait_for_step, wait_taken_in
from benchmarks.studies.data.person import Person, Seen, read_episodes
from benchmarks.studies.data.series import carried_out
from benchmarks.studies.paired import Difference, difference
from benchmarks.studies.results import Row, place_of, results_of
from control_plane import config_text
from control_plane.client import SteerwayClient
from control_plane.client.data import SUFFIXES
from control_plane.config import Settings
from control_plane.core.model.errors import SteerwayError
from control_plane.storage.layout import RunFiles
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit
from ray_jobs.workloads import policy_gradient
from ray_jobs.workloads.episode_feedback import PREFERENCES, SCORES

ARMS = {"alone": "no feedback", "scores": "scores", "preferences": "preferences"}
SEEDS = tuple(range(1, feedback_page.SEEDS + 1))
PAGE = Path(__file__).parents[3] / "docs" / "studies" / "feedback.md"

LOOK_EVERY_S = 0.1
LAST_STEPS = 5
"""Shown steps over which the end of a run is averaged."""

RATE = 1e-2

_REQUESTS = UUID("b2a1c7de-52a5-4c0a-8a53-1f6f6f4d0c11")


@dataclass(frozen=True)
class Size:
    """Size of a run: its steps, the steps between which its games are judged, and games of a rank and a step.

    At each judged step the person gives at most `judged` scores, or preferences of as many pairs.
    """

    steps: int
    judged_from: int
    judged_until: int
    show_every: int
    games: int = 32
    judged: int = 16


WHOLE = Size(steps=feedback_page.STEPS, judged_from=100, judged_until=300, show_every=20)
QUICK = Size(steps=150, judged_from=20, judged_until=80, show_every=10)


@dataclass(frozen=True)
class Study:
    """Results of a study: `rows` by arm, seeds in one order."""

    size: Size
    rows: Mapping[str, Sequence[Row]]

    def ends(self, arm: str, what: str = "wanted") -> list[float]:
        """Return the mean over the last shown steps, one a seed: of `wanted`, `returns`, `entries` or `reached`."""
        return [fmean(value for _, value in row["curves"][what][-LAST_STEPS:]) for row in self.rows[arm]]

    def difference(self, arm: str, what: str = "wanted") -> Difference:
        """Return by how much an arm ends above the one without feedback, paired by seed."""
        return difference(self.ends(arm, what), self.ends("alone", what))


def measure(n: int, quick: bool, say: Say, answers: str | None = None) -> Result:
    """Run the study on its first `n` seeds; `answers`: the file of results. Raises `SteerwayError` if a run fails."""
    size, seeds = QUICK if quick else WHOLE, SEEDS[:n]
    study = carry_out(results_of(PAGE, answers), say, seeds, size)
    result = result_of(study, n)
    page = place_of(PAGE, is_whole=len(seeds) == len(SEEDS) and not quick)
    feedback_page.write(page, study, result, feedback_page.draw(study, page.parent, say))
    say(f"study-feedback: {page} is written")
    return result


def carry_out(results: Path, say: Say, seeds: Sequence[int], size: Size, arms: Sequence[str] = tuple(ARMS)) -> Study:
    """Run what is not in the file of results yet, and return the study."""
    rows = carried_out(
        results,
        lambda line: say(f"study-feedback: {line}"),
        tuple(arms),
        seeds,
        lambda arm, seed: key_of(arm, seed, size),
        lambda where, client, arm, seed, folder: one_run(where, client, arm, seed, size, folder),
        lambda row: f"{row['curves']['wanted'][-1][1]:.3f} after {row['seconds']:.0f} s",
    )
    return Study(size, rows)


def key_of(arm: str, seed: int, size: Size) -> str:
    """Return the key of a run's result."""
    return f"{arm} {seed} {size}"


def one_run(where: Settings, client: SteerwayClient, arm: str, seed: int, size: Size, folder: Path) -> Row:
    """Train one run to its end, and return its result. Raises `SteerwayError` if it fails, or records are lost."""
    began_s = time.monotonic()
    files, sent = start(where, arm, seed, size, folder), dict[str, Any]()
    try:
        if arm != "alone":
            sent = judge(client, files, arm, seed, size)
        wait_for_step(client, files.run, size.steps)
        wait_closed(client, files.run)
    except BaseException:
        stop(client, files.run)
        raise
    seen = read_episodes(files.work / "episodes")
    if sorted(seen) != list(range(size.show_every, size.steps + 1, size.show_every)):
        raise SteerwayError(f"run {files.run} has not written out the games of each {size.show_every} steps")
    row = {"key": key_of(arm, seed, size), "arm": arm, "seed": seed, "curves": curves_of(seen)}
    row |= {"seconds": time.monotonic() - began_s, "first_step": size.steps + 1}
    return row | sent


def start(where: Settings, arm: str, seed: int, size: Size, folder: Path) -> RunFiles:
    """Submit a run: the same in all arms."""
    arguments = ["--steps", size.steps, "--games", size.games, "--rate", RATE, "--seed", seed]
    arguments += ["--show-every", size.show_every, "--shown", size.games]
    common = {"format": "jsonl", "live": True}
    raw: dict[str, Any] = {
        "name": f"feedback-{arm}-{seed}",
        "seed": seed,
        "scaling": {"ranks": RANKS, "cpus_per_rank": 1, "use_gpu": False},
        "workload": {"kind": "script", "path": policy_gradient.__file__, "args": [str(each) for each in arguments]},
        "checkpoint": {"every_steps": 0},
        "sources": {"scores": common | {"fields": SCORES}, "preferences": common | {"fields": PREFERENCES}},
    }
    path = folder / "feedback.yaml"
    path.write_text(config_text.to_yaml(raw))
    files = prepare(load(path), where.runs_dir, f"feedback-{arm}-{seed}")
    submit(files, where)
    return files


def judge(client: SteerwayClient, files: RunFiles, arm: str, seed: int, size: Size) -> dict[str, Any]:
    """Look at the games of a run as they are written out, and send what the person says of them, a request a step.

    Returns: `requests`, `looked_at` (games), `records`, `in_mixture` (records that the ranks read back), `sent_until`
    (last judged step) and `first_step`, the first that could draw from the first shard.
    """
    person, done = Person(seed), size.judged_from - 1
    sums = dict.fromkeys(("requests", "looked_at", "records", "duplicates"), 0)
    while done < size.judged_until:
        new = {step: seen for step, seen in read_episodes(files.work / "episodes").items() if step > done}
        for step in sorted(each for each in new if each <= size.judged_until):
            body, looked_at = person.lines(arm, new[step], size.judged)
            if body:
                answer = send(client, files.run, arm, body, SUFFIXES[".jsonl"], uuid5(_REQUESTS, f"{files.run} {step}"))
                sums["requests"] += 1
                sums["records"] += answer.records
                sums["duplicates"] += answer.duplicates
            sums["looked_at"] += looked_at
            done = step
        snapshot = client.snapshot(files.run)
        if snapshot.closed:
            raise SteerwayError(f"run {files.run} ended before it was judged: {snapshot.reason}")
        if not new:
            time.sleep(LOOK_EVERY_S)
    in_mixture = wait_taken_in(client, files.run, arm)
    return sums | {"in_mixture": in_mixture, "first_step": min(first_steps(client, files.run)), "sent_until": done}


def curves_of(seen: Mapping[int, Sequence[Seen]]) -> dict[str, list[list[float]]]:
    """Return means over the games of each shown step, as (step, value).

    Returns: `wanted` (what the person wants: the game's return, less one for each entry of a disliked field),
    `returns`, `entries` and `reached`.
    """
    about = {
        "wanted": lambda one: one.wanted,
        "returns": lambda one: one.returns,
        "entries": lambda one: one.entries,
        "reached": lambda one: float(one.reached),
    }
    return {
        name: [[step, round(fmean(value(one) for one in seen[step]), 5)] for step in sorted(seen)]
        for name, value in about.items()
    }


def result_of(study: Study, n: int) -> Result:
    """Return the figures and their targets, which were set before the first run."""
    figures: dict[str, float] = {f"{arm}_wanted": fmean(study.ends(arm)) for arm in study.rows}
    figures |= {f"{arm}_entries": fmean(study.ends(arm, "entries")) for arm in study.rows}
    targets: dict[str, Bound] = {}
    judged = [arm for arm in study.rows if arm != "alone"]
    undecided = set[str]()
    for arm in judged:
        name, against = f"{arm}_minus_alone", study.difference(arm)
        figures |= against.figures(name)
        targets[f"{name}_low"] = {"min": 0.0}
        undecided |= {f"{name}_low"} if against.low < 0 <= against.high else set()
    rows = [row for arm in judged for row in study.rows[arm]]
    figures["reached_least"] = min(value for arm in study.rows for value in study.ends(arm, "reached"))
    figures["records_lost_or_doubled"] = float(sum(abs(row["in_mixture"] - row["records"]) for row in rows))
    figures["records_a_run"] = median(row["records"] for row in rows)
    targets |= {"reached_least": {"min": 0.95}, "records_lost_or_doubled": {"max": 0.0}}
    lines = tuple(
        (ARMS[arm], *(f"{fmean(study.ends(arm, what)):.3f}" for what in ("wanted", "returns", "entries")))
        for arm in study.rows
    )
    table = Table("at the end", ("what the person wants", "the game's return", "entries of disliked fields"), lines)
    return Result(figures, targets, n, (table,), frozenset(undecided))
