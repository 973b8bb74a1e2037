"""Session of one rank in a steered run: it drives the boundary protocol and holds its state.

    before a step   begin_step   starts the boundary's generator and its broadcast, without waiting
    after the step  end_step     waits for the broadcast; settles commands, if any; holds a pause

Training calls nothing else. On rank 0 a `Link` brings offers and takes outcomes; other ranks have none.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from control_plane.api.messages import Phase
from control_plane.core.boundary import (
    AllGather,
    AllReduceMin,
    Apply,
    Broadcast,
    Check,
    Effect,
    Failure,
    ReadKnobs,
    Replica,
    Steps,
    TakeOffers,
    Undo,
    Wait,
    boundary,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.core.model.records import CheckpointCommitted, CheckpointFailed, CommandSettled, RankPlace, Readback
from control_plane.core.rules.decisions import GenerationStart
from ray_jobs.process.collectives import Collectives
from ray_jobs.process.error_text import error_text
from ray_jobs.rank.link import Link
from ray_jobs.rank.plan import FROM_THE_BEGINNING, ResumePlan
from ray_jobs.steering.appliers import Applier

log = logging.getLogger(__name__)

SPEED_WINDOW_STEPS = 20
"""Steps over which the speed is averaged: long enough to be steady, short enough to show a change."""


@dataclass(slots=True)
class _Open:
    """Boundary between `begin_step` and `end_step`."""

    steps: Steps
    step: int
    finish_broadcast: Callable[[], tuple[Command, ...]]


@dataclass
class RankSession:
    """Session of one rank. `link` is set on rank 0 only. `beat` is called with the phase, on every rank."""

    collectives: Collectives
    link: Link | None
    appliers: dict[str, Applier] = field(default_factory=dict)
    replica: Replica = field(default_factory=lambda: Replica(generation=0))
    total_steps: Callable[[], int] = lambda: 0
    beat: Callable[[str], None] = lambda phase: None
    # Everything that can be set on this rank, read from the live objects.
    read_knobs: Callable[[], Readback] = dict
    # Added to every reading of an applied command: that its step was skipped, see `skipped`.
    beside: Callable[[], Readback] = dict
    # Called when a pause becomes idle (True) and when it has work or ends (False): states may be offloaded meanwhile.
    rest: Callable[[bool], None] = lambda resting: None
    # Called before anything but an update changes the live state, or may: a command, an evaluation, a pause.
    before_change: list[Callable[[], None]] = field(default_factory=list)
    # Commands whose outcome is not known at their own boundary: a save goes on in the background.
    deferred: set[UUID] = field(default_factory=set)
    chores: list[Callable[[], None]] = field(default_factory=list)
    _open: _Open | None = None
    _reported: int = 0
    _step_times_s: list[float] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.collectives.rank

    def register(self, kind: str, applier: Applier) -> None:
        """Register the applier of one command kind on this rank."""
        self.appliers[kind] = applier

    def start(
        self,
        place: RankPlace,
        step: int,
        knobs: Readback,
        facts: Readback,
        plan: ResumePlan = FROM_THE_BEGINNING,
        retention: Readback | None = None,
    ) -> int:
        """Collective. Announce this start of the trainers; return the generation's number.

        Raises, on every rank: `Unavailable` if the control server could not be reached, `Invalid` if the facts
        (which include a digest of the data) differ between ranks.
        """
        self.replica.ledger, self.replica.repeats = dict(plan.replay.ledger), plan.replay.repeats
        self.replica.paused, self.replica.stopping = plan.replay.paused, plan.replay.stopping
        self.replica.replays = plan.replays
        self._reported = len(self.replica.ledger)
        gathered = self.collectives.all_gather((place, facts))
        for other, theirs in gathered:
            if theirs != facts:
                keys = sorted(key for key in facts if theirs.get(key) != facts[key])
                raise Invalid(
                    f"rank {place.rank} on {place.node} and rank {other.rank} on {other.node} differ in {keys}"
                )
        places = tuple(other for other, _ in gathered)
        error: str | None = None
        generation = 0
        if self.link is not None:
            start = GenerationStart(
                uuid4(),
                places,
                step,
                self.total_steps(),
                knobs,
                facts,
                plan.checkpoint,
                plan.refused,
                retention or {},
                plan.branch,
                plan.branched_seq,
                plan.training,
                plan.fingerprint,
            )
            generation, error = self.link.start(start)
        generation, error = self.collectives.broadcast_json([generation, error])
        if error:
            raise Unavailable(error)
        self.replica.generation = generation
        return int(generation)

    def is_open(self, step: int) -> bool:
        """Return whether the boundary after `step` was begun and has not ended."""
        return self._open is not None and self._open.step == step

    def begin_step(self, step: int) -> None:
        """Collective. Start the boundary's broadcast for the end of optimizer step `step`; returns at once."""
        steps = boundary(self.replica, step)
        effect = next(steps)
        effect = steps.send(self._perform(effect))
        assert isinstance(effect, Broadcast), effect
        self._open = _Open(steps, step, self.collectives.start_broadcast(effect))

    def end_step(self, step: int) -> None:
        """Collective. Run the boundary after step `step`: settle the proposed commands, and block while paused.

        Raises `Diverged` on every rank if the ranks could not be brought back to agreement.
        """
        if self._open is None or self._open.step != step:
            self.begin_step(step)
        assert self._open is not None
        opened, self._open = self._open, None
        answer: Any = opened.finish_broadcast()
        try:
            with suppress(StopIteration):  # that is how a generator says that the boundary is over
                while True:
                    answer = self._perform(opened.steps.send(answer))
            self.rest(False)
        finally:
            self._report_outcomes()  # also what was decided before the ranks fell out
        self._progress(step)

    def hold(self, step: int) -> None:
        """Collective. Run the boundary of a restored state: a pause is kept, and commands that were decided at the very
        step of the checkpoint are decided again."""
        if self.replica.paused or self.replica.is_behind(step):
            self.end_step(step)

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case TakeOffers():
                return self.link.offers() if self.link is not None else ()
            case Check(command):
                # Not where a failure would be taken for a refusal: without its states this rank cannot go on.
                self.rest(False)
                return self.check(command)
            case Apply(command, step):
                return self._apply(command, step)
            case Undo(command):
                return self._undo(command)
            case ReadKnobs():
                return self.read_knobs()
            case Wait(wait_s):
                self._report_outcomes()
                self.phase("paused")
                self.rest(True)
                time.sleep(wait_s)
                return None
            case Broadcast() | AllReduceMin() | AllGather():
                return self.collectives.perform(effect)
        raise TypeError(effect)

    def check(self, command: Command) -> str | None:
        """Return the reason why this rank cannot apply the command, or None."""
        applier = self.appliers.get(command.intent.kind)
        if applier is None:
            return f"no handler for '{command.describe()}' is registered on this run"
        try:
            return applier.check(command)
        except Exception as error:
            log.exception("checking %s", command.describe())
            return error_text(error)

    def _apply(self, command: Command, step: int) -> Any:
        self._prepare_change()
        try:
            applied = self.appliers[command.intent.kind].apply(command, step)
            return replace(applied, after=applied.after | self.beside())
        except Exception as error:
            log.exception("applying %s at step %d", command.describe(), step)
            return Failure(error_text(error))

    def _undo(self, command: Command) -> str | None:
        self._prepare_change()
        try:
            self.appliers[command.intent.kind].undo(command)
        except Exception as error:
            log.exception("undoing %s", command.describe())
            return error_text(error)
        return None

    def _prepare_change(self) -> None:
        for prepare in self.before_change:
            prepare()

    def _report_outcomes(self) -> None:
        """Hand new decisions to the link; the ledger is in the order of decision.

        A deferred decision is reported when its work has ended, see `conclude`.
        """
        for chore in self.chores:
            chore()
        if self.link is None or len(self.replica.ledger) == self._reported:
            return
        new: list[CommandSettled] = list(self.replica.ledger.values())[self._reported :]
        self._reported = len(self.replica.ledger)
        self.link.report([outcome for outcome in new if outcome.uuid not in self.deferred])

    def conclude(self, uuid: UUID, reason: str | None, after: Readback) -> None:
        """Report the end of a deferred command: applied with the reading `after`, or failed if there is a `reason`."""
        self.deferred.discard(uuid)
        outcome = self.replica.ledger.get(uuid)
        if self.link is None or outcome is None:
            return
        if reason is None:
            settled = outcome.model_copy(update={"after": after, "ranks": (after,) * len(outcome.ranks)})
        else:
            settled = CommandSettled(
                uuid=uuid, status="failed", step=outcome.step, generation=outcome.generation, reason=reason
            )
        self.link.report([settled])

    def _progress(self, step: int) -> None:
        if self.link is None:
            return
        self._step_times_s.append(time.monotonic())
        del self._step_times_s[:-SPEED_WINDOW_STEPS]
        elapsed_s = self._step_times_s[-1] - self._step_times_s[0]
        speed = (len(self._step_times_s) - 1) / elapsed_s if elapsed_s > 0 else None
        self.link.progress(step, self.total_steps(), "training", speed)

    def phase(self, phase: Phase) -> None:
        """Report the phase between two steps. Time that is not training does not count as speed."""
        self.beat(phase)
        if phase != "training":
            self._prepare_change()
        if self.link is not None:
            self._step_times_s.clear()
            self.link.phase(phase)

    def commit_checkpoint(self, checkpoint: CheckpointCommitted) -> None:
        """Report a committed checkpoint to the control server, from rank 0."""
        if self.link is not None:
            self.link.checkpoint(checkpoint)

    def fail_checkpoint(self, checkpoint: str, step: int, reason: str) -> None:
        """Log a failed save and report it to the control server, from rank 0; training continues."""
        log.error("no checkpoint at step %d: %s", step, reason)
        if self.link is not None:
            generation = self.replica.generation
            self.link.failed_checkpoint(
                CheckpointFailed(checkpoint=checkpoint, step=step, generation=generation, reason=reason)
            )
