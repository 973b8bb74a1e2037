"""Knobs other than the learning rate: their values, and a form that sets several of them at once."""

import math
from collections.abc import Mapping
from typing import Any

import streamlit as st
from pydantic import ValidationError

from control_plane.api.messages import Snapshot
from control_plane.api.sentences import format_value
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents import SetKnobs
from control_plane.core.model.knobs import KnobSpec
from ui.labels import complaint, escape, plain
from ui.live import LiveRun
from ui.panels.learning_rate import ALL, groups
from ui.panels.meaning import meaning
from ui.sending import send

OUTCOME, ACCEPTED = "knobs_outcome", "knobs_accepted"
SHOWN = "knobs_shown_seq"
"""State key of the journal's seq up to which the shown values are current: commands are based on it."""

AS_IT_IS = "as it is"
SWITCH = {AS_IT_IS: None, "true": True, "false": False}
GROUP, REASON = "knobs_group", "knobs_reason"


def listed(snapshot: Snapshot) -> dict[str, KnobSpec]:
    """Return the specification of every listed knob by name, but for the learning rate, which has its own form."""
    return {name: snapshot.knob_spec(name) for name in snapshot.knob_facts if name != LEARNING_RATE}


def now(live: LiveRun, were_known: bool) -> None:
    """Draw the current values. Called repeatedly in a fragment; redraws the page once the trainers list knobs."""
    snapshot = live.refresh()
    if snapshot is None:
        return
    if listed(snapshot) and not were_known:
        st.rerun()
    st.session_state[SHOWN] = snapshot.seq
    if listed(snapshot):
        st.html(table(snapshot))
    else:
        st.caption("The trainers have not listed any other knob yet.")


def table(snapshot: Snapshot) -> str:
    """Return an HTML table with a row for each knob: its name, its value in each parameter group, and its bounds."""
    head = "".join(f"<th>{title}</th>" for title in ("knob", "now", "allowed"))
    rows = "".join(_row(spec, snapshot.knobs.get(name)) for name, spec in listed(snapshot).items())
    return f'<table class="checkpoints knobs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(spec: KnobSpec, value: Any) -> str:
    about = f"<span>{escape(spec.description)}</span>" if spec.description else ""
    live = escape(format_value(value)) if value is not None else ""
    name = escape(spec.name).replace("_", "_<wbr>")
    return f"<tr><td>{name} {about}</td><td>{live}</td><td>{escape(may_be(spec))}</td></tr>"


def may_be(spec: KnobSpec) -> str:
    """Return the type and the bounds of a knob: `0 to 1`, `true or false`, `numbers, at least 0`."""
    kind, least, most = spec.kind, spec.least, spec.most
    if kind == "switch":
        return "true or false"
    bounds = f"at least {least:g}" if least is not None else f"at most {most:g}" if most is not None else ""
    bounds = f"{least:g} to {most:g}" if least is not None and most is not None else bounds
    return ", ".join(part for part in ("" if kind == "number" and bounds else str(kind), bounds) if part)


@st.fragment
def form(live: LiveRun) -> None:
    """Draw the form, in a fragment that does not refresh, so that the user's input is not overwritten."""
    snapshot = live.snapshot
    if snapshot is None or not listed(snapshot):
        return
    names = groups(snapshot)
    with st.expander("Change knobs", icon=":material/tune:"), st.form("knobs", border=False):
        for spec in listed(snapshot).values():
            _input(spec)
        if len(names) > 1 and any(spec.per_group for spec in listed(snapshot).values()):
            st.selectbox(
                "Parameter group", [ALL, *names], key=GROUP, help="For the knobs that have a value for each group."
            )
        st.text_input("Reason", key=REASON, max_chars=500, placeholder="optional, kept in the journal")
        st.form_submit_button(
            "Set knobs",
            type="primary",
            icon=":material/send:",
            disabled=snapshot.closed,
            on_click=_apply,
            args=(live.run, listed(snapshot), names),
        )
    refusal = st.session_state.get(OUTCOME)
    if refusal:
        st.error(plain(refusal), icon=":material/block:")
    accepted = st.session_state.pop(ACCEPTED, None)
    if accepted:
        st.toast(f"{plain(accepted)}: accepted", icon=":material/send:")


def _key(name: str) -> str:
    return f"knob/{name}"


def _input(spec: KnobSpec) -> None:
    """Draw the input of one knob; an empty one leaves the knob unchanged."""
    name, label, kind, taken = spec.name, plain(spec.name), spec.kind, may_be(spec)
    least, most = spec.least, spec.most
    about = meaning(name)
    if kind == "switch":
        st.selectbox(label, list(SWITCH), key=_key(name), help=about)
    elif kind == "numbers":
        st.text_input(label, key=_key(name), placeholder=f"{taken}, e.g. 0.9, 0.95", help=about)
    elif kind == "integer":
        low, high = (None if bound is None else int(bound) for bound in (least, most))
        st.number_input(label, low, high, value=None, step=1, key=_key(name), placeholder=taken, help=about)
    else:
        least, most = (None if bound is None else float(bound) for bound in (least, most))
        st.number_input(
            label, least, most, value=None, step=0.01, format="%g", key=_key(name), placeholder=taken, help=about
        )


def _apply(run: str, specs: Mapping[str, KnobSpec], names: list[str]) -> None:
    """Send every knob that has a value in the form, as one command. Called before the page is drawn again."""
    state = st.session_state
    chosen = state.get(GROUP, ALL)
    group = None if chosen == ALL else names.index(chosen)
    state[OUTCOME] = None
    try:
        intent = SetKnobs.model_validate({"changes": _changes(specs, state, group)})
    except ValidationError as error:
        state[OUTCOME] = complaint(error)
    except ValueError as error:
        state[OUTCOME] = str(error)
    else:
        refusal = send(run, intent, (state.get(REASON) or "").strip() or None, based_on_seq=state.get(SHOWN))
        state[OUTCOME] = refusal
        if refusal is None:
            state[ACCEPTED] = ", ".join(change.describe() for change in intent.changes)
            _clear(specs)


def _changes(specs: Mapping[str, KnobSpec], state: Any, group: int | None) -> list[dict[str, Any]]:
    """Return the changes in the form. Raises `ValueError` with a message if there is none, or an invalid one."""
    given = {name: _value(spec, state.get(_key(name))) for name, spec in specs.items()}
    changes = [
        {"knob": name, "value": value, "group": group if specs[name].per_group else None}
        for name, value in given.items()
        if value is not None
    ]
    if not changes:
        raise ValueError("Enter a value for at least one knob.")
    return changes


def _value(spec: KnobSpec, given: Any) -> Any:
    if spec.kind == "switch":
        return SWITCH.get(given)
    if spec.kind != "numbers" or not str(given or "").strip():
        return None if given == "" else given
    try:
        numbers = [float(part) for part in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{spec.name} takes numbers separated by commas, such as 0.9, 0.95.")
    return numbers


def _clear(specs: Mapping[str, KnobSpec]) -> None:
    """Reset the form after its command was accepted."""
    empty = {"switch": AS_IT_IS, "numbers": ""}
    for name, spec in specs.items():
        st.session_state[_key(name)] = empty.get(spec.kind)
    st.session_state[REASON] = ""
