"""The commands of a run: the last one sent from here with its whole life, and a list of the recent ones."""

import streamlit as st

from control_plane.handle import CommandView, Snapshot
from ui.sending import last_sent
from ui.words import Colour, clock, life, looks, plain, read_back
from ui.zone import reader_zone

MAX_LISTED = 12
MAX_RANKS_SHOWN = 8


def sent_command(snapshot: Snapshot) -> None:
    """The life of the command that this tab sent last."""
    view = next((view for view in snapshot.commands if view.command.uuid == last_sent()), None)
    if view is None:
        return
    colour, icon = looks(view.status)
    box = {"green": st.success, "red": st.error, "gray": st.warning}.get(colour, st.info)
    said = f"**{plain(view.what)}**: {plain(life(view))}"
    if view.settled is not None:
        said += "".join(f"  \n{plain(line)}" for line in read_back(view.settled)[:MAX_RANKS_SHOWN])
    box(said, icon=icon)


def recent_commands(snapshot: Snapshot) -> None:
    """The newest commands of everybody, newest first."""
    st.markdown("**Recent commands**")
    if not snapshot.commands:
        st.caption("None yet. Whatever is sent to this run, by whomever, appears here.")
    with st.container(gap="xsmall", key="recent_commands"):
        for view in reversed(snapshot.commands[-MAX_LISTED:]):
            _row(view)


def _row(view: CommandView) -> None:
    colour: Colour
    colour, icon = looks(view.status)
    reason = f" “{view.command.reason}”" if view.command.reason else ""
    told = f"{clock(view.accepted_at, reader_zone())} by {view.command.author}{reason}"
    st.markdown(
        f":{colour}-badge[{icon} {view.status}] **{plain(view.what)}**  \n:gray[{plain(life(view))} · {plain(told)}]"
    )
