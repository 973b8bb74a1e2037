"""Page of one run: header, live charts, controls and journal."""

import streamlit as st

from control_plane.api.messages import Snapshot
from control_plane.compare.lineage import lineage
from control_plane.core.model.errors import SteerwayError
from ui import addresses
from ui.charts.charts import EVENTS, HEIGHT, View, chart_options
from ui.charts.layout import Band, Mark, alert_marks, bands, marks, on_the_line
from ui.gateway import banner
from ui.live import LiveRun, live_run
from ui.panels import alerts, commands, dataset, knobs, learning_rate, proposals, recovery, rollback, signs
from ui.panels.branches import branches
from ui.panels.checkpoints import checkpoints
from ui.panels.header import header
from ui.panels.journal import journal
from ui.sending import is_restarting

FAST_S, CHARTS_S = 1.0, 2.0
"""Refresh intervals of header and commands, and of charts and journal."""


def run_page() -> None:
    """Draw the page of the run in the address."""
    run = st.query_params.get("run", "")
    if not run:
        st.info("No run is chosen: the address of this page ends in `?run=ID`.", icon=":material/info:")
        _back()
        return
    live = live_run(run)
    try:
        snapshot = live.refresh(max_age_s=0)
    except SteerwayError as error:
        banner(error)
        _back()
        return
    if snapshot is None:
        _wait_for_gateway(live)
        return
    _page(live, snapshot)


def _page(live: LiveRun, snapshot: Snapshot) -> None:
    """Draw the page once; the live parts are fragments, which stop refreshing when the run is closed."""
    is_over = snapshot.closed and not is_restarting(snapshot)
    fast_s, charts_s = (None, None) if is_over else (FAST_S, CHARTS_S)
    st.fragment(_header, run_every=fast_s)(live, snapshot.closed)
    left, right = st.columns([3, 1], gap="medium")
    with left:
        view = _view()
        st.fragment(_charts, run_every=charts_s)(live, view)
        group = signs.choice(live)
        st.fragment(_signs, run_every=charts_s)(live, group, view)
        if dataset.has_sources(snapshot):
            st.markdown("**Dataset**")
            st.fragment(dataset.dataset, run_every=charts_s)(live)
            dataset.control(live)
        st.fragment(_aftermath, run_every=charts_s)(live, view)
    with right:
        st.markdown("**Learning rate**")
        st.fragment(_now, run_every=charts_s)(live)
        learning_rate.form(live)
        st.markdown("**Knobs**")
        known = bool(knobs.listed(snapshot))
        st.fragment(knobs.now, run_every=charts_s)(live, known)
        knobs.form(live)
        st.markdown("**Agent**")
        st.fragment(_agent, run_every=charts_s)(live)
        proposals.control(live)
        st.fragment(_commands, run_every=fast_s)(live)
    rollback.dialog(live, snapshot)
    with st.bottom:
        st.fragment(journal, run_every=charts_s)(live)


def _header(live: LiveRun, was_closed: bool) -> None:
    snapshot = live.refresh()
    if snapshot is None:
        return
    if snapshot.closed != was_closed:
        live.refresh_metrics()
        st.rerun()
    header(live, snapshot)
    recovery.notice(snapshot)
    alerts.inbox(snapshot)
    proposals.inbox(snapshot)


def _view() -> View:
    """Draw the display settings of the charts, which are kept in the address, so that a link includes them."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="chart_view"):
        smoothing = st.slider("Smoothing", 0.0, 0.99, 0.6, 0.01, key="smooth", bind="query-params", width=190)
        axis = st.segmented_control(
            "x axis", ["step", "time"], default="step", required=True, key="x", bind="query-params"
        )
        log_y = st.toggle("log y", key="logy", bind="query-params")
    dark = st.context.theme.type == "dark"
    return View(smoothing=smoothing, log_y=log_y, axis="time" if axis == "time" else "step", dark=dark)


def _charts(live: LiveRun, view: View) -> None:
    from streamlit_echarts import st_echarts  # registers its component, which needs a running Streamlit

    live.refresh()
    history = live.refresh_metrics()
    if not history.series:
        st.info("No metrics yet: the charts appear with the first step.", icon=":material/monitoring:")
        return
    marked, failures = _marked(live, view)
    st_echarts(
        options=chart_options(history, marked, view, failures),
        height=HEIGHT,
        replace_merge=["series"],
        events=EVENTS,
        key=f"charts/{live.run}/{view.axis}",
    )


def _signs(live: LiveRun, group: str | None, view: View) -> None:
    live.refresh()
    signs.signs(live, group, view, *_marked(live, view))


def _marked(live: LiveRun, view: View) -> tuple[list[Mark], list[Band]]:
    """Return what is marked on the charts: commands, failures of the trainers with their cost, and alerts."""
    snapshot, history = live.snapshot, live.history
    if snapshot is None or not snapshot.branches:
        return [], []
    line = lineage(snapshot.branches, snapshot.branch)
    applied, recoveries = on_the_line(snapshot, line)
    started_at_s, extent = history.started_at_s(), history.extent(view.axis)
    marked = marks(applied, view.axis, started_at_s, extent, recoveries, line)
    marked += alert_marks(snapshot.alerts, view.axis, started_at_s, line, extent)
    return marked, bands(recoveries, view.axis, started_at_s, extent)


def _aftermath(live: LiveRun, view: View) -> None:
    """Draw the branches, the recoveries and the checkpoints."""
    snapshot = live.refresh()
    if snapshot is None:
        return
    live.refresh_journal()
    alerts.earlier(snapshot)
    proposals.earlier(snapshot)
    branches(live, snapshot)
    if not snapshot.recoveries:
        checkpoints(live, snapshot)
        return
    left, right = st.columns([3, 2], gap="medium")
    with left:
        recovery.recoveries(live, snapshot, view.palette, view.axis)
    with right:
        checkpoints(live, snapshot)


def _now(live: LiveRun) -> None:
    snapshot = live.refresh()
    if snapshot is not None:
        st.markdown(learning_rate.now(snapshot))


def _agent(live: LiveRun) -> None:
    snapshot = live.refresh()
    if snapshot is not None:
        st.markdown(proposals.now(snapshot))


def _commands(live: LiveRun) -> None:
    snapshot = live.refresh()
    if snapshot is not None:
        commands.sent_command(snapshot)
        commands.recent_commands(snapshot)


@st.fragment(run_every=FAST_S)
def _wait_for_gateway(live: LiveRun) -> None:
    """Retry until the gateway answers for the first time."""
    if live.problem is not None:
        banner(live.problem)
    if live.refresh() is not None:
        st.rerun()


def _back() -> None:
    st.page_link(addresses.runs(), label="All runs", icon=":material/list:")
