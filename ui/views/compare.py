"""Comparison page: losses of runs and branches over the same steps, and a table of their differences."""

import time
from collections.abc import Sequence

import streamlit as st

from control_plane.api.messages import RunSummary
from control_plane.compare.comparison import LOSSES, MAX_SIDES, Comparison, Side, rows
from control_plane.core.model.errors import SteerwayError
from ui.charts.history import MetricsHistory, Series
from ui.charts.overlay import Look, along, height, overlay_options
from ui.charts.palette import DARK, LIGHT
from ui.gateway import banner, client
from ui.labels import escape, plain

EVERY_S = 5.0
COMPARISON_AGE_S = 10.0
"""Interval of a comparison, which makes the control servers read every measured loss."""

POINTS_PER_CALL = 20_000
CALLS_PER_REFRESH = 8
MAX_COMMANDS = 8
"""Number of listed commands of a side, the newest; the journal has them all."""

STATE = "comparing"


class Comparing:
    """Comparison and metrics that a page has received for its sides."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Start without data."""
        self.names = names
        self.found: Comparison | None = None
        self.history = MetricsHistory()
        self._cursors: dict[str, int] = {}
        self._asked_at = float("-inf")

    def refresh(self) -> Comparison:
        """Return the comparison, and fetch the metrics since the last call. Raises `SteerwayError`."""
        if self.found is None or time.monotonic() - self._asked_at >= COMPARISON_AGE_S:
            self.found = client().compare(self.names)
            self._asked_at = time.monotonic()
        for run in dict.fromkeys(piece.run for side in self.found.sides for piece in side.line):
            self._measurements(run)
        return self.found

    def _measurements(self, run: str) -> None:
        for _ in range(CALLS_PER_REFRESH):
            after = self._cursors.get(run, 0)
            metrics = client().metrics(run, after=after, limit=POINTS_PER_CALL, names=LOSSES)
            self.history.extend(metrics, of=f"{run}:")
            self._cursors[run] = metrics.cursor
            if len(metrics.points) < POINTS_PER_CALL:
                return

    def sides(self) -> list[dict[str, Series]]:
        """Return the metrics of each side since their last common step."""
        assert self.found is not None
        return [along(side, self.found, self.history) for side in self.found.sides]


def compare_page() -> None:
    """Draw the page. Its address ends in `?of=RUN&of=RUN:BRANCH`."""
    st.subheader("Compare", anchor=False)
    try:
        names = _choose(client().runs())
    except SteerwayError as error:
        banner(error)
        return
    if len(names) < 2:
        st.info("Choose two or more runs or branches.", icon=":material/compare_arrows:")
        return
    look = _look()
    st.fragment(_comparison, run_every=EVERY_S)(names, look)


def _choose(runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """Draw the choice of sides, which is kept in the address, and return them."""
    newest_first = sorted(runs, key=lambda run: run.created_at, reverse=True)
    options = [name for run in newest_first for name in names_of(run)]
    in_address = st.query_params.get_all("of")
    chosen = st.multiselect(
        "Runs and branches",
        list(dict.fromkeys([*options, *in_address])),
        default=in_address[:MAX_SIDES],
        max_selections=MAX_SIDES,
        key="compare_sides",
        accept_new_options=True,
        placeholder="RUN, RUN:BRANCH, RUN@STEP or RUN@CHECKPOINT",
    )
    if list(chosen) != in_address:
        st.query_params["of"] = list(chosen)
    return tuple(chosen)


def names_of(run: RunSummary) -> list[str]:
    """Return the name of the run, which stands for its head, and the names of its other branches."""
    return [run.run, *(f"{run.run}:{branch}" for branch in run.branches if branch != run.branch)]


def _look() -> Look:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        smoothing = st.slider("Smoothing", 0.0, 0.99, 0.6, 0.01, key="compare_smooth", width=190)
        log_y = st.toggle("log y", key="compare_logy")
    return Look(smoothing, log_y, DARK if st.context.theme.type == "dark" else LIGHT)


def _comparison(names: tuple[str, ...], look: Look) -> None:
    from streamlit_echarts import st_echarts  # registers its component, which needs a running Streamlit

    known = st.session_state.get(STATE)
    if not isinstance(known, Comparing) or known.names != names:
        known = st.session_state[STATE] = Comparing(names)
    try:
        comparison = known.refresh()
    except SteerwayError as error:
        banner(error)
        if known.found is None:
            return
        comparison = known.found
    st.markdown(common_words(comparison))
    sides = known.sides()
    if any(sides):
        options = overlay_options(comparison, sides, look)
        key = f"overlay/{'/'.join(names)}"
        st_echarts(options=options, height=height(sides), replace_merge=["series"], key=key)
    else:
        st.caption("No metrics since then.")
    st.html(table(comparison))
    st.markdown("**Commands since then**")
    for side in comparison.sides:
        st.html(commands(side))


def common_words(comparison: Comparison) -> str:
    """Return the last common step of the sides, in Markdown."""
    at = comparison.common
    if at.run is None:
        return "They have nothing in common."
    return f"In common up to step **{at.step:,}** of {plain(at.run)}, branch {plain(at.branch or '')}."


def table(comparison: Comparison) -> str:
    """Return a table of the results and of the knobs that differ, as HTML with a column for each side."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *(side.name for side in comparison.sides)))
    body = "".join(_row(label, cells) for label, *cells in rows(comparison))
    return f'<div class="compared"><table class="checkpoints"><thead><tr>{head}</tr></thead>{body}</table></div>'


def _row(label: str, cells: Sequence[str]) -> str:
    return f"<tr><td>{escape(label)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def commands(side: Side) -> str:
    """Return the commands on a side since the last common step, as HTML."""
    done = [
        f"{escape(change.what)} at step {change.step:,}, by {escape(change.author)}" for change in side.interventions
    ]
    older = [f"{len(done) - MAX_COMMANDS} older"] if len(done) > MAX_COMMANDS else []
    lines = "".join(f"<span>{line}</span>" for line in [*older, *done[-MAX_COMMANDS:]] or ["none"])
    return f'<div class="checkpoint"><b>{escape(side.name)}</b>{lines}</div>'
