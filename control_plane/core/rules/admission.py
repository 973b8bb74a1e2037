"""Admission control for commands: the checks of `decisions.accept` against the run's current state."""

from collections.abc import Callable, Mapping
from typing import Any

from control_plane.core.model import limits
from control_plane.core.model.characters import reason_to_reject
from control_plane.core.model.commands import Command, Pause, Resume, Stop
from control_plane.core.model.errors import Conflict, Invalid, NotFound, Overloaded, RunEnded
from control_plane.core.model.intents import Rollback
from control_plane.core.model.state import RunState
from control_plane.core.rules.branch_rules import check_rollback

MAX_PENDING_COMMANDS = 256
"""Limit of accepted, unsettled commands. A boundary settles up to 16, so a longer queue means that no trainers run."""

MAX_PENDING_OF_ONE = MAX_PENDING_COMMANDS // 2
"""The same per author, so that a flood from one leaves room for others."""


def check_text(command: Command) -> None:
    """Raise `Invalid` if a text of the command holds a control or direction character, see `characters.OBEYED`.

    Checked here, not in the types: journals of earlier releases hold such commands and must stay readable.
    """
    if problem := reason_to_reject(command):
        raise Invalid(problem)


def check_view(state: RunState, command: Command) -> None:
    """Raise `Conflict` if the run has changed since `based_on_seq` (optimistic concurrency control)."""
    if command.based_on_seq is not None and command.based_on_seq < state.course_seq:
        raise Conflict(
            f"the command is based on journal entry {command.based_on_seq}, but the run has changed since: "
            f"{state.course} (entry {state.course_seq}); read the run's state again and resend",
            course_seq=state.course_seq,
        )


def stop_is_pending(state: RunState) -> bool:
    """Return whether an accepted stop takes effect at the next boundary.

    A stop planned for a later step does not count: until then the run may have to be resumed. Nor does the stop at the
    end of a replay.
    """
    pending = state.pending_commands()
    return any(isinstance(command.intent, Stop) and command.not_before_step is None for command in pending)


def check_open(state: RunState) -> None:
    """Raise `RunEnded` if the run is closed."""
    if state.closed is not None:
        raise RunEnded(f"run {state.run} has {state.closed.ending} and takes no more commands")


def check_queue(state: RunState, command: Command) -> None:
    """Raise `RunEnded` if the run is stopping, `Overloaded` at a limit of pending commands."""
    if state.stopping or stop_is_pending(state):
        raise RunEnded(f"run {state.run} is stopping and takes no more commands")
    waiting = state.pending_commands()
    own = sum(other.author == command.author for other in waiting)
    if len(waiting) >= MAX_PENDING_COMMANDS or own >= MAX_PENDING_OF_ONE:
        limit = MAX_PENDING_OF_ONE if own >= MAX_PENDING_OF_ONE else MAX_PENDING_COMMANDS
        whose = f"of {command.author} " if own >= MAX_PENDING_OF_ONE else ""
        raise Overloaded(
            f"run {state.run} has {own if whose else len(waiting)} commands {whose}that are not settled yet; the limit "
            f"is {limit}, try again later",
            limit=limit,
        )


def check_limits(state: RunState, command: Command, changed_s_ago: Mapping[str, float]) -> None:
    """Raise `Invalid` if the command, or an initial change in it, is beyond one of the run's limits."""
    for part in command.intent.parts():
        if reason := limits.reason_against_intent(state.limits, part, command.role, changed_s_ago):
            raise Invalid(reason)


def check_intent(state: RunState, command: Command) -> None:
    """Raise `NotFound`, `Conflict`, `Invalid` or `RunEnded` if the run cannot take this command now."""
    for part in command.intent.parts():
        for group in part.groups():
            _check_group(state, group)
    if state.parent is not None and state.parent.kind == "replay" and state.scheduled:
        _check_during_replay(state, command)
    if check := CHECKS.get(command.intent.kind):
        check(state, command.intent)
    total_steps = state.generation.total_steps if state.generation else None
    if command.not_before_step is not None and total_steps and command.not_before_step > total_steps:
        raise Invalid(
            f"not_before_step is {command.not_before_step}, but the run ends at step {total_steps}",
            total_steps=total_steps,
        )


def _check_rollback(state: RunState, intent: Rollback) -> None:
    _check_not_ending(state)
    check_rollback(state, intent)


def _check_pause(state: RunState, intent: Pause) -> None:
    if _will_be_paused(state):
        raise Conflict(f"run {state.run} is already paused, or a pause is pending")


def _check_resume(state: RunState, intent: Resume) -> None:
    if not _will_be_paused(state):
        raise Conflict(f"run {state.run} is not paused")


CHECKS: Mapping[str, Callable[[RunState, Any], None]] = {
    "rollback": _check_rollback,
    "pause": _check_pause,
    "resume": _check_resume,
}
"""Checks of single kinds against the run's state."""


def _check_not_ending(state: RunState) -> None:
    """Raise `RunEnded` between the end of training and the end of the run: no trainers are left for another branch."""
    if state.ended is not None and state.listens and state.ended.ending in ("finished", "stopped"):
        raise RunEnded(
            f"run {state.run} has {state.ended.ending} training and is shutting down; try again once it has ended"
        )


def _check_during_replay(state: RunState, command: Command) -> None:
    changes = command.intent.changes_course or command.intent.changes_training
    if changes and not isinstance(command.intent, Stop):
        raise Conflict(
            f"run {state.run} is replaying {state.parent.run if state.parent else 'another run'}: it can only be "
            f"stopped until the {len(state.scheduled)} remaining commands are replayed"
        )


def _check_group(state: RunState, group: int | str | None) -> None:
    if group is None or state.generation is None:
        return
    groups = state.knobs.get("groups") or [str(i) for i in range(len(state.knobs.get("lr", [])))]
    if find_group(groups, group) is None:
        listed = ", ".join(f"{index} ({name})" for index, name in enumerate(groups))
        raise NotFound(f"there is no parameter group {group!r}; this run has {listed}", groups=groups)


def find_group(groups: list[str], group: int | str) -> int | None:
    """Return the index of a parameter group given by index or by name, or None if it does not exist."""
    if isinstance(group, int):
        return group if 0 <= group < len(groups) else None
    if group in groups:
        return groups.index(group)
    return find_group(groups, int(group)) if group.isdecimal() else None


def _will_be_paused(state: RunState) -> bool:
    """Return whether the run is paused once all accepted commands that are due have been applied."""
    paused = state.paused
    for command in state.pending_commands():
        # A pause planned for a later step does not pause the run before that step.
        if isinstance(command.intent, Pause | Resume) and command.not_before_step is None:
            paused = isinstance(command.intent, Pause)
    return paused
