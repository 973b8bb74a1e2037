"""Journal as a log at the bottom of the page, one line for each record."""

import streamlit as st

from ui.labels import line
from ui.live import LiveRun
from ui.zone import reader_zone

HEIGHT_PX = 150
MAX_LINES = 300


def journal(live: LiveRun) -> None:
    """Draw the last records, the newest at the bottom and visible."""
    entries = live.refresh_journal()
    commands, zone = live.commands(), reader_zone()
    lines = [line(entry, commands, zone) for entry in entries[-MAX_LINES:]]
    # The style sheet scrolls to the newest line: `autoscroll` follows new elements, not an element that grows.
    with st.container(height=HEIGHT_PX, border=True, key="journal"):
        st.text("\n".join(lines) or "The journal is empty.")
