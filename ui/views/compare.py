"""Runs and branches beside each other: their losses over the same steps, and a table of what differs."""

import time
from collections.abc import Sequence

import streamlit as st

from control_plane.api.handle import RunSummary
from control_plane.compare.comparison import LOSSES, MAX_SIDES, Comparison, Side, rows
from control_plane.core.model.errors import SteerwayError
from ui.charts.history import History, Series
from ui.charts.overlay import Look, along, height, overlay_options
from ui.charts.palette import DARK, LIGHT
from ui.gateway import banner, client
from ui.labels import escape, plain

EVERY_S = 5.0
COMPARISON_AGE_S = 10.0
"""A comparison takes the control servers some work: they look at every loss that was measured."""

POINTS_PER_CALL = 20_000
CALLS_PER_REFRESH = 8
MAX_COMMANDS = 8
"""The newest commands of a side; the journal has them all."""

STATE = "comparing"


class Comparing:
    """What a page has heard about a choice of sides."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Nothing yet."""
        self.names = names
        self.found: Comparison | None = None
        self.history = History()
        self._cursors: dict[str, int] = {}
        self._asked_at = float("-inf")

    def refresh(self) -> Comparison:
        """The comparison, and the measurements that came since the last time. Raises `SteerwayError`."""
        if self.found is None or time.monotonic() - self._asked_at >= COMPARISON_AGE_S:
            self.found = client().compare(self.names)
            self._asked_at = time.monotonic()
        for run in dict.fromkeys(piece.run for side in self.found.sides for piece in side.line):
            self._measurements(run)
        return self.found

    def _measurements(self, run: str) -> None:
        for _ in range(CALLS_PER_REFRESH):
            after = self._cursors.get(run, 0)
            heard = client().metrics(run, after=after, limit=POINTS_PER_CALL, names=LOSSES)
            self.history.extend(heard, of=f"{run}:")
            self._cursors[run] = heard.cursor
            if len(heard.points) < POINTS_PER_CALL:
                return

    def sides(self) -> list[dict[str, Series]]:
        """What each side has measured since they part."""
        assert self.found is not None
        return [along(side, self.found, self.history) for side in self.found.sides]


def compare_page() -> None:
    """The page. Its address ends in `?of=RUN&of=RUN:BRANCH`."""
    st.subheader("Compare", anchor=False)
    try:
        names = _choose(client().runs())
    except SteerwayError as error:
        banner(error)
        return
    if len(names) < 2:
        st.info("Choose two runs or branches, or more.", icon=":material/compare_arrows:")
        return
    look = _look()
    st.fragment(_comparison, run_every=EVERY_S)(names, look)


def _choose(runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """The sides, kept in the address."""
    newest_first = sorted(runs, key=lambda run: run.created_at, reverse=True)
    options = [name for run in newest_first for name in names_of(run)]
    asked = st.query_params.get_all("of")
    chosen = st.multiselect(
        "Runs and branches",
        list(dict.fromkeys([*options, *asked])),
        default=asked[:MAX_SIDES],
        max_selections=MAX_SIDES,
        key="compare_sides",
        accept_new_options=True,
        placeholder="RUN, RUN:BRANCH, RUN@STEP or RUN@CHECKPOINT",
    )
    if list(chosen) != asked:
        st.query_params["of"] = list(chosen)
    return tuple(chosen)


def names_of(run: RunSummary) -> list[str]:
    """The run, which is its head, and its other branches."""
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
        found = known.refresh()
    except SteerwayError as error:
        banner(error)
        if known.found is None:
            return
        found = known.found
    st.markdown(common_words(found))
    sides = known.sides()
    if any(sides):
        options = overlay_options(found, sides, look)
        key = f"overlay/{'/'.join(names)}"
        st_echarts(options=options, height=height(sides), replace_merge=["series"], key=key)
    else:
        st.caption("Nothing has been measured since then.")
    st.html(table(found))
    st.markdown("**Commands since then**")
    for side in found.sides:
        st.html(commands(side))


def common_words(found: Comparison) -> str:
    """Where the sides part, in Markdown."""
    at = found.common
    if at.run is None:
        return "They have nothing in common."
    return f"In common up to step **{at.step:,}** of {plain(at.run)}, branch {plain(at.branch or '')}."


def table(found: Comparison) -> str:
    """Results and knobs that differ, a column a side."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *(side.name for side in found.sides)))
    body = "".join(_row(label, cells) for label, *cells in rows(found))
    return f'<div class="compared"><table class="checkpoints"><thead><tr>{head}</tr></thead>{body}</table></div>'


def _row(label: str, cells: Sequence[str]) -> str:
    return f"<tr><td>{escape(label)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def commands(side: Side) -> str:
    """What was done on a side since the sides part, as HTML."""
    done = [f"{escape(each.what)} at step {each.step:,}, by {escape(each.author)}" for each in side.interventions]
    older = [f"{len(done) - MAX_COMMANDS} older"] if len(done) > MAX_COMMANDS else []
    lines = "".join(f"<span>{line}</span>" for line in [*older, *done[-MAX_COMMANDS:]] or ["none"])
    return f'<div class="checkpoint"><b>{escape(side.name)}</b>{lines}</div>'
