"""Whether a run takes a command as it stands: what `decisions.accept` checks of what the ranks will carry out."""

from control_plane.core.model.characters import objection
from control_plane.core.model.commands import Command, Pause, Resume, SetKnobs, SetLearningRate, Stop
from control_plane.core.model.errors import Conflict, Invalid, NotFound, RunEnded
from control_plane.core.model.intents import CHANGES_TRAINING, Rollback
from control_plane.core.model.state import RunState
from control_plane.core.rules.branch_rules import check_rollback


def check_text(command: Command) -> None:
    """Raises `Invalid` for a character that would change how what stands around it is shown.

    Here, and not in the types: journals of earlier releases have such commands, and are read.
    """
    if problem := objection(command):
        raise Invalid(problem)


def check_view(state: RunState, command: Command) -> None:
    """Raises `Conflict` if the run has changed since its sender looked."""
    if command.based_on_seq is not None and command.based_on_seq < state.course_seq:
        raise Conflict(
            f"this is based on entry {command.based_on_seq} of the journal, and the run has changed since: "
            f"{state.course} (entry {state.course_seq}); look again",
            course_seq=state.course_seq,
        )


def stop_is_pending(state: RunState) -> bool:
    """A stop that is planned for a later step does not count: until then the run may have to be resumed.

    Nor does one with which a replay ends.
    """
    pending = state.pending_commands()
    return any(isinstance(command.intent, Stop) and command.not_before_step is None for command in pending)


def check_intent(state: RunState, command: Command) -> None:
    """Raises `NotFound`, `Conflict`, `Invalid` or `RunEnded` for what this run cannot be asked now."""
    intent = command.intent
    for each in intent.first if isinstance(intent, Rollback) else (intent,):
        _check_groups(state, each)
    if state.parent is not None and state.parent.kind == "replay" and state.scheduled:
        _check_during_replay(state, command)
    if isinstance(intent, Rollback):
        _check_not_ending(state)
        check_rollback(state, intent)
    elif isinstance(intent, Pause) and _will_be_paused(state):
        raise Conflict(f"run {state.run} is already paused, or a pause is on its way")
    elif isinstance(intent, Resume) and not _will_be_paused(state):
        raise Conflict(f"run {state.run} is not paused")
    total_steps = state.generation.total_steps if state.generation else None
    if command.not_before_step is not None and total_steps and command.not_before_step > total_steps:
        raise Invalid(
            f"not_before_step is {command.not_before_step}, but the run ends at step {total_steps}",
            total_steps=total_steps,
        )


def _check_not_ending(state: RunState) -> None:
    """Raises `RunEnded` between the end of the last step and that of the run: nobody would train the other branch."""
    if state.ended is not None and state.listens and state.ended.ending in ("finished", "stopped"):
        raise RunEnded(
            f"run {state.run} has {state.ended.ending} its training and is ending: try again when it has ended"
        )


def _check_during_replay(state: RunState, command: Command) -> None:
    if isinstance(command.intent, (*CHANGES_TRAINING, Rollback)) and not isinstance(command.intent, Stop):
        raise Conflict(
            f"run {state.run} does again what {state.parent.run if state.parent else 'another run'} did; until that is "
            f"done ({len(state.scheduled)} commands are left) it can be stopped, and not be changed"
        )


def _check_groups(state: RunState, intent: object) -> None:
    if isinstance(intent, SetLearningRate):
        _check_group(state, intent.group)
    elif isinstance(intent, SetKnobs):
        for change in intent.changes:
            _check_group(state, change.group)


def _check_group(state: RunState, group: int | str | None) -> None:
    if group is None or state.generation is None:
        return
    groups = state.knobs.get("groups") or [str(i) for i in range(len(state.knobs.get("lr", [])))]
    if find_group(groups, group) is None:
        listed = ", ".join(f"{index} ({name})" for index, name in enumerate(groups))
        raise NotFound(f"there is no parameter group {group!r}; this run has {listed}", groups=groups)


def find_group(groups: list[str], group: int | str) -> int | None:
    """The index of a parameter group given by index or by name; None if there is none."""
    if isinstance(group, int):
        return group if 0 <= group < len(groups) else None
    if group in groups:
        return groups.index(group)
    return find_group(groups, int(group)) if group.isdecimal() else None


def _will_be_paused(state: RunState) -> bool:
    """Paused, once everything that is already accepted, and due at once, has been applied."""
    paused = state.paused
    for command in state.pending_commands():
        # A pause that is planned for a later step says nothing of until then.
        if isinstance(command.intent, Pause | Resume) and command.not_before_step is None:
            paused = isinstance(command.intent, Pause)
    return paused
