"""The checkpoints of a run on its page: what could be restored, and the saves that came to nothing."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from html import escape

import streamlit as st

from control_plane.core.records import CheckpointCommitted, CheckpointFailed, Entry, GenerationStarted
from control_plane.handle import Snapshot
from control_plane.telling import checkpoint, size
from ui.live import LiveRun
from ui.words import duration, plain

MAX_LISTED = 6


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
    label = f"<span>{escape(found.label)}</span>" if found.label else ""
    notes = ("<em>pinned</em> " if found.pinned else "") + ("<em>refused</em> " if refused else "")
    age = duration(age_s) if age_s is not None else ""
    held = size(found.size_bytes) if found.size_bytes else ""
    return (
        f"<tr><td>{escape(found.checkpoint)} {notes}{label}</td><td>{found.step:,}</td><td>{age}</td>"
        f"<td>{held}</td></tr>"
    )
