"""Storm of faults: every part of a cluster is killed or stopped repeatedly while commands are sent.

    python -m benchmarks storm_of_faults [--n STORMS]
    python -m benchmarks.storm.storm_of_faults --seed S [--minutes M] [--hogs H]    one storm, to see a failure again

A storm is a cluster of its own with gateway and console, and a run on two ranks. Every 8 to 25 s a rank, the control
server, the gateway's replica, Serve's proxy, Serve's controller or the console gets SIGKILL or SIGSTOP (see
`faults`), and stopped processes are not resumed. A client sends a command every 2 s, and checks the gateway's health
every half second. Then all parts have to be back within two minutes, and the run is stopped.

Each storm has a seed: 1, 2, 3 and so on. Every third one shares the machine with two processes that only compute.
Figures are sums over the storms, or the worst. With no failure among `acknowledged` commands the rate of failures is
below 3 / `acknowledged`, with 95 % confidence.
"""

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS, own_cluster, start, wait_closed, wait_running
from benchmarks.harness.result import Bound, Result
from benchmarks.storm.faults import PARTS, living, members, plan, stopped, strike
from benchmarks.storm.storm import lost_and_repeated
from cluster.keeper import read_parts
from cluster.parts import answers
from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.commands import SetLearningRate, Stop
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import GenerationLost, GenerationStarted

MINUTES, QUICK_MINUTES = 10.0, 1.0
HOGS, HOGS_EVERY = 2, 3
COMMAND_EVERY_S, ASK_EVERY_S, LOOK_EVERY_S = 2.0, 0.5, 1.0
SAVE_EVERY_STEPS = 200
BACK_WITHIN_S = 120.0
NEW_STEPS = 20
"""Steps after the storm that show that the run trains."""

LEAST_RATE, RATE_SPACING = 1e-4, 1e-8

TARGETS: dict[str, Bound] = {
    "acknowledged_in_one_storm": {"min": 1},
    "acknowledged_and_lost": {"max": 0},
    "settled_twice": {"max": 0},
    "not_back": {"max": 0},
    "left_behind": {"max": 0},
}


@dataclass
class StormResult:
    """Result of one storm. `not_back`: parts that did not recover; `left_behind`: processes left after the run."""

    seed: int
    hits: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    acknowledged: list[UUID] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    outages_s: list[float] = field(default_factory=list)
    back_after_s: float = 0.0
    not_back: list[str] = field(default_factory=list)
    left_behind: int = 0
    lost: float = 0.0
    twice: float = 0.0
    generations: int = 0
    losses: int = 0
    step: int = 0
    ended: bool = False


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` storms. Raises `SteerwayError` if a cluster or a run does not start."""
    minutes = QUICK_MINUTES if quick else MINUTES
    storms = [one_storm(seed, minutes, HOGS if seed % HOGS_EVERY == 0 else 0, say) for seed in range(1, n + 1)]
    return Result(figures_of(storms), {**TARGETS, "runs_that_ended": {"min": n, "max": n}}, n)


def figures_of(storms: list[StormResult]) -> dict[str, float]:
    """Return the sums over the storms, or the worst of them."""
    outages_s = [seconds for storm in storms for seconds in storm.outages_s]
    acknowledged = sum(len(storm.acknowledged) for storm in storms)
    figures = {f"faults_{part.replace(' ', '_')}": _sum(storm.hits.get(part, 0) for storm in storms) for part in PARTS}
    return figures | {
        "faults_missed": _sum(storm.missed for storm in storms),
        "acknowledged": float(acknowledged),
        "acknowledged_in_one_storm": float(min((len(storm.acknowledged) for storm in storms), default=0)),
        "acknowledged_and_lost": _sum(storm.lost for storm in storms),
        "settled_twice": _sum(storm.twice for storm in storms),
        "failure_rate_below": 3 / acknowledged if acknowledged else float("nan"),
        "not_acknowledged": _sum(count for storm in storms for count in storm.refused.values()),
        "generations": _sum(storm.generations for storm in storms),
        "losses": _sum(storm.losses for storm in storms),
        "steps": _sum(storm.step for storm in storms),
        "gateway_outages": float(len(outages_s)),
        "gateway_outage_s_max": max(outages_s, default=0.0),
        "back_after_s_max": max((storm.back_after_s for storm in storms), default=0.0),
        "not_back": _sum(len(storm.not_back) for storm in storms),
        "left_behind": _sum(storm.left_behind for storm in storms),
        "runs_that_ended": _sum(storm.ended for storm in storms),
    }


def _sum(counts: Iterator[float]) -> float:
    return float(sum(counts))


def one_storm(seed: int, minutes: float, hogs: int, say: Say) -> StormResult:
    """Run one storm, in a cluster of its own. Raises `SteerwayError` if the cluster or the run does not start."""
    seen = StormResult(seed)
    with _hogs(hogs), own_cluster(say) as where, SteerwayClient.from_settings(where) as client:
        folder: Path = where.home / "diaries"
        folder.mkdir(exist_ok=True)
        run = start(where, "small", folder, {"checkpoint": {"every_steps": SAVE_EVERY_STEPS}})
        wait_running(client, run)
        say(f"storm_of_faults: seed {seed}, {minutes:g} min, {hogs} hogs")
        over = threading.Event()
        clients = [
            threading.Thread(target=_steer, args=(where, run, over, seen)),
            threading.Thread(target=_ask, args=(where, over, seen)),
        ]
        for thread in clients:
            thread.start()
        _blow(where, seed, 60 * minutes, seen, say)
        over.set()
        for thread in clients:
            thread.join()
        _end(where, client, run, seen)
    _tell(seen, minutes, hogs, say)
    return seen


def _blow(where: Settings, seed: int, seconds: float, seen: StormResult, say: Say) -> None:
    began_s = time.monotonic()
    for fault in plan(seed, seconds):
        time.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
        pid = strike(where, fault)
        if pid is None:
            seen.missed += 1
        else:
            seen.hits[fault.part] = seen.hits.get(fault.part, 0) + 1
        say(f"storm_of_faults: {fault}, {'no process' if pid is None else f'process {pid}'}")
    time.sleep(max(0.0, began_s + seconds - time.monotonic()))


def _steer(where: Settings, run: str, over: threading.Event, seen: StormResult) -> None:
    """Send a command every two seconds, from a client of its own."""
    with SteerwayClient.from_settings(where) as client:
        number = 0
        while not over.wait(COMMAND_EVERY_S):
            number += 1
            try:
                rate = LEAST_RATE + number * RATE_SPACING
                seen.acknowledged.append(client.submit(run, SetLearningRate(value=rate, schedule="hold")).uuid)
            except SteerwayError as error:
                seen.refused[error.slug] = seen.refused.get(error.slug, 0) + 1


def _ask(where: Settings, over: threading.Event, seen: StormResult) -> None:
    """Record the duration of each outage of the gateway."""
    away_since_s: float | None = None
    while not over.wait(ASK_EVERY_S):
        now_s = time.monotonic()
        if answers(where.own_gateway_health_url):
            if away_since_s is not None:
                seen.outages_s.append(time.monotonic() - away_since_s)
            away_since_s = None
        elif away_since_s is None:
            away_since_s = now_s


def _end(where: Settings, client: SteerwayClient, run: str, seen: StormResult) -> None:
    """Wait until all parts are back, stop the run, and count outcomes."""
    began_s = time.monotonic()
    first: int | None = None
    while True:
        snapshot = _snapshot(client, run)
        first = snapshot.step if first is None and snapshot is not None else first
        seen.not_back = _missing(where, snapshot, first)
        seen.back_after_s = time.monotonic() - began_s
        if not seen.not_back or seen.back_after_s > BACK_WITHIN_S:
            break
        time.sleep(LOOK_EVERY_S)
    seen.lost = float(len(seen.acknowledged))  # until they are found
    for what in (_stop, _close, _look_back):
        try:
            what(client, run, seen)
        except SteerwayError as error:
            seen.not_back.append(f"the run, at its {what.__name__.strip('_')}: {error.reason}")
    until_s = time.monotonic() + BACK_WITHIN_S
    while (left := _left(where)) and time.monotonic() < until_s:
        time.sleep(LOOK_EVERY_S)
    seen.left_behind = left


def _stop(client: SteerwayClient, run: str, seen: StormResult) -> None:
    seen.acknowledged.append(client.submit(run, Stop()).uuid)


def _close(client: SteerwayClient, run: str, seen: StormResult) -> None:
    wait_closed(client, run)
    last = client.snapshot(run)
    seen.ended, seen.step = last.status == "stopped", last.step


def _look_back(client: SteerwayClient, run: str, seen: StormResult) -> None:
    seen.lost, seen.twice = lost_and_repeated(client, run, seen.acknowledged)
    _count(client, run, seen)


def _snapshot(client: SteerwayClient, run: str) -> Snapshot | None:
    try:
        return client.snapshot(run)
    except SteerwayError:
        return None


def _missing(where: Settings, snapshot: Snapshot | None, first: int | None) -> list[str]:
    """Return a sentence for each part that is not back yet."""
    missing = [f"{part}: no living process" for part in PARTS if not living(where, part)]
    missing += [f"process {process.pid} is stopped" for process in stopped(where)]
    missing += [f"the {name} is down" for name, view in read_parts(where).items() if not view.up]
    if not answers(where.own_console_health_url):
        missing.append("the console does not answer")
    if snapshot is None:
        return [*missing, "the gateway does not answer requests about the run"]
    if snapshot.closed:
        return [*missing, f"the run has {snapshot.status}: {snapshot.reason}"]
    if len(snapshot.ranks) < RANKS or first is None or snapshot.step < first + NEW_STEPS:
        missing.append(f"the run does not train: {snapshot.status}, step {snapshot.step}")
    return missing


def _left(where: Settings) -> int:
    """Return the number of living ranks and of stopped processes."""
    return len(living(where, "rank")) + len(stopped(where)) if members(where) else 0


def _count(client: SteerwayClient, run: str, seen: StormResult) -> None:
    after = 0
    while entries := client.journal(run, after=after):
        after = entries[-1].seq
        seen.generations += sum(isinstance(entry.record, GenerationStarted) for entry in entries)
        seen.losses += sum(isinstance(entry.record, GenerationLost) for entry in entries)


def _tell(seen: StormResult, minutes: float, hogs: int, say: Say) -> None:
    say(
        f"storm_of_faults: seed {seen.seed}: {sum(seen.hits.values())} faults ({seen.missed} missed), "
        f"{len(seen.acknowledged)} acknowledged, {seen.lost:g} lost, {seen.twice:g} settled twice, "
        f"not acknowledged {seen.refused or 0}, {seen.losses} losses, {seen.generations} generations, "
        f"step {seen.step}, longest outage {max(seen.outages_s, default=0.0):.1f} s, "
        f"all back after {seen.back_after_s:.0f} s"
    )
    if seen.lost or seen.twice or seen.not_back or seen.left_behind or not seen.ended:
        missing = "; ".join(seen.not_back) or f"{seen.left_behind} processes are left"
        again = f"python -m benchmarks.storm.storm_of_faults --seed {seen.seed} --minutes {minutes:g} --hogs {hogs}"
        say(f"storm_of_faults: FAILED ({missing}); see it again with `{again}`")


@contextmanager
def _hogs(count: int) -> Iterator[None]:
    """Run processes that compute without end."""
    processes = [multiprocessing.get_context("spawn").Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def compute() -> None:
    """Keep one core busy forever."""
    while True:
        sum(range(100_000))


def main(arguments: list[str]) -> int:
    """Run one storm by its seed. Returns the exit code, 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.storm.storm_of_faults", description="One storm of faults.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--hogs", type=int, default=0)
    given = parser.parse_args(arguments)
    seen = one_storm(given.seed, given.minutes, given.hogs, lambda line: print(line, flush=True))
    result = Result(figures_of([seen]), {**TARGETS, "runs_that_ended": {"min": 1, "max": 1}}, 1)
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
