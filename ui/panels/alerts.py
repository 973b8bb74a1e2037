"""Inbox of alerts on a run's page: what is wrong and why, what people do, and the buttons that answer."""

from collections.abc import Mapping, Sequence
from math import isfinite

import streamlit as st

from control_plane.api.messages import AlertView, Snapshot
from control_plane.api.suggestions import suggested_intent
from control_plane.core.model.health import Evidence, Level
from control_plane.core.model.intents import Intent, Rollback
from control_plane.core.model.intents.server import AcknowledgeAlert, SnoozeAlert
from ui.gateway import may_steer
from ui.labels import Colour, clock, escape, plain, sentence
from ui.panels.meaning import meaning
from ui.sending import send
from ui.zone import reader_zone

LOOKS: Mapping[Level, tuple[Colour, str]] = {
    "critical": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
    "info": ("blue", ":material/info:"),
}
"""Colour and icon of each level, the worst first."""

ORDER = list(LOOKS)
MAX_SHOWN = 4
"""Kinds of alerts in the inbox."""

MAX_OF_A_KIND = 6
MAX_EARLIER = 20
SNOOZE_STEPS = (100, 1000)
REFUSAL = "alert_refusal"


def urgent(snapshot: Snapshot) -> list[AlertView]:
    """Return the alerts that need attention: the worst first, of one level the newest first."""
    views = sorted((view for view in snapshot.alerts if view.needs_attention), key=lambda view: -view.seq)
    return sorted(views, key=lambda view: ORDER.index(view.alert.level))


def badge(snapshot: Snapshot) -> None:
    """Draw the number of alerts that need attention, in the colour of the worst."""
    views = urgent(snapshot)
    if views:
        colour, icon = LOOKS[views[0].alert.level]
        st.badge(f"{len(views)} alert{'' if len(views) == 1 else 's'}", icon=icon, color=colour)


def inbox(snapshot: Snapshot) -> None:
    """Draw the alerts that need attention; nothing if there are none. Called repeatedly inside a fragment."""
    views = urgent(snapshot)
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(sentence(refusal), icon=":material/block:")
    if not views:
        return
    may_act = may_steer() and not snapshot.closed
    groups = by_kind(views)
    with st.container(border=True, gap=None, key="inbox"):
        for group in groups[:MAX_SHOWN]:
            with st.container(key=f"alert_row_{group[0].seq}", gap="xxsmall"):
                st.html("".join(row(view) for view in group[:MAX_OF_A_KIND]))
                if len(group) > MAX_OF_A_KIND:
                    st.caption(f"And {len(group) - MAX_OF_A_KIND} more of this kind: `steer alerts {snapshot.run}`")
                _buttons(snapshot, group, may_act)
        if len(groups) > MAX_SHOWN:
            st.caption(f"And {len(groups) - MAX_SHOWN} other kinds: `steer alerts {snapshot.run}`")
        if may_act and len(groups) > 1:
            _acknowledge_button(snapshot.run, views, f"Acknowledge all {len(views)}", "acknowledge_all")


def by_kind(views: Sequence[AlertView]) -> list[list[AlertView]]:
    """Return the alerts in groups of one kind and suggestion: what befalls several layers is answered once."""
    groups: dict[tuple[str, str], list[AlertView]] = {}
    for view in views:
        groups.setdefault((view.alert.kind, view.alert.suggestion), []).append(view)
    return list(groups.values())


def _acknowledge_button(run: str, views: Sequence[AlertView], label: str, key: str) -> None:
    every = [view.seq for view in views]
    st.button(label, icon=":material/done_all:", key=key, type="tertiary", on_click=_acknowledge, args=(run, every))


def _buttons(snapshot: Snapshot, group: Sequence[AlertView], may_act: bool) -> None:
    """Draw the buttons that answer the alerts of one kind."""
    newest = group[0]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if may_act:
            _suggestion(snapshot, newest)
            st.button(
                "Acknowledge" if len(group) == 1 else f"Acknowledge these {len(group)}",
                icon=":material/done:",
                key=f"acknowledge/{newest.seq}",
                on_click=_acknowledge,
                args=(snapshot.run, [view.seq for view in group]),
            )
            with st.popover("Snooze", icon=":material/snooze:", key=f"snooze/{newest.seq}"):
                _snooze(snapshot, group)
        elif newest.alert.suggestion:
            st.caption(f"Suggested: `steer {_code(newest.alert.suggestion)}`")
        words = meaning(newest.alert.kind)
        if words:
            with st.popover("What it means", icon=":material/help:", type="tertiary", key=f"meaning/{newest.seq}"):
                st.markdown(words)


def _code(text: str) -> str:
    return text.replace("`", "'")


def _suggestion(snapshot: Snapshot, view: AlertView) -> None:
    """Draw the suggested command as a button that asks first; a line that is no command of ours is shown as text."""
    intent = suggested_intent(view.alert.suggestion) if view.alert.suggestion else None
    if intent is None or (view.reflex and not view.declined):
        return
    label = label_of(intent)
    with st.popover(label, icon=":material/bolt:", type="primary", key=f"suggestion/{view.seq}"):
        st.write(consequence(snapshot, intent))
        st.button(
            "Do it",
            icon=":material/send:",
            type="primary",
            key=f"do_suggestion/{view.seq}",
            on_click=_answer,
            args=(snapshot.run, intent, f"alert {view.seq}: {view.alert.kind.replace('_', ' ')}"),
        )


def label_of(intent: Intent) -> str:
    """Return a command in a few words, for a button."""
    if isinstance(intent, Rollback):
        first = ", ".join(change.describe() for change in intent.first)
        return plain(f"Roll back to trusted{': ' if first else ''}{first}")
    text = intent.describe()
    return plain(text[:1].upper() + text[1:])


def consequence(snapshot: Snapshot, intent: Intent) -> str:
    """Return what a suggested command does, in Markdown."""
    if not isinstance(intent, Rollback):
        return f"All ranks are asked for **{plain(intent.describe())}**, at the next step."
    trusted = [saved for saved in snapshot.checkpoints if saved.health == "trusted"]
    newest = max(trusted, key=lambda saved: saved.step, default=None)
    to = f"now {plain(newest.checkpoint)}, step {newest.step:,}" if newest else "there is none at present"
    return (
        f"The training leaves **{plain(snapshot.branch)}** at step {snapshot.step:,} and continues from its newest "
        f"trusted checkpoint ({to}), as a new branch. The branch that it leaves stays."
    )


def _snooze(snapshot: Snapshot, group: Sequence[AlertView]) -> None:
    st.write("Alerts of this kind and subject stay out of the inbox. They are recorded, and reflexes answer them.")
    choices: list[tuple[str, int | None]] = [("Until it has cleared", None)]
    choices += [(f"For {steps:,} steps", snapshot.step + steps) for steps in SNOOZE_STEPS]
    for number, (label, until) in enumerate(choices):
        intents = [SnoozeAlert(alert=view.seq, until_step=until) for view in group]
        st.button(label, key=f"snooze/{group[0].seq}/{number}", on_click=_send_all, args=(snapshot.run, intents))


# Sent before the page is drawn again, so that the inbox shows the result.
def _acknowledge(run: str, every: Sequence[int]) -> None:
    _send_all(run, [AcknowledgeAlert(alert=seq) for seq in every])


def _send_all(run: str, intents: Sequence[Intent]) -> None:
    refusals = [send(run, intent) for intent in intents]
    st.session_state[REFUSAL] = next((refusal for refusal in refusals if refusal), None)
    _refresh(run)


def _answer(run: str, intent: Intent, reason: str | None = None) -> None:
    st.session_state[REFUSAL] = send(run, intent, reason)
    _refresh(run)


def _refresh(run: str) -> None:
    from ui.live import live_run

    live_run(run).refresh(max_age_s=0)


def row(view: AlertView) -> str:
    """Return one alert as HTML: level, kind, sentence, and below it when and on what evidence."""
    alert = view.alert
    facts = [f"alert {view.seq}", f"since step {alert.onset_step:,}", f"raised {clock(view.raised_at, reader_zone())}"]
    facts += [escape(evidence_words(evidence)) for evidence in alert.evidence[:2]]
    facts += [escape(reflex_words(view))] if view.reflex else []
    subject = f" · {escape(alert.subject)}" if alert.subject else ""
    title = f"<em>{alert.level}</em> <b>{escape(alert.kind.replace('_', ' '))}{subject}</b>"
    said = f"{title} {escape(alert.sentence)}<span>{' · '.join(facts)}</span>"
    return f'<div class="alert {alert.level}">{said}</div>'


def evidence_words(evidence: Evidence) -> str:
    """Return the value of a sign and what it was compared with."""
    words = f"{evidence.sign} {_number(evidence.value)}"
    if evidence.threshold is not None:
        words += f", limit {_number(evidence.threshold)}"
    if evidence.mean is not None and evidence.window_steps:
        words += f", mean {_number(evidence.mean)} over {evidence.window_steps:,} steps"
    return words


def _number(value: float) -> str:
    if isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e9 else f"{value:.4g}"
    return "NaN" if value != value else "infinite"


def reflex_words(view: AlertView) -> str:
    """Return what the reflex of an alert did."""
    return f"reflex {view.reflex}: {view.declined}" if view.declined else f"reflex {view.reflex} has answered"


def stage_words(view: AlertView) -> str:
    """Return what has become of an alert."""
    words = {
        "open": f"open on {view.alert.branch}",
        "acknowledged": f"acknowledged by {view.acknowledged_by or 'somebody'}",
        "snoozed": f"snoozed until step {view.snoozed_until:,}"
        if view.snoozed_until
        else "snoozed until it has cleared",
        "cleared": f"cleared at step {view.cleared_step:,}" if view.cleared_step is not None else "cleared",
    }[view.stage]
    return f"{words}: {view.note}" if view.note else words


def earlier(snapshot: Snapshot) -> None:
    """Draw the alerts that need no attention any more, the newest first."""
    views = [view for view in snapshot.alerts if not view.needs_attention][::-1]
    if not views:
        return
    count = f"{len(views)}" if len(views) <= MAX_EARLIER else f"the {MAX_EARLIER} newest of {len(views)}"
    with st.expander(f"Earlier alerts ({count})", icon=":material/history:", key="earlier_alerts"):
        rows = "".join(_earlier_row(view) for view in views[:MAX_EARLIER])
        st.html(f'<div class="earlier">{rows}</div>')


def _earlier_row(view: AlertView) -> str:
    alert = view.alert
    subject = f" · {escape(alert.subject)}" if alert.subject else ""
    facts = [f"step {alert.onset_step:,}", escape(stage_words(view))]
    facts += [escape(reflex_words(view))] if view.reflex else []
    title = f"<em>{alert.level}</em> <b>{escape(alert.kind.replace('_', ' '))}{subject}</b>"
    return f'<div class="alert {alert.level}">{title} {escape(alert.sentence)}<span>{" · ".join(facts)}</span></div>'
