"""Page with the list of runs, newest first."""

import streamlit as st

from control_plane.api.messages import RunSummary
from control_plane.core.model.errors import SteerwayError
from ui import addresses
from ui.gateway import banner, client
from ui.labels import day, looks, plain
from ui.zone import reader_zone

EVERY_S = 2.0
MAX_LISTED = 100
WIDTHS = [4, 2, 4, 1, 2]

HOW_TO_SUBMIT = "steer submit configs/gpt2-local.yaml"


def runs_page() -> None:
    """Draw the list of runs. Redirects a link with `?run=ID` to that run, one with `?of=A&of=B` to the comparison."""
    if sides := st.query_params.get_all("of"):
        st.switch_page(addresses.compare(), query_params={"of": sides})
    run = st.query_params.get("run")
    if run:
        st.switch_page(addresses.run(), query_params=dict(st.query_params))
    st.subheader("Runs", anchor=False)
    _runs()


@st.fragment(run_every=EVERY_S)
def _runs() -> None:
    try:
        found = client().runs()
    except SteerwayError as error:
        banner(error)
        return
    if not found:
        st.info("There are no runs yet. Submit one:", icon=":material/rocket_launch:")
        st.code(HOW_TO_SUBMIT, language="bash")
        return
    newest_first = sorted(found, key=lambda run: run.created_at, reverse=True)
    with st.container(key="runs_head"):
        for column, title in zip(st.columns(WIDTHS), ("run", "status", "step", "ranks", "created"), strict=True):
            column.caption(title)
    with st.container(key="runs_rows"):
        for run in newest_first[:MAX_LISTED]:
            _row(run)
    if len(found) > MAX_LISTED:
        st.caption(f"The {MAX_LISTED} newest of {len(found)} runs. `steer runs` lists them all.")


def _row(run: RunSummary) -> None:
    colour, icon = looks(run.status)
    name, status, step, ranks, created = st.columns(WIDTHS, vertical_alignment="center")
    label = run.name if run.name == run.run or not run.name else f"{run.name} · {run.run}"
    name.page_link(addresses.run(), label=plain(label), query_params={"run": run.run})
    status.badge(run.status, icon=icon, color=colour)
    if run.total_steps:
        step.progress(min(1.0, run.step / run.total_steps), text=f"{run.step:,} / {run.total_steps:,}")
    else:
        step.caption("not started")
    ranks.text(f"{run.world_size} ranks" if run.world_size else "")
    created.text(day(run.created_at, reader_zone()))
