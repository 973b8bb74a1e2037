"""Learning rate: its current value, and the form that changes it."""

import math

import streamlit as st
from pydantic import ValidationError

from control_plane.api.messages import Snapshot
from control_plane.core.model.commands import SetLearningRate
from ui.labels import complaint, plain, sentence
from ui.live import LiveRun
from ui.panels.meaning import meaning
from ui.sending import send

TO, BY = "Set to", "Multiply by"
KEEP, HOLD = "Keep its shape", "Hold the value"
ALL = "all groups"
OUTCOME = "learning_rate_outcome"


def groups(snapshot: Snapshot) -> list[str]:
    """Return the names of the parameter groups; empty until a trainer has reported them."""
    named = snapshot.knobs.get("groups")
    return [str(name) for name in named] if named else [f"group {i}" for i in range(len(_set_values(snapshot)))]


def live_values(snapshot: Snapshot) -> list[float]:
    """Return the learning rate of each group, as last measured, else as last set."""
    values = _set_values(snapshot)
    for index in range(len(values)):
        measured = snapshot.latest.get("lr" if index == 0 else f"lr/{index}", math.nan)
        values[index] = measured if math.isfinite(measured) else values[index]
    return values


def _set_values(snapshot: Snapshot) -> list[float]:
    known = snapshot.knobs.get("lr", [])
    return [float(value) for value in (known if isinstance(known, list | tuple) else [known])]


def now(snapshot: Snapshot) -> str:
    """Return the current learning rate, in Markdown."""
    values, names = live_values(snapshot), groups(snapshot)
    if not values:
        return "The learning rate is not known before the first step."
    if len(set(values)) == 1:
        everywhere = f" in all {len(values)} groups" if len(values) > 1 else ""
        return f"Now **{values[0]:.4g}**{everywhere}"
    return "Now " + " · ".join(f"**{value:.4g}** {plain(name)}" for value, name in zip(values, names, strict=True))


@st.fragment
def form(live: LiveRun) -> None:
    """Draw the form, in a fragment that does not refresh, so that the user's input is not overwritten."""
    snapshot = live.snapshot
    if snapshot is None:
        return
    names = groups(snapshot)
    with st.form("learning_rate", border=False):
        how = st.segmented_control("Change", [TO, BY], default=TO, required=True, key="lr_how", width="stretch")
        text = st.text_input("Value", key="lr_value", placeholder="3e-5", help=meaning("lr"))
        group: str | None = ALL
        if len(names) > 1:
            group = st.selectbox("Parameter group", [ALL, *names], key="lr_group")
        schedule = st.segmented_control(
            "Schedule from there on",
            [KEEP, HOLD],
            default=KEEP,
            required=True,
            key="lr_schedule",
            width="stretch",
            help="Keep: what is left of the schedule, scaled to start from the new value. Hold: the new value stays.",
        )
        reason = st.text_input("Reason", key="lr_reason", max_chars=500, placeholder="optional, kept in the journal")
        pressed = st.form_submit_button("Apply", type="primary", icon=":material/send:", disabled=snapshot.closed)
    if pressed:
        index = None if group in (ALL, None) else names.index(group)
        st.session_state[OUTCOME] = _apply(live.run, str(how), text or "", index, str(schedule), (reason or "").strip())
    refusal = st.session_state.get(OUTCOME)
    if refusal:
        st.error(sentence(refusal), icon=":material/block:")


def _apply(run: str, how: str, text: str, group: int | None, schedule: str, reason: str) -> str | None:
    """Send the command in the form. Returns the reason if it was rejected, None if it is durable."""
    if not text.strip():
        return "Enter a value: a number such as 3e-5."
    try:
        intent = SetLearningRate.model_validate(
            {
                "value" if how == TO else "factor": _number(text),
                "group": group,
                "schedule": "keep" if schedule == KEEP else "hold",
            }
        )
    except ValidationError as error:
        return complaint(error)
    refusal = send(run, intent, reason or None)
    if refusal is None:
        st.toast(f"{intent_words(intent)}: accepted", icon=":material/send:")
    return refusal


def intent_words(intent: SetLearningRate) -> str:
    """Return the command's text for the toast."""
    return f"Learning rate = {intent.value:g}" if intent.value is not None else f"Learning rate x {intent.factor:g}"


def _number(text: str) -> float | str:
    """Return the number in the text, or the text itself, which the core then rejects with a reason."""
    try:
        return float(text.strip())
    except ValueError:
        return text.strip()
