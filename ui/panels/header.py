"""Header of a run's page: name, status, progress, and the most important buttons."""

import streamlit as st

from control_plane.api.messages import Snapshot
from control_plane.api.sentences import format_duration
from control_plane.core.model.commands import Evaluate, Intent, Pause, Resume, SaveCheckpoint, Stop
from control_plane.core.model.records import SHARED_NODES
from control_plane.core.rules.run_deletion import QUEUED
from ui.gateway import banner
from ui.labels import looks, plain, sentence
from ui.live import LiveRun
from ui.panels import alerts, proposals
from ui.sending import is_restarting, restart, send

SILENT_AFTER_S = 15.0
"""Rank 0 reports about once a second; after so long without a report the page shows that."""

REFUSAL = "header_refusal"

RESUMABLE = ("stopped", "failed")
PAUSABLE = ("running", "recovering")
"""Statuses in which a run can be paused; without trainers the command waits for the first step of the next ones."""


def header(live: LiveRun, snapshot: Snapshot) -> None:
    """Draw name, badges, buttons and progress. Called repeatedly inside a fragment."""
    if live.problem is not None:
        banner(live.problem)
    with st.container(horizontal=True, vertical_alignment="center", key="run_header"):
        st.subheader(plain(snapshot.name or snapshot.run), anchor=False, width="content")
        _badges(snapshot)
        st.space("stretch")
        if not snapshot.closed:
            _buttons(live.run, snapshot)
        elif is_restarting(snapshot):
            st.badge("restarting", icon=":material/autorenew:", color="blue")
        elif snapshot.status in RESUMABLE:
            _resume(live.run)
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(sentence(refusal), icon=":material/block:")
    _progress(snapshot)


def _badges(snapshot: Snapshot) -> None:
    colour, icon = looks(snapshot.status)
    st.badge(snapshot.status, icon=icon, color=colour)
    if snapshot.phase in ("evaluating", "saving", "starting"):
        st.badge(snapshot.phase, icon=":material/autorenew:", color="blue")
    alerts.badge(snapshot)
    proposals.badge(snapshot)
    if snapshot.ranks:
        nodes = len({place.node for place in snapshot.ranks})
        ranks = f"{len(snapshot.ranks)} rank{'s' if len(snapshot.ranks) > 1 else ''}"
        st.badge(ranks + (f" · {nodes} nodes" if nodes > 1 else ""), icon=":material/memory:", color="gray")


def _buttons(run: str, snapshot: Snapshot) -> None:
    if snapshot.status == "paused":
        _button(run, "Resume", Resume(), ":material/play_arrow:", primary=True)
    else:
        _button(run, "Pause", Pause(), ":material/pause:", disabled=snapshot.status not in PAUSABLE)
    _button(run, "Checkpoint", SaveCheckpoint(), ":material/save:", disabled=snapshot.generation == 0)
    _button(run, "Evaluate", Evaluate(), ":material/query_stats:", disabled=snapshot.generation == 0)
    with st.popover("Stop", icon=":material/stop:", key="stop_popover"):
        st.write("The training ends at the next step boundary. It can be resumed later.")
        save = st.checkbox("Save a last checkpoint", value=True, key="stop_save")
        _button(run, "Stop this run", Stop(save=save), ":material/stop:", primary=True)


def _resume(run: str) -> None:
    """Draw the button that restarts a run which has ended, from its newest checkpoint."""
    if st.button("Resume", icon=":material/restart_alt:", type="primary", key="restart"):
        refusal = restart(run)
        st.session_state[REFUSAL] = refusal
        if refusal is None:
            st.toast("Resume: a new job was started", icon=":material/restart_alt:")
            st.rerun()


def _button(run: str, label: str, intent: Intent, icon: str, *, primary: bool = False, disabled: bool = False) -> None:
    if st.button(
        label, icon=icon, type="primary" if primary else "secondary", disabled=disabled, key=f"do_{intent.kind}"
    ):
        refusal = send(run, intent)
        st.session_state[REFUSAL] = refusal
        if refusal is None:
            st.toast(f"{label}: accepted", icon=icon)


def _progress(snapshot: Snapshot) -> None:
    if snapshot.status == QUEUED:
        st.caption(f"In the start queue: {plain(snapshot.reason or '')}. It can be stopped, and takes commands later.")
        return
    if shared := snapshot.facts.get(SHARED_NODES):
        st.caption(f"Placement: spread was asked for: {plain(str(shared))}")
    if not snapshot.total_steps:
        st.caption("No trainer has started yet. Commands are accepted and wait for the first step.")
        return
    step, total = min(snapshot.step, snapshot.total_steps), snapshot.total_steps
    st.progress(step / total, text=_progress_words(snapshot, step, total))
    if snapshot.closed and snapshot.reason:
        st.caption(f"{snapshot.status.capitalize()}: {plain(snapshot.reason)}")


def _progress_words(snapshot: Snapshot, step: int, total: int) -> str:
    words = [f"step {step:,} of {total:,}", f"{100 * step / total:.1f} %"]
    speed = snapshot.steps_per_s
    if speed and not snapshot.closed and snapshot.status not in ("recovering", "switching"):
        words.append(f"{speed:.3g} steps/s")
        if snapshot.status == "running":
            words.append(f"{format_duration((total - step) / speed)} left")
    age_s = snapshot.progress_age_s
    if age_s is not None and age_s > SILENT_AFTER_S and not snapshot.closed:
        words.append(f":orange[rank 0 silent for {format_duration(age_s)}]")
    return " · ".join(words)
