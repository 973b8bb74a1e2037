"""Pages of the console and their addresses. A page object belongs to one run of the script, so each call makes one."""

from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from streamlit.navigation.page import StreamlitPage


def runs() -> "StreamlitPage":
    """Return the page with the list of runs."""
    from ui.views.runs import runs_page

    return st.Page(runs_page, title="Runs", icon=":material/list:", url_path="runs", default=True)


def run() -> "StreamlitPage":
    """Return the page of one run; its address ends in `?run=ID`."""
    from ui.views.run import run_page

    return st.Page(run_page, title="Run", icon=":material/monitoring:", url_path="run")


def compare() -> "StreamlitPage":
    """Return the comparison page; its address ends in `?of=RUN&of=RUN:BRANCH`."""
    from ui.views.compare import compare_page

    return st.Page(compare_page, title="Compare", icon=":material/compare_arrows:", url_path="compare")
