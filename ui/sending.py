"""Submission of commands and launches from the console; idempotent if a request is repeated after a failure."""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID, uuid4

import streamlit as st

from control_plane.api.launching import ForkRequest, Launched, ResumeRequest
from control_plane.api.messages import Snapshot
from control_plane.api.versions import release
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.intents import First, Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from ui.gateway import client

UNANSWERED = "unanswered_commands"
UNANSWERED_LAUNCHES = "unanswered_launches"
SENT = "sent_command"
RESTARTED = "restarted_run"
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


def restart(run: str, back: Rollback | AdoptCheckpoint | None = None, reason: str | None = None) -> str | None:
    """Have the gateway start a new job for a run that has ended. Returns the reason if it was refused, else None.

    `back`: the rollback or adoption that it begins with; by default it goes on from its newest checkpoint.
    """
    request = ResumeRequest(back=back, reason=reason, client=release(""))
    with st.spinner("The gateway is starting the run ..."):
        refusal = _launched((run, back, reason), request, lambda asked: client().resume(run, asked))
    if refusal is None:
        st.session_state[RESTARTED] = run
    return refusal


def fork(run: str, checkpoint: str, first: tuple[First, ...] = ()) -> tuple[str | None, str | None]:
    """Start a run from a checkpoint. Returns the new run's id and None, or None and the reason against it."""
    made: list[str] = []

    def ask(asked: ForkRequest) -> Launched:
        launched = client().fork(run, asked)
        made.extend(one.run for one in launched.runs)
        return launched

    request = ForkRequest(checkpoint=checkpoint, firsts=(first,), client=release(""))
    with st.spinner("The gateway is starting the fork ..."):
        refusal = _launched((run, checkpoint, first), request, ask)
    return (made[0] if made else None), refusal


def is_restarting(snapshot: Snapshot) -> bool:
    """Return whether this tab has restarted the run, and its new job has not opened it yet."""
    if not snapshot.closed and st.session_state.get(RESTARTED) == snapshot.run:
        del st.session_state[RESTARTED]
    return bool(st.session_state.get(RESTARTED) == snapshot.run)


Asked = TypeVar("Asked", ResumeRequest, ForkRequest)


def _launched(key: tuple[object, ...], request: Asked, ask: Callable[[Asked], Launched]) -> str | None:
    """Send a launch request; a repeated one after no answer keeps its uuid, so that it starts nothing twice."""
    unanswered: dict[tuple[object, ...], UUID] = st.session_state.setdefault(UNANSWERED_LAUNCHES, {})
    request = request.model_copy(update={"uuid": unanswered.pop(key, request.uuid)})
    try:
        ask(request)
    except Unavailable as error:
        unanswered[key] = request.uuid
        return f"{error.reason}. It may have been started; it is safe to press the button again."
    except SteerwayError as error:
        return error.reason
    return None


def last_sent() -> UUID | None:
    """Return the uuid of the command that this tab sent last."""
    return st.session_state.get(SENT)
