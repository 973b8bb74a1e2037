"""Failures of the trainers on a run's page: failed ranks, the recovery in progress, and the cost of each recovery."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo

import streamlit as st

from control_plane.api.messages import RecoveryView, Restarting, Snapshot
from control_plane.api.sentences import (
    FAILS_AGAIN,
    clean,
    describe_failure,
    describe_restart,
    describe_start,
    failed_ranks,
    format_duration,
    format_seconds,
    phases,
)
from control_plane.core.model.records import GenerationStarted
from control_plane.core.rules.recovery import PHASES
from ui.charts.canvas import Axis
from ui.charts.palette import Palette
from ui.labels import clock, escape, plain
from ui.live import LiveRun
from ui.zone import reader_zone

MAX_LISTED = 5

ON_THE_CHARTS: Mapping[Axis, str] = {
    "step": "On the charts: a solid line where trainers failed; grey, the steps that were repeated.",
    "time": "On the charts: a solid line where trainers failed; grey, until they made steps again.",
}

ICON = ":material/restart_alt:"


def notice(snapshot: Snapshot) -> None:
    """Draw the failure and the phase of the recovery, while the trainers are being restarted."""
    last = snapshot.recoveries[-1] if snapshot.recoveries else None
    if last is not None and not last.over and not snapshot.closed:
        words = [lost_words(last, reader_zone()), stage_words(last)]
        if snapshot.restarting is not None and snapshot.restarting.left_s > 0:
            words[1:] = [plain(part) for part in waiting(snapshot.restarting)]
        st.warning("  \n".join(words), icon=ICON)
    elif snapshot.status == "recovering":
        because = f": {plain(clean(snapshot.reason))}" if snapshot.reason else ""
        st.warning(f"**The trainers ended with an error**{because}. New ones are being started.", icon=ICON)


def waiting(backoff: Restarting) -> list[str]:
    """Return the lines about the back-off before the next start, which replace the phases."""
    return [describe_restart(backoff), *([FAILS_AGAIN] if backoff.alert else [])]


def lost_words(view: RecoveryView, zone: tzinfo | None = None) -> str:
    """Return the failed ranks and the time of their last heartbeat, in Markdown."""
    text = plain(describe_failure(view.step, view.deaths))
    heard_at = datetime.fromisoformat(view.lost_at) - timedelta(seconds=view.silent_s)
    return f"**{text[0].upper()}{text[1:]}.** Last heartbeat at {clock(heard_at.isoformat(), zone)}."


def stage_words(view: RecoveryView, now: datetime | None = None) -> str:
    """Return the phases of a recovery in progress: those that are done, the current one, those to come."""
    detect, form, load, first = PHASES
    done, going, to_come = ":material/check:", ":material/hourglass_top:", ":material/more_horiz:"
    so_far_s = max(0.0, ((now or datetime.now(UTC)) - datetime.fromisoformat(view.lost_at)).total_seconds())
    stages = [f"{done} {detect} {format_seconds(view.silent_s)}"]
    if view.resumed_step is None:
        stages += [f"{going} **{form} and {load}**, {format_duration(so_far_s)} so far", f"{to_come} {first}"]
    else:
        begun = plain(
            describe_start(
                view.checkpoint, generation=view.generation + 1, step=view.resumed_step, world_size=view.world_size or 0
            )
        )
        stages += [
            f"{done} {form} and {load}: {begun}",
            f"{going} **{first}**, {format_duration(so_far_s)} since the failure",
        ]
    return " → ".join(stages)


def recoveries(live: LiveRun, snapshot: Snapshot, palette: Palette, axis: Axis) -> None:
    """Draw the last failures, newest first, each with its cost."""
    records = (entry.record for entry in live.entries)
    starts = {record.generation: record for record in records if isinstance(record, GenerationStarted)}
    newest_first = snapshot.recoveries[::-1]
    longest_s = max((took_s(view) for view in newest_first[:MAX_LISTED]), default=0.0)
    st.markdown("**Recoveries**")
    rows = [_row(view, starts, longest_s, palette) for view in newest_first[:MAX_LISTED]]
    st.html(f'<div class="recoveries">{"".join(rows)}</div>')
    older = f"The {MAX_LISTED} newest; `steer journal` has them all. " if len(newest_first) > MAX_LISTED else ""
    st.caption(f"{older}{ON_THE_CHARTS[axis]}")


def took_s(view: RecoveryView) -> float:
    """Return the seconds from the last heartbeat to the end of the first new step."""
    return sum(view.phases_s.values())


def _row(view: RecoveryView, starts: Mapping[int, GenerationStarted], longest_s: float, palette: Palette) -> str:
    when = f"{clock(view.lost_at, reader_zone())} · step {view.step:,}"
    refused = starts[view.generation + 1].refused if view.generation + 1 in starts else ()
    parts = [
        f'<div class="lost"><b>{escape(failed_ranks(view.deaths) or "trainers failed")}</b> <span>{when}</span></div>',
        f"<div>{escape(way_back(view, starts))}</div>",
        *(f"<div>{escape(bad.checkpoint)} was refused: {escape(clean(bad.reason))}</div>" for bad in refused),
        bar(view, longest_s, palette),
    ]
    return f'<div class="recovery">{"".join(parts)}</div>'


def way_back(view: RecoveryView, starts: Mapping[int, GenerationStarted]) -> str:
    """Return the restored checkpoint, the number of ranks and the cost of a recovery."""
    if view.resumed_step is None:
        return "no new trainers yet"
    parts = [f"restored {view.checkpoint}" if view.checkpoint else "began without a checkpoint"]
    parts[0] += f" (step {view.resumed_step:,})"
    before, after = starts.get(view.generation), view.world_size or 0
    if before is not None and before.world_size != after:
        parts.append(f"{before.world_size} → {after} ranks")
    else:
        parts.append(f"{after} rank{'' if after == 1 else 's'}" + (" as before" if before else ""))
    if view.lost_steps is not None:
        parts.append(f"{view.lost_steps:,} step{'' if view.lost_steps == 1 else 's'} lost")
        parts.append(f"recovered in {format_seconds(took_s(view))}")
    return " · ".join(parts)


def bar(view: RecoveryView, longest_s: float, palette: Palette) -> str:
    """Return the phases as an HTML bar, in one scale with the others of the list, and a legend below it."""
    if not view.phases_s:
        return ""
    coloured = [
        (name, value_s, palette.phases[at % len(palette.phases)])
        for at, (name, value_s) in enumerate(phases(view.phases_s))
    ]
    width = 100 * took_s(view) / longest_s if longest_s else 0
    pieces = "".join(f'<i style="flex-grow:{value_s:.3f};background:{colour}"></i>' for _, value_s, colour in coloured)
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} {format_seconds(value_s)}</span>'
        for name, value_s, colour in coloured
    )
    drawn = f'<div class="phases" aria-hidden="true" style="width:{width:.1f}%">{pieces}</div>'
    return f'{drawn}<div class="legend">{legend}</div>'
