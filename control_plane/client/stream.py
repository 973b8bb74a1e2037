"""The journal of a run as a stream that reconnects and continues."""

import json
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from control_plane.api.patience import FIRST_WAIT_S
from control_plane.client.answers import parse_entry, parse_json
from control_plane.client.connection import API, GatewayConnection, path_of
from control_plane.core.model.errors import Invalid, NotAllowed, NotFound, Overloaded, SteerwayError, Unavailable
from control_plane.core.model.records import Entry

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

STREAM_SILENCE_S = 30.0
"""The gateway sends a heartbeat every few seconds; a stream silent for this long is dead."""

RECONNECT_FOR_S = 60.0
"""How long an interrupted stream tries to reconnect before it gives up."""

MAX_STREAM_MESSAGE_BYTES = 4 * 1024 * 1024
"""A generation of thousands of ranks is one journal line of this order."""

STREAM_CLOSE_OVER = 1000
STREAM_CLOSE_ERRORS: dict[int, type[SteerwayError]] = {
    4401: NotAllowed,
    4403: NotAllowed,
    4404: NotFound,
    4422: Invalid,
    4429: Overloaded,
}
"""The gateway's close codes (`gateway/stream.py`) that are final. On any other code the client reconnects."""


class JournalStream(GatewayConnection):
    """Follows the journal of a run over a WebSocket."""

    def stream(self, run: str, after: int = 0) -> Iterator[Entry]:
        """Yield journal entries after seq `after` as they become durable, exactly once and in order, until the end.

        Reconnects and continues. Raises `Unavailable` when the gateway stays unreachable for `RECONNECT_FOR_S`.
        """
        cursor, heard_at = after, None
        while True:
            try:
                for message in self._listen(run, cursor):
                    heard_at = time.monotonic()
                    if message.get("type") == "entry":
                        entry = parse_entry(message.get("entry"))
                        cursor = entry.seq
                        yield entry
                return
            except Unavailable:
                if heard_at is None or time.monotonic() - heard_at > RECONNECT_FOR_S:
                    raise
                time.sleep(FIRST_WAIT_S + random.random())

    def _listen(self, run: str, after: int) -> Iterator[dict[str, Any]]:
        """Yield the messages of one connection until the run ends. Raises `Unavailable` when the connection breaks."""
        from websockets.exceptions import ConnectionClosed

        with self._connect(f"{API}{path_of(run, 'stream')}", after) as connection:
            try:
                connection.send(json.dumps({"token": self._token}))
                while True:
                    yield parse_json(connection.recv(timeout=STREAM_SILENCE_S), self._base_url)
            except ConnectionClosed as closed:
                code, why = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")
                if code == STREAM_CLOSE_OVER:
                    return
                raise STREAM_CLOSE_ERRORS.get(code or 0, Unavailable)(why or "the stream was closed") from None
            except TimeoutError:
                raise Unavailable(f"the stream of run {run} sent nothing for {STREAM_SILENCE_S:g} s") from None

    def _connect(self, path: str, after: int) -> "ClientConnection":
        from websockets.exceptions import InvalidHandshake, InvalidURI
        from websockets.sync.client import connect

        at = urlsplit(self._base_url)
        url = urlunsplit(("wss" if at.scheme == "https" else "ws", at.netloc, at.path + path, f"after={after}", ""))
        try:
            return connect(
                url,
                open_timeout=self._timeout_s,
                max_size=MAX_STREAM_MESSAGE_BYTES,
                proxy=None,
                ssl=self._tls if at.scheme == "https" else None,
            )
        except (InvalidHandshake, InvalidURI, EOFError):
            raise Unavailable(f"{self._base_url} is not a Steerway gateway: it offers no stream") from None
        except OSError as error:
            raise self._no_answer(error) from None
