"""Checkpoints on a run's page: the newest ones, and an alert about failed saves."""

from collections.abc import Sequence
from datetime import UTC, datetime

import streamlit as st

from control_plane.api.messages import Snapshot
from control_plane.api.sentences import describe_checkpoint, format_duration, format_size
from control_plane.core.model.intents import Intent
from control_plane.core.model.intents.server import DeleteCheckpoint, PinCheckpoint
from control_plane.core.model.records import CheckpointCommitted, CheckpointFailed, Entry, GenerationStarted
from ui.labels import escape, plain
from ui.live import LiveRun
from ui.panels.rollback import back_button, fork_button, rollback_to_trusted
from ui.sending import send

MAX_LISTED = 6
REFUSAL = "keeping_refusal"


def checkpoints(live: LiveRun, snapshot: Snapshot) -> None:
    """Draw the newest checkpoints, and an alert if no save has succeeded since the last failed one."""
    st.markdown("**Checkpoints**")
    failed = failed_since(live.entries)
    if failed:
        more = f" {len(failed)} saves in a row have failed." if len(failed) > 1 else ""
        st.error(f"{_sentence(failed[-1])}{more}", icon=":material/save:")
    if not snapshot.checkpoints:
        st.caption("None yet. If the trainers fail now, the run restarts at step 0.")
        return
    known, bad = ages(live.entries), refused(live.entries)
    is_checked = any(saved.health != "unknown" for saved in snapshot.checkpoints)
    with st.container(gap=None, key="checkpoint_rows"):
        for saved in newest(snapshot.checkpoints):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                name = saved.checkpoint
                st.html(row(saved, known.get(name), name in bad, snapshot.branch, is_checked), width="stretch")
                fork_button(name)
                back_button(name)
    older = len(snapshot.checkpoints) - MAX_LISTED
    rollback_to_trusted(snapshot)
    if older > 0:
        st.caption(f"And {older} older: `steer checkpoints {snapshot.run}`")
    _keeping(live, snapshot)


def _keeping(live: LiveRun, snapshot: Snapshot) -> None:
    """Draw the controls to pin, unpin and delete a checkpoint. The control server's error is shown as it is."""
    by_name = {saved.checkpoint: saved for saved in reversed(snapshot.checkpoints)}
    with st.popover("Pin or delete", icon=":material/keep:", key="keeping"):
        name = st.selectbox("Checkpoint", list(by_name), key="keeping_checkpoint")
        if name in by_name and by_name[name].pinned:
            st.caption("Pinned: kept until it is unpinned.")
            _button(live, "Unpin", PinCheckpoint(checkpoint=name, pinned=False), ":material/keep_off:")
        elif name in by_name:
            _button(live, "Pin", PinCheckpoint(checkpoint=name), ":material/keep:")
            _button(live, "Delete permanently", DeleteCheckpoint(checkpoint=name), ":material/delete:")
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(plain(refusal), icon=":material/block:")


def _button(live: LiveRun, label: str, intent: Intent, icon: str) -> None:
    # Sent before the page is drawn again, so that the table shows the result.
    st.button(label, icon=icon, key=f"do_{label}", on_click=_keep, args=(live, intent))


def _keep(live: LiveRun, intent: Intent) -> None:
    st.session_state[REFUSAL] = send(live.run, intent)
    live.refresh(max_age_s=0)


def _sentence(failed: CheckpointFailed) -> str:
    text = plain(describe_checkpoint(failed))
    return f"{text[0].upper()}{text[1:]}."


def failed_since(entries: Sequence[Entry]) -> list[CheckpointFailed]:
    """Return the saves that failed after the last successful one, oldest first."""
    failed: list[CheckpointFailed] = []
    for entry in entries:
        if isinstance(entry.record, CheckpointFailed):
            failed.append(entry.record)
        elif isinstance(entry.record, CheckpointCommitted):
            failed.clear()
    return failed


def ages(entries: Sequence[Entry], now: datetime | None = None) -> dict[str, float]:
    """Return the age in seconds of each checkpoint whose record the page has received."""
    until = now or datetime.now(UTC)
    return {
        entry.record.checkpoint: max(0.0, (until - datetime.fromisoformat(entry.time)).total_seconds())
        for entry in entries
        if isinstance(entry.record, CheckpointCommitted)
    }


def refused(entries: Sequence[Entry]) -> set[str]:
    """Return the checkpoints that failed verification when trainers tried to start from them."""
    starts = (entry.record for entry in entries if isinstance(entry.record, GenerationStarted))
    return {candidate.checkpoint for start in starts for candidate in start.refused}


def newest(checkpoints: Sequence[CheckpointCommitted]) -> list[CheckpointCommitted]:
    """Return the checkpoints to list, newest first."""
    return sorted(checkpoints, key=lambda saved: (saved.step, saved.generation))[::-1][:MAX_LISTED]


def row(saved: CheckpointCommitted, age_s: float | None, refused: bool, branch: str, is_checked: bool = False) -> str:
    """Return one checkpoint as HTML, with its branch if it is not `branch`, the current one, and with its trust."""
    notes = ("<em>pinned</em> " if saved.pinned else "") + ("<em>refused</em> " if refused else "")
    if is_checked or saved.health_reasons:
        notes += f'<em class="{saved.health}">{saved.health}</em> '
    facts = [f"step {saved.step:,}"]
    facts += [format_duration(age_s)] if age_s is not None else []
    facts += [format_size(saved.size_bytes)] if saved.size_bytes else []
    facts += [escape(saved.branch)] if saved.branch != branch else []
    lines = [text for text in (saved.label, saved.note, trust_words(saved)) if text]
    label = "".join(f"<span>{escape(text)}</span>" for text in lines)
    text = f"{escape(saved.checkpoint)} {notes}<span>{' · '.join(facts)}</span>{label}"
    return f'<div class="checkpoint">{text}</div>'


def trust_words(saved: CheckpointCommitted) -> str:
    """Return why a checkpoint is not trusted; empty if it is, or if nothing is known."""
    reasons = ", ".join(reason.replace("_", " ") for reason in saved.health_reasons)
    if not reasons:
        return ""
    return f"{'saved during' if saved.health == 'suspect' else 'not judged'}: {reasons}"
