"""Rules for alerts that are recorded: that they have cleared, and the commands that acknowledge and snooze them."""

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.health import AlertCleared, Cleared
from control_plane.core.model.intents.server import AcknowledgeAlert, SnoozeAlert
from control_plane.core.model.records import CommandSettled, Record
from control_plane.core.model.state import RunState
from control_plane.core.model.values import MAX_NAMES_TOLD


def clear_alert(state: RunState, cleared: Cleared, generation: int) -> list[Record]:
    """Return the record of an alert that has cleared. Idempotent; none for an alert that was never recorded."""
    status = state.alerts.find(cleared.key)
    if status is None or status.cleared is not None:
        return []
    return [AlertCleared(alert=status.seq, cleared=cleared, generation=generation)]


def settle_alert_command(state: RunState, command: Command) -> list[Record]:
    """Return the record that acknowledges or snoozes an alert. Raises `NotFound`, or `Conflict` if it has no effect."""
    intent = command.intent
    assert isinstance(intent, AcknowledgeAlert | SnoozeAlert)
    status = state.alerts.by_seq.get(intent.alert)
    if status is None:
        newest = ", ".join(str(seq) for seq in list(state.alerts.by_seq)[-MAX_NAMES_TOLD:]) or "none"
        raise NotFound(f"run {state.run} has no alert {intent.alert}; the newest are {newest}")
    if isinstance(intent, AcknowledgeAlert):
        if status.acknowledged is not None:
            by = state.commands[status.acknowledged].command.author
            raise Conflict(f"alert {intent.alert} is already acknowledged, by {by}")
        return [CommandSettled(uuid=command.uuid, status="applied", after={"alert": intent.alert})]
    if intent.until_step is None and status.cleared is not None:
        raise Conflict(f"alert {intent.alert} has cleared; give a step to snooze later alerts of its kind until then")
    return [CommandSettled(uuid=command.uuid, status="applied", after={"alert": intent.alert})]
