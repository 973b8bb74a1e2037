"""Rules for trials of proposals: the same steps without it and with it, and the better of the two goes on.

    save a checkpoint, at step s          the control server sends each of these as a command of the author `trial:...`
    train n steps without it, evaluate    on the branch that the proposal is about
    save a checkpoint there
    roll back to step s with it           on a branch of its own, whose first change it is
    train n steps with it, evaluate       the same data in the same order, the same evaluation set
    better: stay; else switch back        the proposal is closed, with both losses

`next_records` looks at the state alone and returns what comes next, so a trial goes on after any failure, of the agent
too, which has no part in it. Whatever a person does to the run's course meanwhile ends the trial, and stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NoReturn, Protocol, get_args
from uuid import UUID, uuid5

from control_plane.core.model.commands import MAX_REASON_CHARS, Command
from control_plane.core.model.errors import Conflict, SteerwayError
from control_plane.core.model.intent_base import BaseIntent
from control_plane.core.model.intents import INTENT, Cancel, Evaluate, Pause, Resume, Rollback, SaveCheckpoint
from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.model.intents.course import First
from control_plane.core.model.proposals import ProposalClosed, ProposalStatus, TrialStarted, Verdict
from control_plane.core.model.records import CheckpointCommitted, Readback, Record
from control_plane.core.model.state import CommandStatus, RunState
from control_plane.core.model.values import MAX_LABEL_CHARS
from control_plane.core.rules.branch_rules import first_uuid, next_name

AUTHOR = "trial:"
"""Beginning of the author of a trial's commands; no token that people create has a colon."""

TRIED = frozenset(kind.model_fields["kind"].default for kind in get_args(get_args(First)[0]))
"""Kinds that can be tried: those with which a branch can begin."""

MAX_SAVES = 8
"""Attempts to save a checkpoint; one is rejected while another is being written. The pause between two doubles."""

BASE, KEPT, WITHOUT, BRANCH, WITH, RETURN = "base", "kept", "without", "branch", "with", "return"


class Accept(Protocol):
    """`decisions.accept` for a command of the control server itself."""

    def __call__(self, state: RunState, command: Command) -> list[Record]:
        """Return the records of its acceptance. Raises as `decisions.accept` does."""
        ...


class _Abandoned(Exception):
    """The trial ends without a result; the reason."""


class _NotYet(Exception):
    """Signal that the trial waits for something; `records` are to be written before."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        super().__init__()
        self.records = list(records)


def is_tried(settings: AgentSettings, intent: BaseIntent) -> bool:
    """Return whether a proposal of this intent is tried before it is adopted."""
    return settings.trial_steps is not None and intent.kind in TRIED


def uuid_of(proposal: UUID, name: str) -> UUID:
    """Return the uuid of one command of a proposal's trial."""
    return uuid5(proposal, f"trial-{name}")


def running_trial(state: RunState) -> ProposalStatus | None:
    """Return the proposal that is on trial, or None."""
    status = _last(state)
    return status if status is not None and status.is_on_trial else None


def check_no_trial(state: RunState) -> None:
    """Raise `Conflict` while a trial is running, or the run is on its way back from one."""
    status = _last(state)
    if status is None:
        return
    if status.is_on_trial:
        raise Conflict(
            f"proposal {status.seq} is on trial, which another change would spoil; wait for its end, or end it: "
            f"`steer agent reject {status.seq}`"
        )
    if any(uuid_of(status.command.uuid, name) in state.pending for name in (BRANCH, RETURN)):
        raise Conflict(f"the run is on its way back from the trial of proposal {status.seq}; try again then")


def start_trial(
    state: RunState,
    proposal: Command,
    number: int,
    steps: int,
    intent: BaseIntent,
    accept: Accept,
    *,
    by: str = "",
    note: str | None = None,
) -> list[Record]:
    """Return the records that begin a trial: its own, and the command that saves the checkpoint to return to.

    Args:
        number: the proposal's number, as people are told it.
        by, note: who approved it, and why.

    Raises:
        Conflict: another trial is running, or too few steps are left.
    """
    check_no_trial(state)
    total = state.generation.total_steps if state.generation else 0
    if total and state.step + steps >= total:
        raise Conflict(f"a trial takes {steps} steps, and the run ends at step {total}: too few are left")
    wanted = f"trial-{number}"
    name = next_name(state) if wanted in state.tree.branches else wanted
    record = TrialStarted.model_validate(
        {
            "proposal": proposal.uuid,
            "intent": intent.model_dump(),
            "steps": steps,
            "branch": state.tree.head,
            "trial_branch": name,
            "by": by,
            "note": note,
        }
    )
    trial = _Trial(state, record, proposal, number, state.seq, accept)
    return [record, *trial.save(BASE, "before", 0)]


def next_records(state: RunState, accept: Accept) -> list[Record]:
    """Return what comes next in the last trial: commands, or the proposal's verdict. Empty: it waits, or is done.

    To be asked again after the records are folded, until it is empty.
    """
    status = _last(state)
    if status is None or status.trial is None or state.closed is not None or state.stopping:
        return []
    trial = _Trial(state, status.trial, status.command, status.seq, status.trial_seq, accept)
    try:
        return trial.way_back(status) if status.closed is not None else trial.verdict()
    except _NotYet as waiting:
        return waiting.records
    except (_Abandoned, SteerwayError) as error:
        if status.closed is not None:
            return []  # the way back is barred: the run stays where it is, and the journal says why
        reason = error.reason if isinstance(error, SteerwayError) else str(error)
        return [abandoned(status, reason)]


def abandoned(status: ProposalStatus, reason: str, by: str = "") -> ProposalClosed:
    """Return the record that ends a trial without a result."""
    return ProposalClosed(proposal=status.command.uuid, verdict="abandoned", by=by, reason=f"trial: {reason}")


def describe_trial(state: RunState, status: ProposalStatus) -> str | None:
    """Return how far a trial is, as a sentence; None if the proposal is not on trial."""
    if status.trial is None or status.closed is not None:
        return None
    uuid, steps = status.command.uuid, status.trial.steps
    if (last := state.commands.get(uuid_of(uuid, WITH))) is not None:
        return f"with it until step {last.command.not_before_step}"
    if uuid_of(uuid, BRANCH) in state.commands:
        return f"goes back for the {steps} steps with it"
    if (first := state.commands.get(uuid_of(uuid, WITHOUT))) is not None:
        return f"without it until step {first.command.not_before_step}"
    return f"saves a checkpoint before {steps} steps without it and with it"


def _last(state: RunState) -> ProposalStatus | None:
    return state.agent.proposals.get(state.agent.tried) if state.agent.tried is not None else None


@dataclass(frozen=True, slots=True)
class _Trial:
    """One trial in a state. `number`: of the proposal; `since_seq`: the entry that began it."""

    state: RunState
    record: TrialStarted
    proposal: Command
    number: int
    since_seq: int
    accept: Accept

    @property
    def author(self) -> str:
        """Author of the trial's commands."""
        return f"{AUTHOR}{self.proposal.author}"[:MAX_LABEL_CHARS]

    def life(self, name: str) -> CommandStatus | None:
        """Return the state of one of the trial's commands; None: it was not sent."""
        return self.state.commands.get(uuid_of(self.proposal.uuid, name))

    def send(self, name: str, intent: BaseIntent, not_before_step: int | None = None) -> list[Record]:
        """Return the records that send one of the trial's commands. Raises as `decisions.accept` does."""
        why = f"trial of proposal {self.number}: {self.proposal.reason or 'no reason given'}"
        command = Command(
            uuid=uuid_of(self.proposal.uuid, name),
            author=self.author,
            intent=INTENT.validate_python(intent.model_dump()),
            reason=why[:MAX_REASON_CHARS],
            not_before_step=not_before_step,
        )
        return self.accept(self.state, command)

    def verdict(self) -> list[Record]:
        """Return the verdict. Raises `_NotYet` with what comes before it, `_Abandoned`, or as `send` does."""
        if reason := self.overtaken():
            raise _Abandoned(reason)
        base = self.saved(BASE, "before")
        self.check_place(base)
        if self.life(WITHOUT) is None:
            until = base.step + self.record.steps
            self.check_steps(until)
            raise _NotYet([*self.send(WITHOUT, Evaluate(), until), *self.save(KEPT, "beside", 0, until)])
        until, without = self.evaluated(WITHOUT)
        self.saved(KEPT, "beside")
        if self.life(BRANCH) is None:
            self.check_steps(until)
            first = {"checkpoint": base.checkpoint, "branch": self.record.trial_branch, "first": (self.record.intent,)}
            raise _NotYet(self.send(BRANCH, Rollback.model_validate(first)))
        self.applied(BRANCH, "the run could not go back to the checkpoint")
        if self.life(WITH) is None:
            raise _NotYet(self.send(WITH, Evaluate(), until))
        at, with_it = self.evaluated(WITH)
        if at != until:
            raise _Abandoned(f"evaluated without it at step {until}, with it at step {at}: they cannot be compared")
        return [self.compare(without, with_it, until - base.step)]

    def compare(self, without: Readback, with_it: Readback, steps: int) -> ProposalClosed:
        """Return the verdict from the two evaluations."""
        before, after = loss_of(without), loss_of(with_it)
        is_better = after is not None and (before is None or after < before)
        shown = ["not finite" if loss is None else f"{loss:.6g}" for loss in (before, after)]
        facts = f"evaluation loss {shown[0]} without it, {shown[1]} with it, after {steps} steps"
        by_how_much = f" by {before - after:.4g}" if is_better and before is not None and after is not None else ""
        adopted: Verdict = "adopted" if is_better else "not_better"
        branch = uuid_of(self.proposal.uuid, BRANCH)
        return ProposalClosed(
            proposal=self.proposal.uuid,
            verdict=adopted,
            by=self.record.by,
            command=first_uuid(branch, 0) if is_better else None,
            reason=f"trial: {'better' if is_better else 'not better'}{by_how_much} ({facts})",
        )

    def way_back(self, status: ProposalStatus) -> list[Record]:
        """Return what is left to do after the verdict: take back what waits, and return to the branch before.

        Nothing once it was adopted, nor after somebody else has changed the run's course.
        """
        if status.closed is None or status.closed.verdict == "adopted" or self.life(RETURN) is not None:
            return []
        for uuid in self.state.pending:
            waiting = self.state.commands[uuid].command
            name = f"cancel-{uuid}"
            if waiting.author != self.author or isinstance(waiting.intent, Cancel) or self.life(name) is not None:
                continue
            if uuid not in self.state.scheduled:
                return self.send(name, Cancel(command=uuid))
        branch = self.own_branch()
        if branch is None or self.state.tree.head != branch or self.overtaken():
            return []
        return self.send(RETURN, Rollback(branch=self.record.branch))

    def own_branch(self) -> str | None:
        """Return the trial's branch, None before it begins."""
        rollback = uuid_of(self.proposal.uuid, BRANCH)
        return next((name for name, each in self.state.tree.branches.items() if each.rollback == rollback), None)

    def overtaken(self) -> str | None:
        """Return what somebody else has done to the run's course since the trial began, or None.

        A pause and its end do not count: the steps stay the same.
        """
        for life in reversed(self.state.commands.values()):
            if life.accepted_seq <= self.since_seq:
                return None
            command = life.command
            is_change = command.intent.changes_course and not isinstance(command.intent, Pause | Resume)
            if is_change and command.author != self.author and life.status in ("accepted", "applied"):
                return f"'{command.describe()}' was sent by {command.author} meanwhile"
        return None

    def check_place(self, base: CheckpointCommitted) -> None:
        """Raise `_Abandoned` if the run is not where the trial is."""
        head, expected = self.state.tree.head, self.own_branch() or self.record.branch
        if head != expected:
            raise _Abandoned(f"the run was taken to branch {head} meanwhile")
        if self.state.generation is not None and self.state.generation.training != base.training:
            raise _Abandoned("another training of the script has begun meanwhile")

    def check_steps(self, until: int) -> None:
        """Raise `_Abandoned` if the run ends before the trial would."""
        total = self.state.generation.total_steps if self.state.generation else 0
        if total and until >= total:
            raise _Abandoned(f"it takes until step {until}, and the run ends at step {total}")

    def save(self, name: str, word: str, attempt: int, not_before_step: int | None = None) -> list[Record]:
        """Return the records that send a save, whose label is `word` and the name of the trial's branch."""
        intent = SaveCheckpoint(label=f"{word} {self.record.trial_branch}")
        return self.send(f"{name}-{attempt}", intent, not_before_step)

    def saved(self, name: str, word: str) -> CheckpointCommitted:
        """Return the checkpoint that this command saved, tried again if that failed."""
        reason, failed_at = "", None
        for attempt in range(MAX_SAVES):
            life = self.life(f"{name}-{attempt}")
            if life is None:
                later = failed_at + (1 << attempt - 1) if failed_at is not None else None
                raise _NotYet(self.save(name, word, attempt, later))
            if life.status == "applied":
                return self._committed(life)
            if life.settled is None or life.status not in ("rejected", "failed"):
                return self._not_applied(life, "no checkpoint was saved")
            reason, failed_at = life.settled.reason or "", life.settled.step
        raise _Abandoned(f"no checkpoint could be saved: {reason}")

    def _committed(self, life: CommandStatus) -> CheckpointCommitted:
        name = str(((life.settled.after if life.settled else None) or {}).get("checkpoint"))
        found = self.state.checkpoints.find(name)
        if found is None and name in self.state.checkpoints.discarded:
            raise _Abandoned(f"checkpoint {name} was deleted meanwhile")
        if found is None:
            raise _NotYet  # its record follows
        return found

    def evaluated(self, name: str) -> tuple[int, Readback]:
        """Return the step of an evaluation, and what it read."""
        life = self.applied(name, "the run could not be evaluated")
        assert life.settled is not None
        return life.settled.step or 0, life.settled.after or {}

    def applied(self, name: str, else_: str) -> CommandStatus:
        """Return a command of the trial once it is applied. Raises `_NotYet`, `_Abandoned`."""
        life = self.life(name)
        assert life is not None, "it was sent before"
        return life if life.status == "applied" else self._not_applied(life, else_)

    def _not_applied(self, life: CommandStatus, what: str) -> NoReturn:
        if life.settled is None:
            raise _NotYet
        raise _Abandoned(f"{what}: {life.settled.reason or life.status}")


def loss_of(reading: Readback) -> float | None:
    """Return the loss of an evaluation, the mean over several evaluation sets; None if one is not finite."""
    losses = [float(loss) for loss in reading.values() if isinstance(loss, int | float) and isfinite(loss)]
    return sum(losses) / len(losses) if losses and len(losses) == len(reading) else None
