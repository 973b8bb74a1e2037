"""A storm of commands against a run that trains: what it costs the training, and what a good client notices.

A cluster of its own. First the run is left alone for a while, then a client of its own token offers 1,000 commands a
second over several connections, while a well-behaved client sends one every half second. Figures: steps a second in
both phases, the good client's time to a 202, what became of every command that was acknowledged, and how many of the
storm's were refused. Every acknowledged command must be settled in the journal, once.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import httpx

from benchmarks.catalogue import Say
from benchmarks.live_run import own_cluster, start, wait_closed, wait_running
from benchmarks.quantiles import median, quantile
from benchmarks.result import Bound, Result
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.commands import Stop
from control_plane.core.records import CommandAccepted, CommandSettled
from control_plane.gateway.auth import PREFIX

OFFERED_PER_S = 1000
STORM_THREADS = 8
GOOD_GAP_S = 0.5
STORM_RATE, GOOD_RATE = 1e-4, 2e-4
SETTLE_WAIT_S = 60.0
REQUEST_TIMEOUT_S = 30.0

TARGETS: dict[str, Bound] = {
    "acknowledged_and_lost": {"max": 0},
    "settled_twice": {"max": 0},
    "good_refused": {"max": 0},
}


@dataclass
class Sender:
    """What one client saw: acknowledged uuids, refusals by status, seconds to each answer."""

    acknowledged: list[UUID] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    answered_s: list[float] = field(default_factory=list)

    def send(self, client: httpx.Client, url: str, rate: float) -> None:
        """One command."""
        uuid = uuid4()
        body = {"uuid": str(uuid), "intent": {"kind": "set_learning_rate", "value": rate, "schedule": "hold"}}
        begun_s = time.monotonic()
        try:
            status = client.post(url, json=body).status_code
        except httpx.HTTPError:
            status = 0
        self.answered_s.append(time.monotonic() - begun_s)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 202:
            self.acknowledged.append(uuid)


def measure(n: int, quick: bool, say: Say) -> Result:
    """`n` seconds of quiet, then of storm. Raises `SteerwayError` if the cluster or the run does not start."""
    with own_cluster(say) as where, SteerwayClient.from_settings(where) as client:
        folder: Path = where.home / "diaries"
        folder.mkdir(exist_ok=True)
        run = start(where, "default", folder)
        wait_running(client, run)
        quiet = _steps_per_s(client, run, n, lambda: None)
        say(f"storm: {quiet:.2f} steps/s without a storm; {OFFERED_PER_S} commands a second for {n} s")
        storms, good = [Sender() for _ in range(STORM_THREADS)], Sender()
        stormy = _steps_per_s(client, run, n, lambda: _blow(where, run, n, storms, good))
        lost, twice = _fate(client, run, [uuid for one in (*storms, good) for uuid in one.acknowledged])
        client.submit(run, Stop())
        wait_closed(client, run)
    figures = _figures(n, quiet, stormy, storms, good) | {"acknowledged_and_lost": lost, "settled_twice": twice}
    return Result(figures, TARGETS, n)


def _steps_per_s(client: SteerwayClient, run: str, seconds: int, meanwhile: Callable[[], None]) -> float:
    before, begun_s = client.snapshot(run).step, time.monotonic()
    meanwhile()
    time.sleep(max(0.0, begun_s + seconds - time.monotonic()))
    return (client.snapshot(run).step - before) / (time.monotonic() - begun_s)


def _blow(where: Settings, run: str, seconds: int, storms: list[Sender], good: Sender) -> None:
    url = f"{where.gateway_url}{PREFIX}/runs/{run}/commands"
    until_s = time.monotonic() + seconds
    agent, operator = (where.token_file(role).read_text().strip() for role in ("agent", "operator"))

    def blow(sender: Sender, token: str, gap_s: float, rate: float) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=REQUEST_TIMEOUT_S) as client:
            due_s = time.monotonic()
            while (now_s := time.monotonic()) < until_s:
                time.sleep(max(0.0, due_s - now_s))
                # What cannot be sent in time is not made up for: the rate that was really offered is told.
                due_s = max(due_s + gap_s, time.monotonic() - gap_s)
                sender.send(client, url, rate)

    gap_s = len(storms) / OFFERED_PER_S
    threads = [threading.Thread(target=blow, args=(one, agent, gap_s, STORM_RATE)) for one in storms]
    threads.append(threading.Thread(target=blow, args=(good, operator, GOOD_GAP_S, GOOD_RATE)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _fate(client: SteerwayClient, run: str, acknowledged: list[UUID]) -> tuple[float, float]:
    """How many acknowledged commands are not in the journal or have no end, and how many have two."""
    wanted, accepted = set(acknowledged), set[UUID]()
    ends: dict[UUID, int] = {}
    after, deadline = 0, time.monotonic() + SETTLE_WAIT_S
    while time.monotonic() < deadline and not (wanted <= ends.keys()):
        for entry in client.journal(run, after=after, wait_s=1.0):
            after = entry.seq
            if isinstance(entry.record, CommandAccepted):
                accepted.add(entry.record.command.uuid)
            elif isinstance(entry.record, CommandSettled):
                ends[entry.record.uuid] = ends.get(entry.record.uuid, 0) + 1
    lost = len(wanted - (accepted & ends.keys()))
    return float(lost), float(sum(count > 1 for count in ends.values()))


def _figures(seconds: int, quiet: float, stormy: float, storms: list[Sender], good: Sender) -> dict[str, float]:
    offered = sum(len(one.answered_s) for one in storms)
    taken = sum(len(one.acknowledged) for one in storms)
    return {
        "offered_per_s": offered / seconds,
        "storm_taken_per_s": taken / seconds,
        "storm_refused": float(sum(one.statuses.get(429, 0) for one in storms)),
        "storm_other_answers": float(sum(c for one in storms for s, c in one.statuses.items() if s not in (202, 429))),
        "good_sent": float(len(good.answered_s)),
        "good_refused": float(len(good.answered_s) - len(good.acknowledged)),
        "good_ms_p50": 1000 * median(good.answered_s),
        "good_ms_p99": 1000 * quantile(good.answered_s, 0.99),
        "steps_per_s_quiet": quiet,
        "steps_per_s_storm": stormy,
        "storm_over_quiet_steps": stormy / quiet,
    }
