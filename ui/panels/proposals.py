"""Proposals of a run's agent: what it asks for and why, and the buttons that approve, edit and reject."""

from typing import get_args

import streamlit as st

from control_plane.api.agent_views import ProposalView
from control_plane.api.messages import Snapshot
from control_plane.api.sentences import format_duration
from control_plane.api.suggestions import suggested_intent
from control_plane.core.model.commands import Intent, SetKnobs, SetLearningRate
from control_plane.core.model.intents.agent import AgentMode, AgentSettings, AnswerProposal, StartAgent, StopAgent
from control_plane.core.model.limits import reason_against_mixing
from control_plane.core.model.values import spelled_factor
from ui.gateway import may_steer
from ui.labels import clock, escape, plain, sentence
from ui.live import LiveRun, live_run
from ui.sending import send
from ui.zone import reader_zone

REFUSAL = "proposal_refusal"
MAX_EARLIER = 15
POLICIES = {"auto": "Model, else rule", "model": "Model", "rule": "Guarded rule"}
MIXTURES = {
    "ado": "Mixture: what is learned fastest (ADO)",
    "odm": "Mixture: what is hardest (ODM)",
    "natural": "Mixture: first weights",
    "uniform": "Mixture: equal shares",
}
"""Policies that set the weights of sources; offered where a run has some."""

MODES: dict[AgentMode, str] = {"suggest": "Suggest", "guarded": "Guarded", "auto": "Auto"}
MODE_HELP = (
    "Suggest: a person answers every proposal. Guarded: low risk is done at once, a person answers the rest. "
    "Auto: all that an agent may send is done at once."
)
DEFAULTS = {"reject": "rejected", "approve": "approved"}


def waiting(snapshot: Snapshot) -> list[ProposalView]:
    """Return the proposals that nobody has answered, the most urgent first."""
    return sorted((view for view in snapshot.agent.proposals if view.is_open), key=lambda view: view.left_s or 0.0)


def badge(snapshot: Snapshot) -> None:
    """Draw whether the run has an agent, or how many proposals wait for an answer."""
    views = waiting(snapshot)
    if views:
        st.badge(
            f"{len(views)} proposal{'' if len(views) == 1 else 's'}", icon=":material/how_to_vote:", color="violet"
        )
    elif snapshot.agent.settings is not None and not snapshot.closed:
        st.badge(f"agent: {snapshot.agent.settings.mode}", icon=":material/smart_toy:", color="gray")


def inbox(snapshot: Snapshot) -> None:
    """Draw the proposals that wait for an answer; nothing if none do. Called repeatedly inside a fragment."""
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(sentence(refusal), icon=":material/block:")
    views = waiting(snapshot)
    if not views or snapshot.closed:
        return
    with st.container(border=True, gap=None, key="proposals"):
        for view in views:
            with st.container(key=f"alert_row_proposal_{view.seq}", gap="xxsmall"):
                st.html(row(view))
                if may_steer():
                    _answers(snapshot, view)
                else:
                    st.caption(f"A person with the role operator answers: `steer agent approve {view.seq}`")


def row(view: ProposalView) -> str:
    """Return a proposal as HTML: risk, command and reason, and below it when, by whom and until when."""
    look = "critical" if view.risk == "high" else "info"
    facts = [f"proposal {view.seq}", f"step {view.step:,}", f"by {escape(view.author)}"]
    if view.trial:
        facts.append(escape(f"on trial: {view.trial}"))
    elif view.is_open:
        facts.append(f"{DEFAULTS.get(view.default, view.default)} in {format_duration(view.left_s or 0.0)}")
    else:
        facts.append(escape(verdict_words(view)))
    title = f"<em>{view.risk} risk</em> <b>{escape(view.what)}</b>"
    return f'<div class="alert {look}">{title} {escape(view.reason or "")}<span>{" · ".join(facts)}</span></div>'


def verdict_words(view: ProposalView) -> str:
    """Return how a proposal was closed, and the effect of what came of it."""
    words = "made at once" if view.verdict == "automatic" else str(view.verdict).replace("_", " ")
    words += f" by {view.by}" if view.by else ""
    words += f" at {clock(view.closed_at, reader_zone())}" if view.closed_at else ""
    words += f": {view.note}" if view.note else ""
    if view.effect is not None:
        effect = view.effect
        numbers = ("?" if number is None else f"{number:.4g}" for number in (effect.before, effect.after))
        words += f"; {effect.metric} {' to '.join(numbers)}: {effect.judgement}"
    return words


def _answers(snapshot: Snapshot, view: ProposalView) -> None:
    """Draw the buttons that answer one proposal."""
    run, key = snapshot.run, str(view.seq)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if not view.trial:
            _approvals(run, view)
        with st.popover("Reject", icon=":material/close:", key=f"reject/{key}"):
            st.text_input("Why", key=f"why/{key}", placeholder="optional, kept in the journal", max_chars=500)
            st.button("Reject it", icon=":material/close:", key=f"reject_it/{key}", on_click=_reject, args=(run, view))


def _approvals(run: str, view: ProposalView) -> None:
    """Draw the buttons that approve one proposal, as it is or edited."""
    key = str(view.seq)
    approve = AnswerProposal(proposal=view.uuid, approve=True)
    st.button(
        "Approve",
        icon=":material/check:",
        type="primary",
        key=f"approve/{key}",
        on_click=_send,
        args=(run, approve),
    )
    with st.popover("Edit", icon=":material/edit:", key=f"edit/{key}"):
        st.text_input("Do this instead", value=line_of(view.intent), key=f"edited/{key}", placeholder="set lr*=0.7")
        st.caption("As on the command line: `set lr=1e-4`, `set lr*=0.7`, `set weight_decay=0.1`, `save`")
        st.button(
            "Approve this",
            icon=":material/check:",
            type="primary",
            key=f"approve_edited/{key}",
            on_click=_approve_edited,
            args=(run, view),
        )


def line_of(intent: Intent) -> str:
    """Return an intent as a line that can be edited; empty if it has no such form."""
    if isinstance(intent, SetLearningRate) and intent.group is None:
        return (
            f"set lr={intent.value:g}"
            if intent.value is not None
            else f"set lr*={spelled_factor(intent.factor or 1.0)}"
        )
    if isinstance(intent, SetKnobs) and len(intent.changes) == 1 and intent.changes[0].group is None:
        change = intent.changes[0]
        if change.factor is not None:
            return f"set {change.knob}*={spelled_factor(change.factor)}"
        if isinstance(change.value, int | float):
            return f"set {change.knob}={str(change.value).lower()}"
    return ""


# Sent before the page is drawn again, so that the inbox shows the result.
def _approve_edited(run: str, view: ProposalView) -> None:
    line = str(st.session_state.get(f"edited/{view.seq}") or "").strip()
    intent = suggested_intent(line)
    if intent is None:
        st.session_state[REFUSAL] = f"{line!r} is no command for a proposal; write it as 'set lr*=0.7'"
        return
    try:
        answer = AnswerProposal.model_validate(
            {"proposal": view.uuid, "approve": True, "intent": intent.model_dump(mode="json")}
        )
    except ValueError:
        st.session_state[REFUSAL] = f"{line!r} cannot be proposed; reject the proposal and send the command yourself"
        return
    _send(run, answer)


def _reject(run: str, view: ProposalView) -> None:
    note = str(st.session_state.get(f"why/{view.seq}") or "").strip()
    _send(run, AnswerProposal(proposal=view.uuid, approve=False, note=note or None))


def _send(run: str, intent: Intent) -> None:
    st.session_state[REFUSAL] = send(run, intent)
    live_run(run).refresh(max_age_s=0)


def earlier(snapshot: Snapshot) -> None:
    """Draw the proposals that were answered, the newest first, with the effect of what came of them."""
    views = [view for view in snapshot.agent.proposals if not view.is_open][::-1]
    if not views:
        return
    total = snapshot.agent.made - len(waiting(snapshot))
    count = f"{total}" if total <= MAX_EARLIER else f"the {MAX_EARLIER} newest of {total}"
    with st.expander(f"Earlier proposals ({count})", icon=":material/smart_toy:", key="earlier_proposals"):
        st.html(f'<div class="earlier">{"".join(row(view) for view in views[:MAX_EARLIER])}</div>')


def now(snapshot: Snapshot) -> str:
    """Return the state of the run's agent, in Markdown."""
    settings = snapshot.agent.settings
    if settings is None:
        return "None. An agent watches the run and proposes changes."
    who = f", started by {plain(snapshot.agent.started_by)}" if snapshot.agent.started_by else ""
    pace = f"looks every {settings.every_steps:,} steps" + (" or so" if settings.adaptive else "")
    return f"**{plain(settings.policy)}**, {MODES[settings.mode].lower()}{who}; {pace}"


@st.fragment
def control(live: LiveRun) -> None:
    """Draw the button that stops the agent, or the form that starts it; in a fragment that does not refresh."""
    snapshot = live.snapshot
    if snapshot is None or snapshot.closed or not may_steer():
        return
    if snapshot.agent.settings is not None:
        if st.button("Stop the agent", icon=":material/stop:", key="stop_agent"):
            _send(live.run, StopAgent())
            st.rerun()
        return
    with st.popover("Start an agent", icon=":material/smart_toy:", key="start_agent"):
        offered = POLICIES | (MIXTURES if snapshot.mixture else {})
        policy = st.selectbox("Who decides", list(offered), format_func=offered.__getitem__, key="agent_policy")
        mode = st.segmented_control(
            "Mode", list(get_args(AgentMode)), default="guarded", required=True, format_func=MODES.__getitem__,
            key="agent_mode", help=MODE_HELP,
        )  # fmt: skip
        # A key of its own, so that the usual interval of the chosen policy stands there.
        usual = AgentSettings.model_validate({"policy": policy}).every_steps
        every = st.number_input("Steps between two looks", 1, 1_000_000, usual, key=f"agent_every/{usual}")
        minutes = st.number_input("Minutes to answer a proposal", 1, 10_000, 15, key="agent_minutes")
        default = st.segmented_control(
            "Without an answer", list(DEFAULTS), default="reject", required=True, key="agent_default"
        )
        reason = reason_against_mixing(snapshot.limits, policy)
        if reason:
            st.warning(sentence(reason), icon=":material/block:")
        start = ":material/play_arrow:"
        if st.button("Start", type="primary", icon=start, key="do_start_agent", disabled=reason is not None):
            chosen = {"policy": policy, "mode": mode, "every_steps": int(every)}
            chosen |= {"deadline_s": 60.0 * minutes, "default": default}
            _send(live.run, StartAgent(settings=AgentSettings.model_validate(chosen)))
            st.rerun()
