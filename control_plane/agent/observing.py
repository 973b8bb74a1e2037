"""What a run has of the knobs and actions that its autopilot was granted, from a snapshot and the journal's history."""

from typing import Any

from control_plane.agent.history import History
from control_plane.agent.policy import ActionSeen, KnobSeen
from control_plane.agent.powers import Powers
from control_plane.core.limits import ACTION, LEARNING_RATE
from control_plane.handle import Snapshot


def knobs_seen(snapshot: Snapshot, history: History, powers: Powers, live_lr: tuple[float, ...]) -> dict[str, KnobSeen]:
    """The granted knobs that this run has."""
    found: dict[str, KnobSeen] = {}
    for name in powers.knobs:
        changed_at, pending = history.last_change(name)
        about: Any = snapshot.knob_facts.get(name)
        if name == LEARNING_RATE:
            found[name] = KnobSeen(list(live_lr), per_group=True, above=0.0, changed_at=changed_at, pending=pending)
        elif isinstance(about, dict) and snapshot.knobs.get(name) is not None:
            bounds = {bound: about.get(bound) for bound in ("least", "most", "above", "below")}
            kind, per_group = str(about.get("kind", "number")), bool(about.get("per_group"))
            found[name] = KnobSeen(
                snapshot.knobs[name], kind, per_group, changed_at=changed_at, pending=pending, **bounds
            )
    return found


def actions_seen(snapshot: Snapshot, history: History, powers: Powers) -> dict[str, ActionSeen]:
    """The granted actions that this run has."""
    listed: Any = snapshot.facts.get("actions") or {}
    found: dict[str, ActionSeen] = {}
    for name in powers.actions:
        if not isinstance(listed.get(name), dict):
            continue
        arguments: dict[str, Any] = listed[name].get("arguments", {})
        types = {key: str(each.get("type")) for key, each in arguments.items()}
        required = frozenset(key for key, each in arguments.items() if "default" not in each)
        found[name] = ActionSeen(types, required, *history.last_change(ACTION + name))
    return found
