"""Rules for reflexes: the commands that answer an alert, from the config and the run's state alone.

An alert and the commands of its reflex are records of one write, and the commands' uuids follow from the alert's key:
whatever is repeated after a failure, an alert is answered once. Budget and cool-down are folded from the journal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from uuid import NAMESPACE_URL, UUID, uuid5

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.health import Alert, AlertRaised, Evidence
from control_plane.core.model.intent_base import BaseIntent
from control_plane.core.model.intents import INTENT
from control_plane.core.model.records import Record
from control_plane.core.model.reflexes import CRITICAL, Reflex, ReflexName
from control_plane.core.model.state import RunState
from control_plane.core.rules.branch_rules import newest_trusted, no_trusted
from control_plane.core.rules.decisions import NEVER, accept

AUTHOR = "reflex:"
"""Beginning of a reflex's author; no token can have such a name."""

CLIPPING = "gradient_clipping"
GRADIENT_NORM = "grad_norm"


ANSWER, SAVE_FIRST, PUT_BACK = TAGS = ("answer", "save-first", "put-back")
"""What tells the commands of one alert apart."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One command of a reflex; `tag` tells the commands of one alert apart."""

    tag: str
    intent: BaseIntent
    not_before_step: int | None = None


class Declined(Exception):
    """Reason why a reflex does not act."""


def raise_alert(
    state: RunState, alert: Alert, generation: int, changed_s_ago: Mapping[str, float] = NEVER
) -> list[Record]:
    """Return the record of an alert, followed by the commands of the reflex that answers it.

    Idempotent by the alert's key: a recovered run raises again what it had raised before.
    """
    if state.alerts.find(alert.key) is not None:
        return []
    name = name_of(state, alert)
    if name is None:
        return [AlertRaised(alert=alert, generation=generation)]
    try:
        answer = answer_of(state, alert, name, changed_s_ago)
    except Declined as reason:
        return [AlertRaised(alert=alert, generation=generation, reflex=name, declined=str(reason))]
    return [AlertRaised(alert=alert, generation=generation, reflex=name), *answer]


def name_of(state: RunState, alert: Alert) -> ReflexName | None:
    """Return the name of the reflex for this alert: that of its kind, or the one for critical alerts; or None."""
    if alert.kind in state.reflexes:
        return alert.kind
    return CRITICAL if alert.level == "critical" and CRITICAL in state.reflexes else None


def answer_of(
    state: RunState, alert: Alert, name: ReflexName, changed_s_ago: Mapping[str, float] = NEVER
) -> list[Record]:
    """Return the records of the reflex's commands, all or none. Raises `Declined`, with the reason."""
    reflex = state.reflexes[name]
    if reason := reason_to_wait(state, alert, name, reflex):
        raise Declined(reason)
    records: list[Record] = []
    for each in _commands(state, alert, reflex):
        command = Command(
            uuid=uuid_of(state, alert, each.tag),
            author=AUTHOR + name,
            intent=INTENT.validate_python(each.intent.model_dump()),
            reason=f"alert at step {alert.step}: {alert.sentence}",
            not_before_step=each.not_before_step,
        )
        try:
            records += accept(state, command, changed_s_ago)
        except SteerwayError as error:
            raise Declined(error.reason) from None
    return records


def uuid_of(state: RunState, alert: Alert, tag: str = ANSWER) -> UUID:
    """Return the uuid of a reflex's command: it follows from the run and the alert's key."""
    return uuid5(NAMESPACE_URL, "/".join(map(str, ("steerway-reflex", state.run, *alert.key, tag))))


def reason_to_wait(state: RunState, alert: Alert, name: ReflexName, reflex: Reflex) -> str | None:
    """Return the reason why the reflex may not act now, or None."""
    if alert.branch != state.tree.head or state.switching:
        return f"the run is no longer trained on branch {alert.branch}"
    acting = next((each.author for each in state.pending_commands() if _is_acting(each)), None)
    if acting is not None:
        return f"{acting} is acting already"
    acted = [
        status for status in state.alerts.by_seq.values() if status.record.reflex == name and not status.record.declined
    ]
    if len(acted) >= reflex.budget:
        return f"it has acted {len(acted)} times in this run, its budget"
    if acted and (trained := steps_since(state, acted[-1].alert, alert)) < reflex.cool_down_steps:
        return f"it acted {trained} steps ago and cools down for {reflex.cool_down_steps}"
    return None


def _is_acting(command: Command) -> bool:
    return command.author.startswith(AUTHOR) and command.not_before_step is None


def steps_since(state: RunState, last: Alert, alert: Alert) -> int:
    """Return the steps trained on the alert's branch since a reflex answered the alert `last`."""
    if last.training != alert.training:
        return alert.step
    began = last.step if last.branch == alert.branch else state.tree.branches[alert.branch].step
    return max(0, alert.step - began)


def _commands(state: RunState, alert: Alert, reflex: Reflex) -> list[Planned]:
    first = [Planned(SAVE_FIRST, INTENT.validate_python({"kind": "save_checkpoint"}))] if reflex.save_first else []
    if reflex.clips:
        return [*first, *_clip(state, alert, reflex)]
    changes = reflex.changes()
    if not reflex.rolls_back:
        return [*first, Planned(ANSWER, changes[0])]
    target = newest_trusted(state, but_for=alert)
    if target is None:
        raise Declined(no_trusted(state, but_for=alert))
    body = {"kind": "rollback", "checkpoint": target.checkpoint, "first": [each.model_dump() for each in changes]}
    return [*first, Planned(ANSWER, INTENT.validate_python(body))]


def _clip(state: RunState, alert: Alert, reflex: Reflex) -> list[Planned]:
    """Return the command that clips by ZClip's formula, and the one that puts the value back."""
    norm = clipped_norm(alert.evidence, reflex.z_threshold)
    before = state.knobs.get(CLIPPING)
    if norm is None or not isinstance(before, int | float):
        what = "the alert names no gradient norm above its mean" if norm is None else f"the run has no knob {CLIPPING}"
        raise Declined(what)
    if 0 < before <= norm:
        raise Declined(f"gradients are clipped to {before:g} already, below {norm:g}")
    lower, last = Planned(ANSWER, _set_clipping(norm)), state.generation.total_steps if state.generation else 0
    put_back = alert.step + reflex.clip_steps
    return [lower] if last and put_back > last else [lower, Planned(PUT_BACK, _set_clipping(float(before)), put_back)]


def _set_clipping(norm: float) -> BaseIntent:
    return INTENT.validate_python({"kind": "set_knobs", "changes": [{"knob": CLIPPING, "value": norm}]})


def clipped_norm(evidence: tuple[Evidence, ...], z_threshold: float) -> float | None:
    """Return ZClip's norm (arXiv 2504.02507) from the evidence of a gradient spike; None if it holds no spike."""
    for each in evidence:
        if each.sign != GRADIENT_NORM or each.mean is None or not each.deviation or not isfinite(each.value):
            continue
        z = (each.value - each.mean) / each.deviation
        if z > 0:
            return each.mean + z_threshold * each.deviation / (z / z_threshold)
    return None
