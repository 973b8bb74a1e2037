"""Sources of a run's data: shares, records and newest shards, the form of weights, and the upload of records."""

from collections.abc import Mapping
from math import isclose

import streamlit as st

from control_plane.api.data_views import Ingested, RunData, ShardView, SourceView
from control_plane.api.messages import Snapshot
from control_plane.client.data import SUFFIXES
from control_plane.core.health.weak_spots import WeakSpot, held_out_names
from control_plane.core.model.data import share_exponent
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.intents.data import SetMixture
from ui.gateway import client, may_steer
from ui.labels import clock, escape, plain, sentence
from ui.live import LiveRun, live_run
from ui.sending import send
from ui.zone import reader_zone

WEAK = "weak_spots_of"
REFUSAL, TAKEN_IN = "dataset_refusal", "dataset_taken_in"
MAX_SHARDS = 8
MOST_WEIGHT = 1.0
MAX_FAULTS = 5


def has_sources(snapshot: Snapshot) -> bool:
    """Return whether the run draws from sources."""
    return bool(snapshot.mixture)


def dataset(live: LiveRun) -> None:
    """Draw the sources and what came in last. Called repeatedly inside a fragment."""
    snapshot = live.refresh()
    if snapshot is None or not has_sources(snapshot):
        return
    try:
        found = client().data(live.run)
    except SteerwayError as error:
        st.caption(sentence(error.reason))
        return
    st.html(table(found, losses(snapshot)))
    spots = _weak_spots(live.run, snapshot)
    if any(spot.slice for spot in spots):
        with st.expander(f"Weak spots ({len(spots)})", icon=":material/target:", key="weak_spots"):
            st.html(f'<div class="earlier">{"".join(map(spot_row, spots))}</div>')
    elif spots:
        st.html(f'<div class="earlier">{"".join(map(spot_row, spots))}</div>')
    shards = [(source.name, shard) for source in found.sources for shard in source.shards]
    newest = sorted(shards, key=lambda one: one[1].received_at, reverse=True)[:MAX_SHARDS]
    if newest:
        with st.expander(f"Newest shards ({len(newest)})", icon=":material/inventory_2:", key="shards"):
            st.html(f'<div class="earlier">{"".join(shard_row(name, shard) for name, shard in newest)}</div>')


def _weak_spots(run: str, snapshot: Snapshot) -> list[WeakSpot]:
    """Return the weak spots of a run; they are asked for again only after another evaluation."""
    now = (run, snapshot.branch, *(snapshot.latest[name] for name in held_out_names(snapshot.latest)))
    if len(now) == 2:
        return []
    kept = st.session_state.get(WEAK)
    if kept is None or kept[0] != now:
        try:
            kept = st.session_state[WEAK] = now, client().weak_spots(run)
        except SteerwayError:
            return []
    spots: list[WeakSpot] = kept[1]
    return spots


def spot_row(spot: WeakSpot) -> str:
    """Return the loss on what a source holds out as HTML, with its error, and the change since the one before."""
    error = "" if spot.error is None else f" ± {spot.error:.2g}"
    facts = [f"step {spot.step:,}", f"{spot.evaluations:,} evaluation{'' if spot.evaluations == 1 else 's'}"]
    if spot.change is not None:
        facts.insert(0, f"{spot.change:+.3g} since the one before" + ("" if spot.has_changed else ", within noise"))
    title = f"<b>{escape(spot.name)}</b> held-out loss {spot.loss:.4g}{error}"
    return f'<div class="alert info">{title}<span>{" · ".join(facts)}</span></div>'


def losses(snapshot: Snapshot) -> dict[str, float]:
    """Return the newest training loss of each source that is measured."""
    found = {name: snapshot.latest.get(f"source_loss/{name}") for name in snapshot.mixture}
    return {name: value for name, value in found.items() if value is not None}


def table(found: RunData, measured: Mapping[str, float]) -> str:
    """Return the sources as an HTML table, with a bar for each share."""
    heads = ["source", "share", "weight", "records", "drawn", "came in", *(["loss"] if measured else [])]
    holds_out = any(source.held_out_loss is not None for source in found.sources)
    heads += ["held out"] if holds_out else []
    head = "".join(f"<th>{name}</th>" for name in heads)
    rows = "".join(_row(source, measured, holds_out) for source in found.sources)
    return f'<table class="sources"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(source: SourceView, measured: Mapping[str, float], holds_out: bool) -> str:
    mixture, settings = source.mixture, source.settings
    share = float(mixture.get("share") or 0.0)
    kind = settings.format + (", live" if settings.live else "") if settings is not None else "?"
    passes = int(mixture.get("pass") or 1)
    drawn = f"{int(mixture.get('drawn') or 0):,}" + (f" <small>pass {passes}</small>" if passes > 1 else "")
    waiting = f" <small>{source.waiting:,} wait</small>" if source.waiting else ""
    came = f"{source.received:,}{waiting}" if settings is not None and settings.live else "-"
    weight = f"{mixture['weight']:g}" if "weight" in mixture else "not in the mixture"
    loss = f"<td>{measured[source.name]:.4g}</td>" if source.name in measured else "<td></td>" if measured else ""
    held = "" if source.held_out_loss is None else f"{source.held_out_loss:.4g}"
    held = f"<td>{held}</td>" if holds_out else ""
    return (
        f"<tr><td><b>{escape(source.name)}</b> <small>{kind}</small></td>"
        f'<td class="share"><i style="width:{share:.1%}"></i><span>{share:.1%}</span></td><td>{weight}</td>'
        f"<td>{int(mixture.get('records') or 0):,}</td><td>{drawn}</td><td>{came}</td>{loss}{held}</tr>"
    )


def shard_row(source: str, shard: ShardView) -> str:
    """Return a shard as HTML: how many records, of whom and when, and what has come of it."""
    stage = {
        "live": f"drawn from step {shard.step or 0:,} on{f', {shard.reason}' if shard.reason else ''}",
        "waiting": "waits for its command",
        "announced": "announced; waits for a step",
        "refused": f"not in the mixture: {shard.reason}",
    }[shard.stage]
    facts = [f"{shard.sha256[:12]}", f"by {escape(shard.author)}", clock(shard.received_at, reader_zone())]
    title = f"<b>{escape(source)}</b> {shard.records:,} record{'' if shard.records == 1 else 's'}"
    look = "warning" if shard.stage == "refused" else "info"
    return f'<div class="alert {look}">{title}, {escape(stage)}<span>{" · ".join(facts)}</span></div>'


def shares(weights: Mapping[str, float], exponent: float) -> dict[str, float]:
    """Return the share of each source: its weight to a power, over the sum; all 0 if every weight is 0."""
    raised = {name: weight**exponent if weight > 0 else 0.0 for name, weight in weights.items()}
    total = sum(raised.values())
    return {name: value / total if total else 0.0 for name, value in raised.items()}


@st.fragment
def control(live: LiveRun) -> None:
    """Draw the forms that set weights and send records; in a fragment that does not refresh."""
    snapshot = live.snapshot
    if snapshot is None or not has_sources(snapshot):
        return
    if refusal := st.session_state.get(REFUSAL):
        st.warning(sentence(refusal), icon=":material/block:")
    if taken_in := st.session_state.get(TAKEN_IN):
        st.caption(plain(taken_in))
    if snapshot.closed or not may_steer():
        return
    with st.container(horizontal=True, gap="small"):
        with st.popover("Change weights", icon=":material/tune:", key="weights"):
            _weights(live, snapshot)
        live_ones = [name for name, state in snapshot.mixture.items() if state.get("live")]
        if live_ones:
            with st.popover("Add records", icon=":material/upload_file:", key="add_records"):
                _upload(live, live_ones)


def _weights(live: LiveRun, snapshot: Snapshot) -> None:
    now = {name: float(state.get("weight", 0.0)) for name, state in snapshot.mixture.items()}
    most = max(MOST_WEIGHT, *now.values())
    chosen = {
        name: st.slider(plain(name), 0.0, most, weight, 0.01, key=f"weight/{live.run}/{name}")
        for name, weight in now.items()
    }
    exponent = share_exponent(snapshot.mixture)
    before, after = shares(now, exponent), shares(chosen, exponent)
    st.html("<br>".join(f"{escape(name)}: {before[name]:.1%} → <b>{after[name]:.1%}</b>" for name in now))
    changed = {name: weight for name, weight in chosen.items() if not isclose(weight, now[name], abs_tol=1e-9)}
    nothing = not any(chosen.values())
    if nothing:
        st.caption("At least one source needs a weight above 0.")
    st.button(
        "Apply weights",
        type="primary",
        icon=":material/check:",
        key="apply_weights",
        disabled=not changed or nothing,
        on_click=_apply,
        args=(live.run, changed),
    )


def _apply(run: str, weights: dict[str, float]) -> None:
    st.session_state[REFUSAL] = send(run, SetMixture(weights=weights))
    st.session_state[TAKEN_IN] = None
    live_run(run).refresh(max_age_s=0)


def _upload(live: LiveRun, sources: list[str]) -> None:
    source = st.selectbox("Source", sources, key="upload_source")
    file = st.file_uploader("File with records", type=[suffix[1:] for suffix in SUFFIXES], key="upload_file")
    only_good = st.toggle(
        "Only the good ones", key="upload_only_good", help="Otherwise one bad record refuses the whole file."
    )
    if not st.button("Send", type="primary", icon=":material/send:", key="send_records", disabled=file is None):
        return
    if file is None or source is None:
        return
    bar = st.progress(0.0, "sending")

    def progress(sent: int, total: int) -> None:
        bar.progress(sent / max(1, total), f"{sent:,} of {total:,} bytes")

    st.session_state[REFUSAL] = st.session_state[TAKEN_IN] = None
    try:
        answers = client().add_content(
            live.run, source, file.name, file.getvalue(), only_good=only_good, progress=progress
        )
        st.session_state[TAKEN_IN] = sums(source, answers)
    except SteerwayError as error:
        st.session_state[REFUSAL] = error.reason
    st.rerun()


def sums(source: str, answers: list[Ingested]) -> str:
    """Return what came of a file in a sentence."""
    records = sum(answer.records for answer in answers)
    twice = sum(answer.duplicates for answer in answers)
    refused = sum(answer.refused_count for answer in answers)
    words = f"{source}: {records:,} new record{'' if records == 1 else 's'}"
    words += f", {twice:,} there already" if twice else ""
    if refused:
        faults = [f"{one.at}: {one.reason}" for answer in answers for one in answer.refused][:MAX_FAULTS]
        words += f", {refused:,} refused ({'; '.join(faults)})"
    return words + ". The ranks draw from them within a few steps."
