"""Signs of a run's health: charts of one group at a time, and the meaning of each sign."""

from collections.abc import Iterable, Mapping, Sequence

import streamlit as st

from control_plane.core.health.signs import Sign
from ui.charts.charts import EVENTS, View, chart_options
from ui.charts.layout import Band, Mark
from ui.charts.signs import GROUPS, group_names, height, layout, shown_names, sign_panels, title
from ui.labels import plain
from ui.live import LiveRun

GROUP = "signs"
"""State key of the chosen group, which is kept in the address."""

KNOWN = "signs_known"


def choice(live: LiveRun) -> str | None:
    """Draw the choice of a group, among those that the run measures, and return the chosen one."""
    snapshot = live.snapshot
    known = group_names(snapshot.latest if snapshot else ())
    st.session_state[KNOWN] = tuple(known)
    if not known:
        return None
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="signs_view"):
        st.markdown("**Signs of health**", width="content")
        chosen = st.segmented_control(
            "Signs of health", list(known), key=GROUP, bind="query-params", label_visibility="collapsed"
        )
    return chosen if chosen in known else None


def signs(live: LiveRun, group: str | None, view: View, marked: list[Mark], failures: Sequence[Band]) -> None:
    """Draw the charts of a group. Redraws the page once the run measures another group."""
    from streamlit_echarts import st_echarts  # registers its component, which needs a running Streamlit

    snapshot = live.snapshot
    known = group_names(snapshot.latest if snapshot else ())
    if set(known) - set(st.session_state.get(KNOWN, GROUPS)):
        st.rerun()
    chosen = next((signs for name, signs in known.items() if name == group), None)
    if chosen is None:
        return
    history, panels = live.refresh_metrics(shown_names(chosen)), sign_panels(chosen)
    st_echarts(
        options=chart_options(history, marked, view, failures, panels, layout(len(panels))),
        height=height(len(panels)),
        replace_merge=["series"],
        events=EVENTS,
        key=f"signs/{live.run}/{group}/{len(panels)}/{view.axis}",
    )
    left_out = [f"{title(sign)} of {len(names)}" for sign, names in chosen.items() if len(names) > drawn(sign, names)]
    if left_out:
        st.caption(f"Evenly spaced layers are drawn: {', '.join(left_out)}.")
    with st.expander("What these mean, and what people do", icon=":material/help:", key=f"signs_meaning_{group}"):
        st.markdown(meanings(chosen))


def drawn(sign: Sign, names: Sequence[str]) -> int:
    """Return the number of lines that the chart of a sign draws."""
    return len(shown_names({sign: names}))


def meanings(signs: Iterable[Sign] | Mapping[Sign, Sequence[str]]) -> str:
    """Return unit, meaning and advice of each sign, in Markdown."""
    return "\n".join(
        f"- **{plain(title(sign))}** ({plain(sign.unit)}): {plain(sign.meaning)} :gray[{plain(sign.advice)}]"
        for sign in signs
    )
