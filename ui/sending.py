"""Submission of commands from the console; idempotent if a request is repeated after a failure."""

from uuid import UUID, uuid4

import streamlit as st

from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import SteerwayError, Unavailable
from ui.gateway import client

UNANSWERED = "unanswered_commands"
SENT = "sent_command"
Request = tuple[str, Intent, str | None]


def send(run: str, intent: Intent, reason: str | None = None, based_on_seq: int | None = None) -> str | None:
    """Send a command. Returns the reason if it was rejected, None if it is durable.

    If the gateway does not answer, the same request keeps its uuid and its `based_on_seq`, so that pressing the button
    again sends the same command, and cannot apply it twice. `based_on_seq`: the `seq` of the shown snapshot.
    """
    unanswered: dict[Request, tuple[UUID, int | None]] = st.session_state.setdefault(UNANSWERED, {})
    request = (run, intent, reason)
    uuid, based_on_seq = unanswered.pop(request, (uuid4(), based_on_seq))
    try:
        receipt = client().submit(run, intent, reason=reason, based_on_seq=based_on_seq, uuid=uuid)
    except Unavailable as error:
        unanswered[request] = uuid, based_on_seq
        return f"{error.reason}. The command may have been accepted; it is safe to send it again."
    except SteerwayError as error:
        return error.reason
    st.session_state[SENT] = receipt.uuid
    return None


def last_sent() -> UUID | None:
    """Return the uuid of the command that this tab sent last."""
    return st.session_state.get(SENT)
