"""From a click to a durable command, or to the sentence that says why not."""

from uuid import UUID, uuid4

import streamlit as st

from control_plane.core.commands import Intent
from control_plane.core.errors import SteerwayError, Unavailable
from ui.gateway import client

UNANSWERED = "unanswered_commands"
SENT = "sent_command"


def send(run: str, intent: Intent, reason: str | None = None) -> str | None:
    """Send a command. Answers why it was refused; None if it is durable.

    When nobody answered, the same request keeps its uuid, so that pressing the button again cannot make it happen
    twice.
    """
    unanswered: dict[tuple[str, Intent, str | None], UUID] = st.session_state.setdefault(UNANSWERED, {})
    request = (run, intent, reason)
    uuid = unanswered.pop(request, None) or uuid4()
    try:
        receipt = client().submit(run, intent, reason=reason, uuid=uuid)
    except Unavailable as error:
        unanswered[request] = uuid
        return f"{error.reason}. It may or may not have been accepted; sending it again cannot make it happen twice."
    except SteerwayError as error:
        return error.reason
    st.session_state[SENT] = receipt.uuid
    return None


def last_sent() -> UUID | None:
    """The command that this tab sent last."""
    return st.session_state.get(SENT)
