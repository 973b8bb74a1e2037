"""Observation of the knobs and actions that an autopilot was granted, from a snapshot and the journal's history.

What a run reports comes from its script and is untrusted: a knob of an unknown kind, or with a bound that is not a
number, is ignored, and no text of the run leaves this module.
"""

from collections.abc import Mapping
from typing import Any

from control_plane.agent.grants import ARGUMENT_TYPES, KINDS, Powers
from control_plane.agent.history import History
from control_plane.agent.policy import ActionSeen, KnobSeen, is_number
from control_plane.api.handle import Snapshot
from control_plane.core.model.limits import ACTION, LEARNING_RATE

BOUNDS = ("least", "most", "above", "below")


def knobs_seen(snapshot: Snapshot, history: History, powers: Powers, live_lr: tuple[float, ...]) -> dict[str, KnobSeen]:
    """Return the granted knobs that this run has."""
    knobs: dict[str, KnobSeen] = {}
    for name in powers.knobs:
        changed_at, pending = history.last_change(name)
        if name == LEARNING_RATE:
            knobs[name] = KnobSeen(list(live_lr), per_group=True, above=0.0, changed_at=changed_at, pending=pending)
            continue
        about, value = _facts(snapshot.knob_facts, name), snapshot.knobs.get(name)
        if about is None or value is None:
            continue
        kind, bounds = about.get("kind", "number"), {bound: about.get(bound) for bound in BOUNDS}
        if (
            isinstance(kind, str)
            and kind in KINDS
            and all(value is None or is_number(value) for value in bounds.values())
        ):
            per_group = bool(about.get("per_group"))
            knobs[name] = KnobSeen(value, kind, per_group, changed_at=changed_at, pending=pending, **bounds)
    return knobs


def actions_seen(snapshot: Snapshot, history: History, powers: Powers) -> dict[str, ActionSeen]:
    """Return the granted actions that this run has. Argument types that a model may not give are shown as `other`."""
    actions: dict[str, ActionSeen] = {}
    for name in powers.actions:
        about = _facts(snapshot.facts.get("actions"), name)
        if about is None:
            continue
        arguments: Any = about.get("arguments", {})
        listed = {key: _facts(arguments, key) or {} for key in arguments} if isinstance(arguments, Mapping) else {}
        given = {key: argument.get("type") for key, argument in listed.items()}
        types = {key: kind if kind in ARGUMENT_TYPES else "other" for key, kind in given.items()}
        required = frozenset(key for key, argument in listed.items() if "default" not in argument)
        actions[name] = ActionSeen(types, required, *history.last_change(ACTION + name))
    return actions


def _facts(listed: Any, name: str) -> Mapping[str, Any] | None:
    about = listed.get(name) if isinstance(listed, Mapping) else None
    return about if isinstance(about, Mapping) else None
