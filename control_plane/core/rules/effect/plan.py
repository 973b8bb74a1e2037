"""Effect plan: a recorded run as the schedule of a replay that leaves one command out, or puts a placebo in its place.

    without = plan(entries, uuid)                    the run as it would have been
    placebo = plan(entries, uuid, placebo=1e-6)      the same, its learning rate changed by a millionth at that step

Both are the recorded run until the command's step. Later commands are repeated at their steps with the values that they
had set, see `absolute`. A command that would be refused is left out, with the reason. The runs with placebos show how
far a training drifts apart by itself: an effect is what lies beyond that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from uuid import UUID, uuid5

from control_plane.core.model.branch_tree import belongs, lineage
from control_plane.core.model.commands import Command, Evaluate, Pause, Resume, SaveCheckpoint, Stop
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.intent_base import LEARNING_RATE, Message
from control_plane.core.model.intents import Freeze, Intent, Rollback, RunAction, SetLearningRate, Unfreeze
from control_plane.core.model.records import Entry
from control_plane.core.model.state import CommandStatus, RunState, fold
from control_plane.core.model.values import MAX_FIRST, LeftOut
from control_plane.core.rules.branch_rules import ScheduledCommand, first_uuid
from control_plane.core.rules.effect.absolute import TOTAL_STEPS, Setting, absolute
from control_plane.core.rules.replay_plan import recorded

AUTHOR = "replay"
MORE = "and "
"""Beginning of the last name in a shortened list of frozen parameters."""


class Rewritten(Message):
    """A later command that the replay does not repeat as it was sent: what it was, what it became, and why.

    becomes: descriptions of the commands in its place; none: it would be refused, for this `reason`.
    """

    command: UUID
    step: int
    what: str
    becomes: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EffectPlan:
    """Schedule of a replay that leaves a command out.

    what: that command, in words. placebo: uuids of the commands in its place.
    """

    without: LeftOut
    what: str
    scheduled: tuple[ScheduledCommand, ...]
    rewritten: tuple[Rewritten, ...] = ()
    placebo: tuple[UUID, ...] = ()


def plan(
    entries: Sequence[Entry], uuid: UUID, placebo: float | None = None, until_step: int | None = None
) -> EffectPlan:
    """Return the schedule of a run without one of its commands.

    Args:
        entries: the recorded run's journal.
        uuid: the command; an initial change of a branch counts as one.
        placebo: relative change of the learning rate in its place.
        until_step: stop there, as in `recorded`.

    Raises: `NotFound` for an unknown command, `Conflict` with the reason for one that has no effect to measure.
    """
    state = fold(list(entries))
    life = _measurable(state, uuid)
    items = list(recorded(entries, until_step))
    at = next((place for place, item in enumerate(items) if _holds(item.command, uuid)), None)
    assert life.settled is not None
    step = life.settled.step or 0
    if at is None or (until_step is not None and step >= until_step):
        where = f"step {until_step}" if until_step is not None else "an earlier step"
        raise Conflict(f"command {short(uuid)} took effect after step {step}, and the replay ends at {where}")
    _check_is_of_the_head(state, entries, items, life)
    without = LeftOut(command=uuid, step=step, training=life.training, placebo=placebo)
    replacement = _placebo(_state_before(entries, life), life, placebo) if placebo is not None else ()
    later = _Later(state, entries, life)
    scheduled = [*items[:at], *_in_place(items[at], uuid, replacement, later)]
    place, first = _place_in(items[at].command, uuid), items[at].command.uuid
    numbers = range(len(replacement))
    in_place = [placebo_uuid(uuid, n) if place is None else first_uuid(first, place + n) for n in numbers]
    for item in items[at + 1 :]:
        scheduled += later.repeat(item)
    what = life.command.intent.describe()
    return EffectPlan(without, what, tuple(scheduled), tuple(later.rewritten), tuple(in_place))


def short(uuid: UUID) -> str:
    """Return the beginning of a uuid, as lists of commands show it."""
    return str(uuid)[:8]


def _measurable(state: RunState, uuid: UUID) -> CommandStatus:
    """Return an applied command that changed the training. Raises `NotFound`, or `Conflict` with the reason."""
    life = state.commands.get(uuid)
    if life is None:
        raise NotFound(f"run {state.run} has no command {uuid}; `steer journal {state.run}` lists them")
    named = f"command {short(uuid)} ({life.command.intent.describe()})"
    if life.settled is None:
        raise Conflict(f"{named} is not settled yet: nothing is known of what it does")
    if life.settled.status != "applied":
        why = f": {life.settled.reason}" if life.settled.reason else ""
        raise Conflict(f"{named} was {life.settled.status}{why}; it changed nothing, so there is no effect to measure")
    if reason := reason_without_effect(state, life):
        raise Conflict(f"{named} {reason}")
    return life


def reason_without_effect(state: RunState, life: CommandStatus) -> str | None:
    """Return the reason why leaving out an applied command cannot be compared, or None."""
    step = life.settled.step if life.settled is not None else 0
    match life.command.intent:
        case Rollback():
            return (
                f"ends the comparison at its step {step}: the run without it would continue branch {life.branch}, and "
                "there are no later steps of that to compare with. Compare the branches instead: "
                f"steer compare {state.run}:{life.branch} {state.run}:{state.tree.head}"
            )
        case Stop():
            return f"ended the run at step {step}: the recorded run has no steps after it to compare with"
        case Pause() | Resume():
            return "changes the time of the steps and nothing that is trained: the run without it is the same one"
        case Evaluate() | SaveCheckpoint():
            return "only reads the training: the run without it is the same one"
        case intent if not intent.changes_training:
            return "changes nothing that is trained: the run without it is the same one"
    return None


def _holds(command: Command, uuid: UUID) -> bool:
    """Return whether a command of the schedule is the wanted one, or begins a branch with it."""
    return command.uuid == uuid or _place_in(command, uuid) is not None


def _place_in(command: Command, uuid: UUID) -> int | None:
    if not isinstance(command.intent, Rollback):
        return None
    return next((at for at in range(len(command.intent.first)) if first_uuid(command.uuid, at) == uuid), None)


def _check_is_of_the_head(
    state: RunState, entries: Sequence[Entry], items: Sequence[ScheduledCommand], life: CommandStatus
) -> None:
    """Raise `Conflict` if the command has no part in what the replay ends with."""
    repeated = {item.command.uuid for item in items}
    cut = min(
        (
            other.settled_seq or 0
            for other in state.commands.values()
            if isinstance(other.command.intent, Rollback)
            and other.status == "applied"
            and other.command.uuid not in repeated
        ),
        default=None,
    )
    at_the_end = state if cut is None else fold(list(entries[: cut - 1]))
    line = list(lineage(at_the_end.tree, at_the_end.checkpoints, at_the_end.tree.head, life.training))
    assert life.settled is not None
    step = life.settled.step or 0
    if not belongs(line, life.branch, step, life.settled_seq or 0, life.command.uuid):
        raise Conflict(
            f"command {short(life.command.uuid)} was applied after step {step} of branch {life.branch}, and branch "
            f"{at_the_end.tree.head} began before that: the command has no part in what the run has become. With "
            f"--until-step, the replay ends earlier, while the run was on branch {life.branch}"
        )


def _state_before(entries: Sequence[Entry], life: CommandStatus) -> RunState:
    return fold(list(entries[: (life.settled_seq or 1) - 1]))


def _placebo(before: RunState, life: CommandStatus, placebo: float) -> tuple[Intent, ...]:
    """Return the intents of a placebo: every group's learning rate times 1 + `placebo`, each in its present mode."""
    modes = before.knobs.get("schedule")
    held = [mode == "hold" for mode in modes] if isinstance(modes, list) else []
    factor = 1.0 + placebo
    if len(set(held)) <= 1:
        return (SetLearningRate(factor=factor, schedule="hold" if any(held) else "keep"),)
    return tuple(
        SetLearningRate(factor=factor, group=group, schedule="hold" if is_held else "keep")
        for group, is_held in enumerate(held)
    )


def _in_place(
    item: ScheduledCommand, uuid: UUID, replacement: tuple[Intent, ...], later: "_Later"
) -> list[ScheduledCommand]:
    """Return a scheduled command without the one left out, with `replacement` in its place."""
    place = _place_in(item.command, uuid)
    if place is not None:
        intent = item.command.intent
        assert isinstance(intent, Rollback)
        first = (*intent.first[:place], *replacement, *later.first_changes(item.command, place + 1))
        if len(first) > MAX_FIRST:
            raise Conflict(f"the branch begins with {len(intent.first)} changes: there is no room for a placebo")
        changed = item.command.model_copy(update={"intent": intent.model_copy(update={"first": first})})
        return [item.model_copy(update={"command": changed})]
    reason = f"placebo in place of command {short(uuid)}"
    return [
        ScheduledCommand(
            command=Command(uuid=placebo_uuid(uuid, number), author=AUTHOR, intent=intent, reason=reason),
            step=item.step,
            training=item.training,
        )
        for number, intent in enumerate(replacement)
    ]


def placebo_uuid(uuid: UUID, number: int) -> UUID:
    """Return the uuid of the `number`-th command that is a placebo in place of `uuid`."""
    return uuid5(uuid, f"placebo-{number}")


class _Later:
    """Commands after the one left out, rewritten one by one, in their order."""

    def __init__(self, state: RunState, entries: Sequence[Entry], life: CommandStatus) -> None:
        self._state, self.rewritten = state, list[Rewritten]()
        before = _state_before(entries, life)
        self._generation = before.generation
        self._groups = tuple(str(name) for name in before.knobs.get("groups", ()))
        self._touched = _touched(life)
        self._length = before.knobs.get(TOTAL_STEPS) or (before.generation.total_steps if before.generation else 0)
        self._length = (life.settled.after or {}).get(TOTAL_STEPS, self._length) if life.settled else self._length
        self._frozen = _frozen(life) if isinstance(life.command.intent, Freeze) else None

    def repeat(self, item: ScheduledCommand) -> list[ScheduledCommand]:
        """Return what the replay does in place of a later command."""
        life = self._state.commands.get(item.command.uuid)
        if life is None or life.settled is None:
            return [item]  # a save, or a stop, that the replay adds by itself
        self._length = (life.settled.after or {}).get(TOTAL_STEPS, self._length)
        if reason := self._reason_refused(life):
            self._note(life, item, (), reason)
            return []
        if isinstance(item.command.intent, Rollback):
            self._frozen = None  # what was frozen comes from the checkpoint
            return [self._branch(life, item)]
        intents, reason = absolute(item.command.intent, life.settled, self._setting())
        if reason or intents != (item.command.intent,):
            self._note(life, item, tuple(intent.describe() for intent in intents), reason)
        return _split(item, intents)

    def _setting(self) -> Setting:
        facts = self._generation.facts.get("knobs", {}) if self._generation else {}
        return Setting(self._groups, facts, int(self._length or 0), self._touched)

    def _branch(self, life: CommandStatus, item: ScheduledCommand) -> ScheduledCommand:
        """Return a rollback whose initial changes are absolute."""
        intent = item.command.intent
        assert isinstance(intent, Rollback)
        first = self.first_changes(item.command)
        if first == intent.first:
            return item
        what = tuple(each.describe() for each in first)
        if len(first) > MAX_FIRST:
            self._note(life, item, (intent.describe(),), "a branch cannot begin with so many absolute changes")
            return item
        self._note(life, item, what, None)
        changed = intent.model_copy(update={"first": first})
        return item.model_copy(update={"command": item.command.model_copy(update={"intent": changed})})

    def first_changes(self, rollback: Command, place: int = 0) -> tuple[Intent, ...]:
        """Return the initial changes of a branch, from index `place` on, as absolute ones."""
        intent, first = rollback.intent, list[Intent]()
        assert isinstance(intent, Rollback)
        for at, change in enumerate(intent.first[place:], place):
            own = self._state.commands.get(first_uuid(rollback.uuid, at))
            outcome = own.settled if own is not None and own.status == "applied" else None
            first += absolute(change, outcome, self._setting())[0] if outcome is not None else (change,)
        return tuple(first)

    def _reason_refused(self, life: CommandStatus) -> str | None:
        """Return the reason why the ranks would refuse an unfreeze: what it unfroze would not be frozen."""
        intent, outcome = life.command.intent, life.settled
        if self._frozen is None or outcome is None or not isinstance(intent, Freeze | Unfreeze):
            return None
        names = _names(outcome.after if isinstance(intent, Freeze) else outcome.before)
        if names is None:
            self._frozen = None
            return None
        matching = {name for name in names if name == intent.parameters or fnmatchcase(name, intent.parameters)}
        if isinstance(intent, Freeze):
            self._frozen |= matching
        elif not matching & self._frozen:
            return f"no frozen parameter would match {intent.parameters!r}"
        else:
            self._frozen -= matching
        return None

    def _note(self, life: CommandStatus, item: ScheduledCommand, becomes: tuple[str, ...], reason: str | None) -> None:
        what = life.command.intent.describe()
        self.rewritten.append(
            Rewritten(command=life.command.uuid, step=item.step, what=what, becomes=becomes, reason=reason)
        )


def _split(item: ScheduledCommand, intents: tuple[Intent, ...]) -> list[ScheduledCommand]:
    """Return one command for each intent; the last one keeps the uuid."""
    last = len(intents) - 1
    return [
        item.model_copy(
            update={
                "command": item.command.model_copy(
                    update={
                        "intent": intent,
                        "uuid": item.command.uuid if at == last else uuid5(item.command.uuid, f"absolute-{at}"),
                    }
                )
            }
        )
        for at, intent in enumerate(intents)
    ]


def _touched(life: CommandStatus) -> frozenset[str]:
    """Return the knobs that the command has set; an action of the script may set the learning rate, too."""
    intent = life.command.intent
    names = set(intent.changed_knobs(life.settled.after if life.settled else None))
    return frozenset(names | ({LEARNING_RATE, TOTAL_STEPS} if isinstance(intent, RunAction) else set()))


def _frozen(life: CommandStatus) -> set[str] | None:
    """Return the parameters that were frozen before a freeze; None if the record lists only some of them."""
    names = _names(life.settled.before if life.settled else None)
    return set(names) if names is not None else None


def _names(readback: object) -> list[str] | None:
    names = readback.get("frozen") if isinstance(readback, dict) else None
    if not isinstance(names, list) or (names and str(names[-1]).startswith(MORE)):
        return None
    return [str(name) for name in names]
