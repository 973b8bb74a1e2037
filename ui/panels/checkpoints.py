"""The checkpoints of a run on its page: what could be restored, and the saves that came to nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime

import streamlit as st

from control_plane.api.handle import Snapshot
from control_plane.api.sentences import checkpoint, size
from control_plane.core.model.intents import DeleteCheckpoint, Intent, PinCheckpoint
from control_plane.core.model.records import CheckpointCommitted, CheckpointFailed, Entry, GenerationStarted
from ui.labels import duration, escape, plain
from ui.live import LiveRun
from ui.panels.rollback import back_button
from ui.sending import send

MAX_LISTED = 6
REFUSAL = "keeping_refusal"


def checkpoints(live: LiveRun, snapshot: Snapshot) -> None:
    """The newest checkpoints, and above them an alert if no save has succeeded since the last that failed."""
    st.markdown("**Checkpoints**")
    failed = failed_since(live.entries)
    if failed:
        more = f" {len(failed)} saves in a row have failed." if len(failed) > 1 else ""
        st.error(f"{_sentence(failed[-1])}{more}", icon=":material/save:")
    if not snapshot.checkpoints:
        st.caption("None yet. If the trainers are lost now, the run begins again at step 0.")
        return
    known, bad = ages(live.entries), refused(live.entries)
    with st.container(gap=None, key="checkpoint_rows"):
        for each in newest(snapshot.checkpoints):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                name = each.checkpoint
                st.html(row(each, known.get(name), name in bad, snapshot.branch), width="stretch")
                if not snapshot.closed:
                    back_button(name)
    older = len(snapshot.checkpoints) - MAX_LISTED
    if older > 0:
        st.caption(f"And {older} older: `steer checkpoints {snapshot.run}`")
    _keeping(live, snapshot)


def _keeping(live: LiveRun, snapshot: Snapshot) -> None:
    """Pin, unpin and delete. Which checkpoint may go is for the run to say: its refusal is shown as it is."""
    found = {each.checkpoint: each for each in reversed(snapshot.checkpoints)}
    with st.popover("Pin or delete", icon=":material/keep:", key="keeping"):
        name = st.selectbox("Checkpoint", list(found), key="keeping_checkpoint")
        if name in found and found[name].pinned:
            st.caption("Pinned: it stays until somebody unpins it.")
            _button(live, "Unpin", PinCheckpoint(checkpoint=name, pinned=False), ":material/keep_off:")
        elif name in found:
            _button(live, "Pin", PinCheckpoint(checkpoint=name), ":material/keep:")
            _button(live, "Delete for good", DeleteCheckpoint(checkpoint=name), ":material/delete:")
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(plain(refusal), icon=":material/block:")


def _button(live: LiveRun, label: str, intent: Intent, icon: str) -> None:
    # Sent before the page is drawn again: the table shows what has become of it.
    st.button(label, icon=icon, key=f"do_{label}", on_click=_keep, args=(live, intent))


def _keep(live: LiveRun, intent: Intent) -> None:
    st.session_state[REFUSAL] = send(live.run, intent)
    live.refresh(max_age_s=0)


def _sentence(failed: CheckpointFailed) -> str:
    said = plain(checkpoint(failed))
    return f"{said[0].upper()}{said[1:]}."


def failed_since(entries: Sequence[Entry]) -> list[CheckpointFailed]:
    """The saves that failed after the last one that succeeded, oldest first."""
    failed: list[CheckpointFailed] = []
    for entry in entries:
        if isinstance(entry.record, CheckpointFailed):
            failed.append(entry.record)
        elif isinstance(entry.record, CheckpointCommitted):
            failed.clear()
    return failed


def ages(entries: Sequence[Entry], now: datetime | None = None) -> dict[str, float]:
    """How long ago, in seconds, each checkpoint was committed, for those whose records the page has heard."""
    until = now or datetime.now(UTC)
    return {
        entry.record.checkpoint: max(0.0, (until - datetime.fromisoformat(entry.time)).total_seconds())
        for entry in entries
        if isinstance(entry.record, CheckpointCommitted)
    }


def refused(entries: Sequence[Entry]) -> set[str]:
    """The checkpoints that did not verify when trainers wanted to start from them."""
    starts = (entry.record for entry in entries if isinstance(entry.record, GenerationStarted))
    return {each.checkpoint for start in starts for each in start.refused}


def newest(found: Sequence[CheckpointCommitted]) -> list[CheckpointCommitted]:
    """Those that are listed, newest first."""
    return sorted(found, key=lambda each: (each.step, each.generation))[::-1][:MAX_LISTED]


def row(found: CheckpointCommitted, age_s: float | None, refused: bool, branch: str) -> str:
    """One checkpoint as HTML; its branch is said if it is not `branch`, the one that is trained."""
    notes = ("<em>pinned</em> " if found.pinned else "") + ("<em>refused</em> " if refused else "")
    facts = [f"step {found.step:,}"]
    facts += [duration(age_s)] if age_s is not None else []
    facts += [size(found.size_bytes)] if found.size_bytes else []
    facts += [escape(found.branch)] if found.branch != branch else []
    label = "".join(f"<span>{escape(text)}</span>" for text in (found.label, found.note) if text)
    said = f"{escape(found.checkpoint)} {notes}<span>{' · '.join(facts)}</span>{label}"
    return f'<div class="checkpoint">{said}</div>'
