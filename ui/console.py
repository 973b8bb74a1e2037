"""Streamlit script of the console, run for each page view; `python -m ui` serves it, behind a login."""

import gc
from pathlib import Path

import streamlit as st

from ui import addresses
from ui.style import CSS

# A local file: an icon of Material's would be fetched from another server.
ICON = Path(__file__).with_name("icon.svg")


@st.cache_resource(show_spinner=False)
def _freeze_start_up() -> bool:
    """Exclude the objects that exist after start-up from garbage collection, which saves time at every run."""
    import streamlit_echarts  # noqa: F401

    gc.freeze()
    return True


st.set_page_config(page_title="Steerway", page_icon=str(ICON), layout="wide")
chosen = st.navigation([addresses.runs(), addresses.run(), addresses.compare()], position="top")
_freeze_start_up()
st.html(CSS)
chosen.run()
