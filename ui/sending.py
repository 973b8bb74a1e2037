"""From a click to a durable command, or to the sentence that says why not."""

from uuid import UUID, uuid4

import streamlit as st

from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import SteerwayError, Unavailable
from ui.gateway import client

UNANSWERED = "unanswered_commands"
SENT = "sent_command"
Request = tuple[str, Intent, str | None]


def send(run: str, intent: Intent, reason: str | None = None, based_on_seq: int | None = None) -> str | None:
    """Send a command. Answers why it was refused; None if it is durable.

    When nobody answered, the same request keeps its uuid and what it was based on, so that pressing the button again
    sends the same command, and cannot make it happen twice. `based_on_seq`: the `seq` of the snapshot in sight.
    """
    unanswered: dict[Request, tuple[UUID, int | None]] = st.session_state.setdefault(UNANSWERED, {})
    request = (run, intent, reason)
    uuid, based_on_seq = unanswered.pop(request, (uuid4(), based_on_seq))
    try:
        receipt = client().submit(run, intent, reason=reason, based_on_seq=based_on_seq, uuid=uuid)
    except Unavailable as error:
        unanswered[request] = uuid, based_on_seq
        return f"{error.reason}. It may or may not have been accepted; sending it again cannot make it happen twice."
    except SteerwayError as error:
        return error.reason
    st.session_state[SENT] = receipt.uuid
    return None


def last_sent() -> UUID | None:
    """The command that this tab sent last."""
    return st.session_state.get(SENT)
