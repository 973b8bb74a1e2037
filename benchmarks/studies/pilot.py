"""Pilot of one run of the study: it observes at fixed steps, asks a rule, and sends what the guard lets through.

The autopilot of `steer agent` looks when its poll happens to find a step; a study has to be repeatable. So this one
looks in line with the training, between two steps, and waits until its command has reached rank 0: it takes effect
after the next step, always. Everything else is the autopilot's own: history from the journal, observation, rule, guard
(`grants.decide`), and a command that the ranks vote on, apply and read back at their boundary.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID, uuid4

from benchmarks.studies.plan import GRANTS, GUARD
from control_plane.agent.grants import decide
from control_plane.agent.history import SteeringHistory
from control_plane.agent.observing import knobs_seen
from control_plane.agent.policy import AgentAction, Decision, Observation, explain
from control_plane.agent.rules.rule import Rule
from control_plane.api.messages import Snapshot
from control_plane.core.model.commands import Command, Intent
from control_plane.core.model.errors import Refused, SteerwayError
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents.grants import KnobGrant
from control_plane.core.model.knobs import finite_numbers
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry
from control_plane.server.control_server import ControlServer
from ray_jobs.rank.link import Link

T = TypeVar("T")

WINDOW_POINTS = 200
POLL_S, ARRIVAL_LIMIT_S = 0.0005, 30.0
ROUNDING = 1 + 1e-6

Series = Sequence[tuple[int, float]]


class Reader:
    """Journal of the run, read in the control server's own thread."""

    def __init__(self, server: ControlServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self._loop = server, loop

    def call(self, what: Coroutine[Any, Any, T]) -> T:
        """Return the answer of a call to the control server."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(ARRIVAL_LIMIT_S)

    def journal(self, run: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Return the entries after the entry `after`."""
        return list(self.call(self.server.tail(after, limit, 0.0)))


@dataclass
class Counts:
    """Counts of one run: looks, commands sent, proposals that the guard or the control server refused, seconds."""

    looks: int = 0
    sent: int = 0
    refused: int = 0
    rule_s: float = 0.0


class Pilot:
    """Pilot of one run."""

    def __init__(self, rule: Rule, every: int, reader: Reader, link: Link, run: str, total_steps: int) -> None:
        self._rule, self._every, self._reader, self._link, self._run = rule, every, reader, link, run
        self._total_steps = total_steps
        self._history = SteeringHistory()
        self._waiting: UUID | None = None
        self._snapshot: Snapshot | None = None
        self.counts = Counts()
        self.episodes: list[dict[str, Any]] = []

    def after_step(
        self, step: int, rates: tuple[float, ...], losses: Series, evals: Series, grad_norms: Series
    ) -> None:
        """Wait for the outcome of the last command; look, if a look is due: before step 1, and every few."""
        if self._waiting is not None:
            self._wait_settled(self._waiting)
            self._waiting = self._snapshot = None
        if step == self._total_steps or step % self._every:
            return
        seen = self._observe(step, rates, losses, evals, grad_norms)
        began_s = time.perf_counter()
        proposal = self._rule.look(seen)
        self.counts.looks += 1
        self.counts.rule_s += time.perf_counter() - began_s
        is_kept = isinstance(proposal, Decision) and proposal.action is AgentAction.KEEP
        ruling = decide(proposal, seen, seen, GUARD, GRANTS)
        if ruling.intent is not None:
            self._send(ruling.intent, explain(self._rule.name, proposal.reason))
        elif not is_kept:
            self.counts.refused += 1
        if features := getattr(self._rule, "features", ()):
            self.episodes.append(
                {"step": step, "features": features, "proposal": proposal.what, "verdict": ruling.sentence}
            )

    def _observe(
        self, step: int, rates: tuple[float, ...], losses: Series, evals: Series, grad_norms: Series
    ) -> Observation:
        if self._snapshot is None:
            self._snapshot = self._reader.call(self._reader.server.snapshot())
            self._history.read(self._reader, self._run, self._snapshot.seq)
        changed_at, pending = self._history.last_change(LEARNING_RATE)
        return Observation(
            step=step,
            total_steps=self._total_steps,
            losses=tuple(losses[-WINDOW_POINTS:]),
            lr=rates,
            eval_loss=evals[-1][1] if evals else None,
            generation=self._snapshot.generation,
            changed_at=changed_at,
            changes=self._history.changes,
            pending=pending,
            peak_lr=max(self._history.peak_lr, *rates),
            knobs=knobs_seen(self._snapshot, self._history, GRANTS, rates),
            evals=tuple(evals[-WINDOW_POINTS:]),
            grad_norms=tuple(grad_norms[-WINDOW_POINTS:]),
        )

    def _send(self, intent: Intent, reason: str) -> None:
        assert self._snapshot is not None
        command = Command(
            uuid=uuid4(), author="study", intent=intent, reason=reason, based_on_seq=self._snapshot.seq, role="agent"
        )
        try:
            self._reader.call(self._reader.server.submit(command))
        except Refused:
            self.counts.refused += 1
            return
        self.counts.sent += 1
        self._waiting = command.uuid
        # The broadcast of the next step takes what rank 0 has been offered by then.
        _wait_until(lambda: any(each.uuid == command.uuid for each in self._link.offers()))

    def _wait_settled(self, uuid: UUID) -> None:
        _wait_until(lambda: self._reader.call(self._reader.server.command(uuid)).settled is not None)


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ARRIVAL_LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise SteerwayError(f"a command of the study was not carried out within {ARRIVAL_LIMIT_S:g} s")
        time.sleep(POLL_S)


def violations(entries: Sequence[Entry]) -> list[str]:
    """Return how a run's journal breaks the guard; counted from the readbacks of the ranks, not from what was asked."""
    asked = {entry.record.command.uuid for entry in entries if isinstance(entry.record, CommandAccepted)}
    outcomes = [entry.record for entry in entries if isinstance(entry.record, CommandSettled)]
    applied = [each for each in outcomes if each.status == "applied" and each.uuid in asked]
    broken = [f"{len(applied)} changes"] if len(applied) > GUARD.max_changes else []
    changed: dict[str, int] = {}
    for outcome in applied:
        for knob, grant in GRANTS.knobs.items():
            before, after = (finite_numbers((each or {}).get(knob)) for each in (outcome.before, outcome.after))
            if before == after:
                continue
            step = outcome.step or 0
            if step - changed.get(knob, -grant.cool_down_steps) < grant.cool_down_steps:
                broken.append(f"step {step}: {knob} was changed at step {changed[knob]}")
            changed[knob] = step
            if any(_is_beyond(grant, was, now) for was, now in zip(before, after, strict=True)):
                broken.append(f"step {step}: {knob} went from {before} to {after}")
    return broken


def _is_beyond(grant: KnobGrant, was: float, now: float) -> bool:
    if was and max(now / was, was / max(now, 1e-300)) > grant.max_factor * ROUNDING:
        return True
    least, most = grant.min or 0.0, grant.max or 0.0
    return now < min(was, least) / ROUNDING or now > max(was, most) * ROUNDING
