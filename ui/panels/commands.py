"""Commands on a run's page: the state of the last one sent from here, and a list of the recent ones."""

from uuid import UUID

import streamlit as st

from control_plane.api.messages import CommandView, Snapshot
from control_plane.api.sentences import describe_command
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import Cancel, NoteEffect, Propose
from ui.labels import Colour, clock, life, looks, plain, read_back
from ui.sending import last_sent, send
from ui.zone import reader_zone

MAX_LISTED = 12
MAX_RANKS_SHOWN = 8
REFUSAL = "cancel_refusal"


def sent_command(snapshot: Snapshot) -> None:
    """Draw the state of the command that this tab sent last."""
    view = next((view for view in snapshot.commands if view.command.uuid == last_sent()), None)
    if view is None:
        return
    colour, icon = looks(view.status)
    what = describe_command(view.command, _known(snapshot))
    box = {"green": st.success, "red": st.error, "gray": st.warning}.get(colour, st.info)
    text = f"**{plain(what)}**: {plain(life(view))}"
    if view.settled is not None:
        text += "".join(f"  \n{plain(line)}" for line in read_back(view.settled)[:MAX_RANKS_SHOWN])
    box(text, icon=icon)


def recent_commands(snapshot: Snapshot) -> None:
    """Draw the newest commands of all authors, newest first; unsettled ones can be cancelled."""
    st.markdown("**Recent commands**")
    refusal = st.session_state.get(REFUSAL)
    if refusal:
        st.warning(plain(refusal), icon=":material/block:")
    if not snapshot.commands:
        st.caption("None yet. All commands to this run, from any author, appear here.")
    with st.container(gap="xsmall", key="recent_commands"):
        for view in reversed(_listed(snapshot)[-MAX_LISTED:]):
            _row(snapshot, view)


def _listed(snapshot: Snapshot) -> list[CommandView]:
    """Return the commands without proposals and their effects, which have a place of their own on the page."""
    return [view for view in snapshot.commands if not isinstance(view.command.intent, Propose | NoteEffect)]


def can_be_cancelled(snapshot: Snapshot, view: CommandView) -> bool:
    """Return whether a command is pending and no cancellation of it has been sent."""
    intents = [other.command.intent for other in snapshot.commands]
    cancelled = {intent.command for intent in intents if isinstance(intent, Cancel)}
    is_cancel = isinstance(view.command.intent, Cancel)
    return view.settled is None and not is_cancel and view.command.uuid not in cancelled and not snapshot.closed


def _known(snapshot: Snapshot) -> dict[UUID, Command]:
    return {view.command.uuid: view.command for view in snapshot.commands}


def _row(snapshot: Snapshot, view: CommandView) -> None:
    colour: Colour
    colour, icon = looks(view.status)
    reason = f" “{view.command.reason}”" if view.command.reason else ""
    origin = f"{clock(view.accepted_at, reader_zone())} by {view.command.author}{reason}"
    what = plain(describe_command(view.command, _known(snapshot)))
    st.markdown(f":{colour}-badge[{icon} {view.status}] **{what}**  \n:gray[{plain(life(view))} · {plain(origin)}]")
    uuid = view.command.uuid
    if can_be_cancelled(snapshot, view):
        # Sent before the page is drawn again: by then the command may be settled, and the button gone.
        request = (snapshot.run, uuid)
        st.button("Cancel", icon=":material/close:", key=f"cancel/{uuid}", on_click=_cancel, args=request)


def _cancel(run: str, uuid: UUID) -> None:
    st.session_state[REFUSAL] = send(run, Cancel(command=uuid))
