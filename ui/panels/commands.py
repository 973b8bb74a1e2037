"""The commands of a run: the last one sent from here with its whole life, and a list of the recent ones."""

from uuid import UUID

import streamlit as st

from control_plane.api.handle import CommandView, Snapshot
from control_plane.api.sentences import name
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import Cancel
from ui.labels import Colour, clock, life, looks, plain, read_back
from ui.sending import last_sent, send
from ui.zone import reader_zone

MAX_LISTED = 12
MAX_RANKS_SHOWN = 8
REFUSAL = "cancel_refusal"


def sent_command(snapshot: Snapshot) -> None:
    """The life of the command that this tab sent last."""
    view = next((view for view in snapshot.commands if view.command.uuid == last_sent()), None)
    if view is None:
        return
    colour, icon = looks(view.status)
    what = name(view.command, _known(snapshot))
    box = {"green": st.success, "red": st.error, "gray": st.warning}.get(colour, st.info)
    said = f"**{plain(what)}**: {plain(life(view))}"
    if view.settled is not None:
        said += "".join(f"  \n{plain(line)}" for line in read_back(view.settled)[:MAX_RANKS_SHOWN])
    box(said, icon=icon)


def recent_commands(snapshot: Snapshot) -> None:
    """The newest commands of everybody, newest first; those that are not settled can be cancelled."""
    st.markdown("**Recent commands**")
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(plain(refusal), icon=":material/block:")
    if not snapshot.commands:
        st.caption("None yet. Whatever is sent to this run, by whomever, appears here.")
    with st.container(gap="xsmall", key="recent_commands"):
        for view in reversed(snapshot.commands[-MAX_LISTED:]):
            _row(snapshot, view)


def can_be_cancelled(snapshot: Snapshot, view: CommandView) -> bool:
    """Whether it still waits, and nobody has asked to cancel it."""
    asked = {each.command.intent.command for each in snapshot.commands if isinstance(each.command.intent, Cancel)}
    is_cancel = isinstance(view.command.intent, Cancel)
    return view.settled is None and not is_cancel and view.command.uuid not in asked and not snapshot.closed


def _known(snapshot: Snapshot) -> dict[UUID, Command]:
    return {view.command.uuid: view.command for view in snapshot.commands}


def _row(snapshot: Snapshot, view: CommandView) -> None:
    colour: Colour
    colour, icon = looks(view.status)
    reason = f" “{view.command.reason}”" if view.command.reason else ""
    told = f"{clock(view.accepted_at, reader_zone())} by {view.command.author}{reason}"
    what = plain(name(view.command, _known(snapshot)))
    st.markdown(f":{colour}-badge[{icon} {view.status}] **{what}**  \n:gray[{plain(life(view))} · {plain(told)}]")
    uuid = view.command.uuid
    if can_be_cancelled(snapshot, view):
        # Sent before the page is drawn again: by then the command may be settled, and the button gone.
        request = (snapshot.run, uuid)
        st.button("Cancel", icon=":material/close:", key=f"cancel/{uuid}", on_click=_cancel, args=request)


def _cancel(run: str, uuid: UUID) -> None:
    st.session_state[REFUSAL] = send(run, Cancel(command=uuid))
