"""WebSocket stream of a run's journal, resumable by seq.

    client                                  gateway
    connect /runs/RUN/stream?after=811      accepts
    {"token": "..."}  (within 5 s)          {"type": "entry", "entry": {"seq": 812, ...}}, each once and in order
                                            {"type": "progress", "snapshot": {...}}, every few seconds

Close codes: 1000 the run has ended, 4401 missing or unknown token, 4403 Origin or role, 4404 no such run, 4422 invalid
`after`, 4429 too many streams; 1013 means: reconnect with `after` = the last seq. Backpressure: the journal is
read only after the last message was sent, so a slow reader holds one batch. Not covered: a server that accepts
messages faster than it sends them (Ray Serve's proxy queue); `MAX_STREAM_BYTES` bounds what may pile up there.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, WebSocket
from pydantic_core import to_json
from starlette.websockets import WebSocketDisconnect

from control_plane.api.ports import OperatorPort
from control_plane.core.model.errors import NotAllowed, Overloaded, Refused, SteerwayError
from control_plane.core.model.records import RunClosed
from control_plane.gateway.auth import PREFIX, Unauthenticated, access_key, authorize_token
from control_plane.gateway.scope import scoped
from control_plane.gateway.tokens import Identity

AUTH_DEADLINE_S = 5.0
"""A program sends its token at once; this bounds the cost of a connection without one."""

PROGRESS_PERIOD_S = 2.0
"""Period of progress messages, which also show that the run is alive."""

SEND_DEADLINE_S = 20.0
"""A reader that takes no message for this long is gone or stuck; it may reconnect."""

BATCH_ENTRIES = 100
MAX_STREAMS_PER_TOKEN = 16
"""A console with several tabs, the CLI and an agent, under one token."""

MAX_UNAUTHENTICATED = 32
"""Most unauthenticated connections at a time. A program sends its token at once, so few are ever pending."""

MAX_MESSAGE_CHARS = 4096
"""The only message that a client sends is its token."""

MAX_STREAM_BYTES = 16 * 1024 * 1024
"""After this much the connection is closed with 1013, and the client reconnects."""

OVER, TRY_AGAIN, TOO_BIG = 1000, 1013, 1009
UNAUTHENTICATED, FORBIDDEN, NO_RUN, BAD_CURSOR, TOO_MANY = 4401, 4403, 4404, 4422, 4429
MAX_CLOSE_REASON_BYTES = 123
"""Length limit of a close reason in RFC 6455."""

log = logging.getLogger(__name__)


class CloseStream(Exception):
    """Raised to close the connection with a code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def add_stream(app: FastAPI) -> None:
    """Add the WebSocket route."""
    app.add_api_websocket_route(f"{PREFIX}/runs/{{run}}/stream", stream_journal)


async def stream_journal(websocket: WebSocket, run: str) -> None:
    """Handle one stream, from accepting the connection to closing it."""
    await websocket.accept()
    try:
        await _serve(websocket, run)
    except CloseStream as closing:
        await _close(websocket, closing.code, closing.reason)
    except WebSocketDisconnect:
        log.debug("a stream of %s was closed by its client", run)
    except SteerwayError as error:
        await _close(websocket, _close_code(error), error.reason)
    except Exception:
        log.exception("unhandled exception in a stream")
        await _close(websocket, TRY_AGAIN, "internal error in the gateway")


async def _serve(websocket: WebSocket, run: str) -> None:
    origin = websocket.headers.get("origin")
    if origin is not None and origin not in websocket.app.state.allowed_origins:
        raise CloseStream(FORBIDDEN, "this Origin is not allowed to open a stream")
    unauthenticated = websocket.app.state.unauthenticated
    if len(unauthenticated) >= MAX_UNAUTHENTICATED:
        raise CloseStream(TRY_AGAIN, f"too many unauthenticated connections ({MAX_UNAUTHENTICATED}); retry in a moment")
    unauthenticated.add(websocket)
    try:
        token = await _token(websocket)
        identity = authorize_token(websocket.app.state.tokens, token, access_key(websocket))
    finally:
        unauthenticated.discard(websocket)
    after = _cursor(websocket.query_params.get("after", "0"))
    handle = await scoped(websocket.app.state.runs, identity).handle(run)
    with websocket.app.state.streams.take(identity):
        listening = asyncio.create_task(_listen(websocket))
        sending = asyncio.create_task(_send_all(websocket, handle, after, lambda: _check(websocket, token, identity)))
        try:
            done, _ = await asyncio.wait((listening, sending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (listening, sending):
                task.cancel()
            # Not `gather`: cancelling this task would raise the cancellation of those two instead.
            await asyncio.wait((listening, sending))
        for task in done:
            task.result()


def _check(websocket: WebSocket, token: str, identity: Identity) -> None:
    """Raise `CloseStream` if the token has expired, was revoked, or has another role or scope now."""
    if websocket.app.state.tokens.identify(token) != identity:
        raise CloseStream(UNAUTHENTICATED, "the token has expired or been revoked")


async def _token(websocket: WebSocket) -> str:
    """Receive the token, the first message. Raises `CloseStream`."""
    try:
        async with asyncio.timeout(AUTH_DEADLINE_S):
            message = await _receive(websocket)
    except TimeoutError:
        raise CloseStream(UNAUTHENTICATED, f"no token was received within {AUTH_DEADLINE_S:g} s") from None
    try:
        token = json.loads(message)["token"]
    except (ValueError, TypeError, KeyError, RecursionError):
        token = None
    if not isinstance(token, str):
        raise CloseStream(UNAUTHENTICATED, 'the first message must be {"token": "..."}')
    return token


async def _receive(websocket: WebSocket) -> str:
    """Receive one message as text. Raises `WebSocketDisconnect`, or `CloseStream` if it is too big."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", OVER))
    text = message.get("text") or (message.get("bytes") or b"").decode("utf-8", errors="replace")
    if len(text) > MAX_MESSAGE_CHARS:
        raise CloseStream(TOO_BIG, f"the message exceeds the limit of {MAX_MESSAGE_CHARS} characters")
    return text


async def _listen(websocket: WebSocket) -> None:
    """Detect that the client disconnects; further messages are ignored."""
    while True:
        await _receive(websocket)


def _cursor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise CloseStream(BAD_CURSOR, "'after' must be a position in the journal: 0, 1, 2, ...")
    return int(text)


async def _send_all(websocket: WebSocket, handle: OperatorPort, after: int, check: Callable[[], None]) -> None:
    """Send entries as they become durable, and progress in between, until the run ends or `MAX_STREAM_BYTES`.

    `check` is called before every send, so at least every `PROGRESS_PERIOD_S`; it raises if access was revoked.
    """
    now = asyncio.get_running_loop().time
    cursor, sent_bytes, progress_at = after, 0, now()
    while sent_bytes < MAX_STREAM_BYTES:
        entries = await handle.tail(cursor, BATCH_ENTRIES, max(0.0, progress_at - now()))
        check()
        for entry in entries:
            # A slow reader may take minutes for a batch.
            check()
            sent_bytes += await _send(websocket, {"type": "entry", "entry": entry.line()})
            cursor = entry.seq
        if now() < progress_at and not (entries and isinstance(entries[-1].record, RunClosed)):
            continue
        snapshot = await handle.snapshot()
        check()
        sent_bytes += await _send(websocket, {"type": "progress", "snapshot": snapshot})
        if snapshot.closed and cursor >= snapshot.seq:
            raise CloseStream(OVER, f"the run has {snapshot.status}")
        progress_at = now() + PROGRESS_PERIOD_S
    raise CloseStream(TRY_AGAIN, "size limit of a connection reached; reconnect with the last seq")


async def _send(websocket: WebSocket, message: dict[str, Any]) -> int:
    """Send a message and return its size in bytes. NaN is sent as a string, since JSON has none."""
    text = to_json(message, inf_nan_mode="strings")
    try:
        async with asyncio.timeout(SEND_DEADLINE_S):
            await websocket.send_text(text.decode())
    except TimeoutError:
        raise CloseStream(TRY_AGAIN, f"the client read no message for {SEND_DEADLINE_S:g} s") from None
    return len(text)


def _close_code(error: SteerwayError) -> int:
    match error:
        case Unauthenticated():
            return UNAUTHENTICATED
        case NotAllowed():
            return FORBIDDEN
        case Overloaded():
            return TOO_MANY
        case Refused():
            return NO_RUN
        case _:
            return TRY_AGAIN


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    short = reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
    try:
        async with asyncio.timeout(AUTH_DEADLINE_S):
            await websocket.close(code, short)
    except (RuntimeError, WebSocketDisconnect, TimeoutError) as error:
        log.debug("a stream disconnected before it was closed: %s", type(error).__name__)
