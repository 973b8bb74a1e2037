"""The checkpoints of a run on its page: what could be restored, and the saves that came to nothing."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from html import escape

import streamlit as st

from control_plane.core.intents import DeleteCheckpoint, Intent, PinCheckpoint
from control_plane.core.records import CheckpointCommitted, CheckpointFailed, Entry, GenerationStarted
from control_plane.handle import Snapshot
from control_plane.telling import checkpoint, size
from ui.live import LiveRun
from ui.sending import send
from ui.words import duration, plain

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
    st.html(table(snapshot.checkpoints, ages(live.entries), refused(live.entries)))
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


def table(found: Sequence[CheckpointCommitted], ages_s: dict[str, float], refused: Collection[str] = ()) -> str:
    """The newest checkpoints, newest first, as HTML."""
    newest_first = sorted(found, key=lambda each: each.step)[::-1][:MAX_LISTED]
    head = "".join(f"<th>{title}</th>" for title in ("name", "step", "age", "size"))
    rows = "".join(_row(each, ages_s.get(each.checkpoint), each.checkpoint in refused) for each in newest_first)
    return f'<table class="checkpoints"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(found: CheckpointCommitted, age_s: float | None, refused: bool) -> str:
    label = "".join(f"<span>{escape(text)}</span>" for text in (found.label, found.note) if text)
    notes = ("<em>pinned</em> " if found.pinned else "") + ("<em>refused</em> " if refused else "")
    age = duration(age_s) if age_s is not None else ""
    held = size(found.size_bytes) if found.size_bytes else ""
    return (
        f"<tr><td>{escape(found.checkpoint)} {notes}{label}</td><td>{found.step:,}</td><td>{age}</td>"
        f"<td>{held}</td></tr>"
    )
