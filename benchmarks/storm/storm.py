"""Overload by commands of a run that trains: its cost for the training, and its effect on a well-behaved client.

A cluster of its own, and three phases of the same length: calm, storm, calm. In all of them a well-behaved client
sends one command every half second. In the storm a client with another token offers 1,000 a second besides, in an
open loop: see `storm_client`. Figures: steps per second by the ranks' own diaries, the good client's time to a 202, the
outcomes of all acknowledged commands, the storm's refusals by their limits, and the number of cores that each part
used, including other processes of the machine. Every acknowledged command must be settled in the journal, once.

The ranks, the gateway, Serve's proxy and the clients share the machine's cores, so a part of the cost is the client
itself: its processor time is reported beside the rest, and it runs with the lowest priority.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import httpx

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import diaries, own_cluster, start, wait_closed, wait_running
from benchmarks.harness.quantiles import median, quantile
from benchmarks.harness.result import Bound, Result
from benchmarks.live.control_loss import speed
from benchmarks.storm import storm_cost
from benchmarks.storm.storm_client import DRAIN_S, READY, Order, Outcome
from control_plane.client import SteerwayClient
from control_plane.config import Role, Settings
from control_plane.core.model.commands import Stop
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.gateway.auth import PREFIX

SHAPE = "default"
OFFERED_PER_S = 1000
CONNECTIONS = 256
CLIENT_NICENESS = 19
WARM_UP_S = 20
"""Warm-up after the first steps, while warm spares are started, which takes half a core."""

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
class Good:
    """Results of the well-behaved client: acknowledged uuids, and seconds to each answer."""

    acknowledged: list[UUID] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)

    def send(self, client: httpx.Client, url: str, rate: float) -> None:
        """Send one command."""
        uuid = uuid4()
        body = {"uuid": str(uuid), "intent": {"kind": "set_learning_rate", "value": rate, "schedule": "hold"}}
        begun_s = time.monotonic()
        try:
            status = client.post(url, json=body).status_code
        except httpx.HTTPError:
            status = 0
        self.answered_s.append(time.monotonic() - begun_s)
        if status == 202:
            self.acknowledged.append(uuid)


@dataclass
class Phase:
    """Phase: its Unix times, the good client's results, and the cores that each part used."""

    name: str
    begun_s: float = 0.0
    ended_s: float = 0.0
    good: Good = field(default_factory=Good)
    cores: dict[str, float] = field(default_factory=dict)
    load_1min: float = 0.0


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure phases of `n` seconds. Raises `SteerwayError` if the cluster, the run or the storm does not start."""
    before, storm, after = phases = [Phase("before"), Phase("storm"), Phase("after")]
    with own_cluster(say) as where, SteerwayClient.from_settings(where) as client:
        folder: Path = where.home / "diaries"
        folder.mkdir(exist_ok=True)
        run = start(where, SHAPE, folder)
        wait_running(client, run)
        time.sleep(min(n, WARM_UP_S))
        _spend(where, run, n, before, Outcome)
        say(f"storm: {OFFERED_PER_S} commands a second for {n} s")
        with _storm(where, run, n) as blow:
            outcome = _spend(where, run, n, storm, blow)
        lost, twice = lost_and_repeated(
            client, run, [*map(UUID, outcome.acknowledged), *before.good.acknowledged, *storm.good.acknowledged]
        )
        say(f"storm: {outcome.answers} of {outcome.sent}; calm again for {n} s")
        _spend(where, run, n, after, Outcome)
        client.submit(run, Stop())
        wait_closed(client, run)
        ends_s = [page.end_s for page in diaries(folder, SHAPE)[0].values()]
    became = {"acknowledged_and_lost": lost, "settled_twice": twice}
    return Result(_figures(n, phases, ends_s, outcome) | became, TARGETS, n)


def _spend(where: Settings, run: str, seconds: int, phase: Phase, meanwhile: Callable[[], Outcome]) -> Outcome:
    """Run one phase with the good client. `meanwhile` may take longer; the phase ends after `seconds`."""
    cost_before, own_before_s = storm_cost.read(where), time.process_time()
    phase.begun_s, until_s = time.time(), time.monotonic() + seconds
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(_behave_well, where, run, until_s, phase.good)
        other = pool.submit(meanwhile)
        time.sleep(max(0.0, until_s - time.monotonic()))
        phase.ended_s, phase.load_1min = time.time(), os.getloadavg()[0]
        cost_after, own_s = storm_cost.read(where), time.process_time() - own_before_s
    good.result()
    outcome = other.result()
    phase.cores = storm_cost.cores(cost_before, cost_after, own_s + outcome.cpu_s)
    return outcome


def _behave_well(where: Settings, run: str, until_s: float, good: Good) -> None:
    headers, due_s = {"Authorization": f"Bearer {_token(where, 'operator')}"}, time.monotonic()
    with httpx.Client(headers=headers, timeout=REQUEST_TIMEOUT_S) as client:
        while (now_s := time.monotonic()) < until_s:
            time.sleep(max(0.0, due_s - now_s))
            good.send(client, _url(where, run), GOOD_RATE)
            due_s = max(due_s + GOOD_GAP_S, time.monotonic())


def _token(where: Settings, role: Role) -> str:
    return where.token_file(role).read_text().strip()


def _url(where: Settings, run: str) -> str:
    return f"{where.gateway_url}{PREFIX}/runs/{run}/commands"


@contextmanager
def _storm(where: Settings, run: str, seconds: int) -> Iterator[Callable[[], Outcome]]:
    """Start the storm's client in a process of its own. Raises `SteerwayError` if it does not get ready."""
    order = Order(
        where.host,
        where.gateway_port,
        httpx.URL(_url(where, run)).path,
        _token(where, "agent"),
        OFFERED_PER_S,
        seconds,
        CONNECTIONS,
        STORM_RATE,
        CLIENT_NICENESS,
    )
    command = [sys.executable, "-m", "benchmarks.storm.storm_client"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(order)) + "\n")
            process.stdin.flush()
            if process.stdout.readline().strip() != READY:
                raise SteerwayError("the client of the storm did not get ready")
            yield lambda: _blow(process, 2 * seconds + DRAIN_S)
        finally:
            process.kill()


def _blow(process: "subprocess.Popen[str]", within_s: float) -> Outcome:
    try:
        output, _ = process.communicate("\n", within_s)
        return Outcome(**json.loads(output))
    except (subprocess.TimeoutExpired, ValueError):
        raise SteerwayError(f"the client of the storm returned no outcome within {within_s:g} s") from None


def lost_and_repeated(client: SteerwayClient, run: str, acknowledged: list[UUID]) -> tuple[float, float]:
    """Return the numbers of acknowledged commands without an outcome in the journal, and with two."""
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


def _figures(seconds: int, phases: list[Phase], ends_s: list[float], outcome: Outcome) -> dict[str, float]:
    before, storm, after = phases
    calm = speed(ends_s, [(phase.begun_s, phase.ended_s) for phase in (before, after)])
    stormy = speed(ends_s, [(storm.begun_s, storm.ended_s)])
    figures = _of_storm(seconds, outcome) | _of_good("good", [storm.good])
    figures |= _of_good("good_calm", [before.good, after.good])
    for phase in phases:
        figures[f"steps_per_s_{phase.name}"] = speed(ends_s, [(phase.begun_s, phase.ended_s)])
    figures |= {"steps_per_s_calm": calm, "storm_over_calm_steps": stormy / calm if calm else math.nan}
    for phase in phases:
        figures |= {f"cores_{part}_{phase.name}": value for part, value in phase.cores.items()}
        figures[f"load_1min_{phase.name}"] = phase.load_1min
    return figures


def _of_storm(seconds: int, outcome: Outcome) -> dict[str, float]:
    answered = sum(outcome.answers.values())
    listed = {"202", "429 per_s", "429 at_once", "429 queue", "409", "503"}
    return {
        "offered_per_s": outcome.sent / (outcome.sending_s or seconds),
        "storm_not_sent": float(outcome.due - outcome.sent),
        "storm_answered": float(answered),
        "storm_unanswered": float(outcome.sent - answered),
        "storm_taken": float(outcome.answers.get("202", 0)),
        "storm_taken_per_s": outcome.answers.get("202", 0) / seconds,
        "storm_refused_by_rate": float(outcome.answers.get("429 per_s", 0)),
        "storm_refused_by_places": float(outcome.answers.get("429 at_once", 0)),
        "storm_refused_by_queue": float(outcome.answers.get("429 queue", 0)),
        "storm_conflicts_or_unavailable": float(outcome.answers.get("409", 0) + outcome.answers.get("503", 0)),
        "storm_other_answers": float(sum(count for key, count in outcome.answers.items() if key not in listed)),
        "refusal_ms_p50": 1000 * median(outcome.refused_s),
        "refusal_ms_p99": 1000 * quantile(outcome.refused_s, 0.99),
        "cores_client": outcome.cpu_s / (outcome.sending_s or seconds),
    }


def _of_good(name: str, clients: list[Good]) -> dict[str, float]:
    answered_s = [seconds for client in clients for seconds in client.answered_s]
    return {
        f"{name}_sent": float(len(answered_s)),
        f"{name}_refused": float(len(answered_s) - sum(len(client.acknowledged) for client in clients)),
        f"{name}_ms_p50": 1000 * median(answered_s),
        f"{name}_ms_p99": 1000 * quantile(answered_s, 0.99),
    }
