"""SIGKILL of the control server during training, with commands in flight: effect on training and commands.

While a run trains on a cluster of its own and learning rates are sent to it, its control actor is killed repeatedly.
Steps per second are compared within the run: before the first kill, while the server is down, and after the last
restart. On a machine whose cores are all used by the ranks, the restarting actor's imports take some of them: hence the
modest bound on the ratio during the outage. The diaries of the ranks show that no step is lost and none waits.
"""

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

import psutil

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import (
    LOOK_EVERY_S,
    diaries,
    own_cluster,
    send,
    settled,
    start,
    wait_closed,
    wait_running,
)
from benchmarks.harness.quantiles import median
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.live.latency_evidence import Page, Sent
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.commands import Stop
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandSettled, GenerationStarted

SHAPE = "small"
CALM_S = 8.0
"""Time of undisturbed training before the first kill, and after each restart."""

MEAN_GAP_S = 0.2
RECOVERY_WAIT_S = 60.0
ACTOR_TITLE = "ray::ControlActor"

TARGETS: dict[str, Bound] = {
    "acknowledged_lost": {"max": 0},
    "values_not_used": {"max": 0},
    "applied_twice": {"max": 0},
    "steps_lost": {"max": 0},
    "generations": {"max": 1},
    "speed_during_over_before": {"min": 0.5},
    "speed_after_over_before": {"min": 0.8},
}


@dataclass(frozen=True, slots=True)
class ServerOutage:
    """Outage after one kill: Unix times of the kill and of the first answer of the next control server."""

    killed_s: float
    answered_s: float


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` kills. Raises `SteerwayError` if the cluster, the run or a control server does not start."""
    with own_cluster(say) as where, SteerwayClient.from_settings(where) as client:
        folder = where.home / "diaries"
        folder.mkdir()
        run = start(where, SHAPE, folder)
        wait_running(client, run)
        begun_s = time.time()
        sender = Sender(where, run, commands=int((n * 3 + 2) * CALM_S / MEAN_GAP_S / 2))
        time.sleep(CALM_S)
        sender.start()
        losses = [_kill(where, client, run, say) for _ in range(n)]
        sender.join()
        outcomes = settled(client, run, sender.sent)
        client.submit(run, Stop())
        wait_closed(client, run)
        return _result(n, begun_s, losses, sender.sent, outcomes, _generations(client, run), diaries(folder, SHAPE)[0])


class Sender(threading.Thread):
    """Thread that sends commands, also during outages, and keeps the acknowledged ones."""

    def __init__(self, where: Settings, run: str, commands: int) -> None:
        super().__init__(daemon=True)
        self._where, self._run_id, self._commands = where, run, commands
        self.sent: list[Sent] = []

    def run(self) -> None:
        """Send the commands over a connection of its own."""
        with SteerwayClient.from_settings(self._where) as client:
            self.sent = send(client, self._run_id, self._commands, MEAN_GAP_S)


def _kill(where: Settings, client: SteerwayClient, run: str, say: Say) -> ServerOutage:
    term = client.snapshot(run).term
    actor = _control_actor(where)
    killed_s = time.time()
    os.kill(actor.pid, signal.SIGKILL)
    while time.time() < killed_s + RECOVERY_WAIT_S:
        try:
            if client.snapshot(run).term > term:
                answered_s = time.time()
                say(f"control_loss: killed, and answered again after {answered_s - killed_s:.1f} s")
                time.sleep(CALM_S)
                return ServerOutage(killed_s, answered_s)
        except SteerwayError:
            time.sleep(LOOK_EVERY_S / 5)
    raise SteerwayError(f"no control server of run {run} answered within {RECOVERY_WAIT_S:g} s of a kill")


def _control_actor(where: Settings) -> psutil.Process:
    """Return the control actor's process, found by its title and by the cluster's mark in its environment."""
    mark = json.loads(where.cluster_file.read_text())["cluster"]
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("STEERWAY_CLUSTER") == mark
            if ours and " ".join(process.cmdline()).startswith(ACTOR_TITLE):
                return process
        except psutil.Error:
            continue  # it has ended, or is another user's
    raise SteerwayError("cannot find the control actor's process")


def _generations(client: SteerwayClient, run: str) -> int:
    entries, after = 0, 0
    while page := client.journal(run, after=after):
        entries += sum(isinstance(entry.record, GenerationStarted) for entry in page)
        after = page[-1].seq
    return entries


def _result(
    n: int,
    begun_s: float,
    losses: list[ServerOutage],
    sent: list[Sent],
    outcomes: list[CommandSettled],
    generations: int,
    diary: dict[int, Page],
) -> Result:
    ends = [page.end_s for page in diary.values()]
    before = speed(ends, [(begun_s, losses[0].killed_s)])
    during = speed(ends, [(loss.killed_s, loss.answered_s) for loss in losses])
    after = speed(ends, [(losses[-1].answered_s, losses[-1].answered_s + CALM_S)])
    away = [loss.answered_s - loss.killed_s for loss in losses]
    applied = {outcome.uuid: outcome.step or 0 for outcome in outcomes if outcome.status == "applied"}
    # The warm-up may pass through a value that is sent later.
    steered = {step: page for step, page in diary.items() if step > min(applied.values(), default=0)}
    figures: dict[str, float] = {
        "acknowledged": len(sent),
        "acknowledged_lost": sum(one.uuid not in applied for one in sent),
        "values_not_used": not_used(diary, {one.uuid: one.rate for one in sent}, applied),
        "applied_twice": comebacks(steered, {one.rate for one in sent})
        + len(outcomes)
        - len({o.uuid for o in outcomes}),
        "steps_lost": max(diary) - len(diary),
        "generations": generations,
        "speed_during_over_before": during / before,
        "speed_after_over_before": after / before,
        "away_median_s": median(away),
        "away_max_s": max(away),
        "longest_step_during_s": longest_gap(ends, losses),
    }
    rows = tuple((name, f"{value:.2f}") for name, value in (("before", before), ("during", during), ("after", after)))
    return Result(figures, TARGETS, n, (Table("steps per second, control server", ("steps/s",), rows),))


def speed(ends: list[float], spans: list[tuple[float, float]]) -> float:
    """Return the steps per second within these spans of Unix time."""
    steps = sum(any(first <= end < last for first, last in spans) for end in ends)
    return steps / sum(last - first for first, last in spans)


def not_used(diary: dict[int, Page], rates: dict[UUID, float], applied: dict[UUID, int]) -> int:
    """Count applied values that the next step did not use. Of several at one boundary, the last one counts."""
    last_at = {step: rates[uuid] for uuid, step in applied.items()}  # in the journal's order
    return sum(step + 1 in diary and diary[step + 1].rate != rate for step, rate in last_at.items())


def comebacks(diary: dict[int, Page], rates: set[float]) -> int:
    """Count values that were used again after another one: commands that were applied twice."""
    stretches = Counter[float]()
    last = None
    for step in sorted(diary):
        if diary[step].rate != last:
            last = diary[step].rate
            stretches[last] += last in rates
    return sum(count - 1 for count in stretches.values() if count > 1)


def longest_gap(ends: list[float], losses: list[ServerOutage]) -> float:
    """Return the longest time between two steps during an outage."""
    pairs = pairwise(ends)
    return max(
        (b - a for a, b in pairs if any(loss.killed_s <= b and a <= loss.answered_s for loss in losses)), default=0.0
    )
