"""Records that come in while a run trains, at the published scale: how much slower its steps are, and what is lost.

The shipped model of a desktop trains on two CPU ranks of a real cluster. Its live source takes in 746 sequences of 118
transitions, one request each, through the gateway. Periods with and without requests alternate; the slow-down is that
of the steps in a period with requests beside those in the periods before and after. All requests are made before the
run starts, since the sender works on the same machine.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS, own_cluster, wait_closed, wait_running
from benchmarks.harness.paired_bootstrap import Estimate, overhead
from benchmarks.harness.quantiles import quantile
from benchmarks.harness.result import Bound, Result
from benchmarks.studies.data.live_source import stop, wait_taken_in
from control_plane import config_text
from control_plane.client import SteerwayClient
from control_plane.client.data import SUFFIXES
from control_plane.config import Settings
from control_plane.core.model.errors import Overloaded, SteerwayError
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit
from ray_jobs.workloads import desktop
from ray_jobs.workloads import desktop_screen as screen

SEQUENCES, TRANSITIONS = 746, 118
"""Requests, and transitions of each: 88,028 in all, as in the published study of 14 days."""

QUICK_SEQUENCES = 24
WITH_S, WITHOUT_S, QUICK_S = 60.0, 20.0, 10.0
"""Length of a period with requests, and of one without."""

WARM_UP_S = 30.0
"""Before the first period: the cluster and the run's spare processes are still starting."""

SETTLE_S = 2.0
"""Left out at the beginning of each period: what came in before is still being announced."""

MAX_STEPS = 1_000_000
SAMPLES = 32
BASE_SEQUENCES = 100
SOURCE = "fresh"
WAIT_S, RETRY_AFTER_S = 120.0, 0.25
MOST_PERCENT, MOST_SENDING_S = 5.0, 600.0

_REQUESTS = UUID("7f3c1f30-6f0d-4b9a-9a35-5f0b8f3f4c11")


@dataclass
class Measured:
    """Measurements: seconds of a step in each period, by whether records came in, and of each request."""

    with_s: list[float] = field(default_factory=list)
    without_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    sending_s: float = 0.0
    refused: int = 0
    records: int = 0

    @property
    def slow_down(self) -> Estimate:
        """Return how much longer a step takes with requests than in the periods beside it, in percent."""
        beside = [(before + after) / 2 for before, after in pairwise(self.without_s)]
        return overhead(self.with_s, beside, run_length=1)


def measure(n: int, quick: bool, say: Say) -> Result:
    """Send all records in `n` periods. Raises `SteerwayError` if the run fails."""
    count, with_s, without_s = (QUICK_SEQUENCES, QUICK_S, QUICK_S) if quick else (SEQUENCES, WITH_S, WITHOUT_S)
    with tempfile.TemporaryDirectory(prefix="ingest-") as name:
        folder, made = Path(name), Measured()
        bodies = write_bodies(folder, count)
        say(f"ingest: {count} requests are made, {sum(path.stat().st_size for path in bodies) / 1e6:.0f} MB")
        with own_cluster(say) as where, SteerwayClient.from_settings(where, timeout_s=WAIT_S) as client:
            run = _start(where, folder)
            wait_running(client, run)
            time.sleep(WARM_UP_S)
            made.without_s.append(_period(client, run, without_s))
            for part in np.array_split(np.arange(count), n):
                _send_in(client, run, [bodies[at] for at in part], with_s, made)
                made.without_s.append(_period(client, run, without_s))
                say(
                    f"ingest: {made.records} records; a step takes {1000 * made.with_s[-1]:.1f} ms, and "
                    f"{1000 * made.without_s[-1]:.1f} ms without requests; slow-down {made.slow_down}"
                )
            in_mixture = wait_taken_in(client, run, SOURCE)
            stop(client, run)
            wait_closed(client, run)
    return result_of(made, in_mixture, count * TRANSITIONS, n)


def result_of(made: Measured, in_mixture: int, sent: int, n: int) -> Result:
    """Return figures and targets; `in_mixture`: records that the ranks read back, of `sent` different ones."""
    slow_down = made.slow_down
    figures = slow_down.figures("slow_down_percent") | {
        "requests": float(len(made.answer_s)),
        "records": float(made.records),
        "records_lost_or_doubled": float(abs(in_mixture - sent) + abs(made.records - sent)),
        "sending_s": made.sending_s,
        "answer_s_p50": quantile(made.answer_s, 0.5),
        "answer_s_p99": quantile(made.answer_s, 0.99),
        "asked_to_wait": float(made.refused),
        "step_ms": 1000 * float(np.median(made.without_s)),
    }
    targets: dict[str, Bound] = {
        "slow_down_percent_high": {"max": MOST_PERCENT},
        "records_lost_or_doubled": {"max": 0.0},
        "sending_s": {"max": MOST_SENDING_S},
    }
    undecided = frozenset() if slow_down.exceeds(MOST_PERCENT) else frozenset({"slow_down_percent_high"})
    return Result(figures, targets, n, undecided=undecided)


# --- Records ---


def write_bodies(folder: Path, count: int) -> list[Path]:
    """Write `count` requests of `TRANSITIONS` records each, all different, and return their files."""
    records, paths = _different_records(), []
    for at in range(count):
        taken = [next(records) for _ in range(TRANSITIONS)]
        path = folder / f"{at:04d}.npz"
        np.savez(path, **{name: np.stack([record[name] for record in taken]) for name in screen.FIELDS})  # type: ignore[arg-type]
        paths.append(path)
    return paths


def _different_records() -> Iterator[dict[str, Any]]:
    known, seed = set[bytes](), 0
    while True:
        for behaviour in screen.MISSING:
            arrays = screen.sequence(behaviour, seed).records()
            for at in range(len(arrays["event"])):
                record = {name: array[at] for name, array in arrays.items()}
                content = hashlib.sha256(b"".join(record[name].tobytes() for name in screen.FIELDS)).digest()
                if content not in known:
                    known.add(content)
                    yield record
        seed += 1


# --- The run ---


def _start(where: Settings, folder: Path) -> str:
    base = [screen.sequence(behaviour, seed) for behaviour in screen.OLD for seed in range(BASE_SEQUENCES)]
    (folder / "base-data.npz").write_bytes(screen.shard(base))
    common = {"format": "arrays", "fields": screen.FIELDS}
    arguments = ["--steps", str(MAX_STEPS), "--samples", str(SAMPLES), "--evaluate-every", "0"]
    raw: dict[str, Any] = {
        "name": "ingest",
        "seed": 1,
        "scaling": {"ranks": RANKS, "cpus_per_rank": 1, "use_gpu": False},
        "workload": {"kind": "script", "path": desktop.__file__, "args": arguments},
        "checkpoint": {"every_steps": 0},
        "sources": {"base": common | {"path": str(folder / "base-data.npz")}, SOURCE: common | {"live": True}},
    }
    path = folder / "ingest.yaml"
    path.write_text(config_text.to_yaml(raw))
    files = prepare(load(path), where.runs_dir, "ingest")
    submit(files, where)
    return files.run


def _period(client: SteerwayClient, run: str, seconds: float) -> float:
    """Wait, and return the seconds of a step meanwhile."""
    time.sleep(SETTLE_S)
    began = _place(client, run)
    time.sleep(seconds - SETTLE_S)
    return _step_s(began, _place(client, run))


def _send_in(client: SteerwayClient, run: str, bodies: list[Path], seconds: float, made: Measured) -> None:
    """Send requests evenly over a period."""
    began_s = time.monotonic()
    began = None
    for number, path in enumerate(bodies):
        due_s = began_s + number * seconds / len(bodies)
        if began is None and due_s > began_s + SETTLE_S:
            began = _place(client, run)
        time.sleep(max(0.0, due_s - time.monotonic()))
        _send(client, run, path, made)
    time.sleep(max(0.0, began_s + seconds - time.monotonic()))
    assert began is not None
    made.with_s.append(_step_s(began, _place(client, run)))
    made.sending_s += time.monotonic() - began_s


def _send(client: SteerwayClient, run: str, path: Path, made: Measured) -> None:
    body, began_s = path.read_bytes(), time.monotonic()
    while True:
        try:
            answer = client.add_records(run, SOURCE, body, SUFFIXES[".npz"], key=uuid5(_REQUESTS, f"{run} {path.name}"))
        except Overloaded:
            made.refused += 1
            if time.monotonic() > began_s + WAIT_S:
                raise
            time.sleep(RETRY_AFTER_S)
        else:
            made.records += answer.records
            made.answer_s.append(time.monotonic() - began_s)
            return


def _place(client: SteerwayClient, run: str) -> tuple[float, int]:
    """Return the time at which the run was seen to reach a step, and that step."""
    before, deadline = client.snapshot(run).step, time.monotonic() + WAIT_S
    while (step := client.snapshot(run).step) == before:
        if time.monotonic() > deadline:
            raise SteerwayError(f"run {run} has made no step for {WAIT_S:g} s")
        time.sleep(0.01)
    return time.monotonic(), step


def _step_s(began: tuple[float, int], ended: tuple[float, int]) -> float:
    return (ended[0] - began[0]) / (ended[1] - began[1])
