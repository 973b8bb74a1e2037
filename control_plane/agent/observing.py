"""Observation of the knobs and actions that an autopilot was granted, from a snapshot and the journal's history.

What a run reports comes from its script and is untrusted: a knob of an unknown kind, or with a bound that is not a
number, is ignored, and no text of the run leaves this module.
"""

from collections.abc import Mapping
from typing import Any

from control_plane.agent.grants import ARGUMENT_TYPES
from control_plane.agent.history import SteeringHistory
from control_plane.agent.policy import ActionSeen, KnobSeen
from control_plane.api.messages import Snapshot
from control_plane.core.model.intent_base import ACTION, LEARNING_RATE
from control_plane.core.model.intents.grants import Grants
from control_plane.core.model.knobs import KnobSpec


def knobs_seen(
    snapshot: Snapshot, history: SteeringHistory, grants: Grants, live_lr: tuple[float, ...]
) -> dict[str, KnobSeen]:
    """Return the granted knobs that this run has."""
    knobs: dict[str, KnobSeen] = {}
    for name in grants.knobs:
        changed_at, pending = history.last_change(name)
        if name == LEARNING_RATE:
            rates = KnobSpec(name, above=0.0, per_group=True)
            knobs[name] = KnobSeen(rates, list(live_lr), changed_at, pending)
            continue
        spec, value = KnobSpec.parse(name, snapshot.knob_facts.get(name)), snapshot.knobs.get(name)
        if spec is not None and value is not None:
            knobs[name] = KnobSeen(spec, value, changed_at, pending)
    return knobs


def actions_seen(snapshot: Snapshot, history: SteeringHistory, grants: Grants) -> dict[str, ActionSeen]:
    """Return the granted actions that this run has. Argument types that a model may not give are shown as `other`."""
    actions: dict[str, ActionSeen] = {}
    for name in grants.actions:
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
