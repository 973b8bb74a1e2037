"""Authenticated connection between the ranks' monitors: lines of JSON over TCP, each with an HMAC.

    both ends     {"nonce": "..."}                first line, without a code
    afterwards    CODE {"..."}                    HMAC-SHA256 of nonces, direction, number of the line, and the line

The token is generated for each training and distributed by the ranks' own collectives, so that other users of the
network can neither report nor order a rank's death, nor replay messages. The content is not secret, so it is not
encrypted. Standard library only.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
from typing import Any

MOST_LINE_BYTES = 8192
MOST_WAITING_BYTES = 1 << 20
"""Limit of unsent bytes, beyond which a peer that does not read is disconnected."""

NONCE_BYTES = 16


class PeerError(ConnectionError):
    """The peer is not a monitor of this training, or has closed the connection."""


class PeerConnection:
    """One end of a connection. Does not block: `receive` and `flush` do what is possible now."""

    def __init__(self, connection: socket.socket, token: str, is_hub: bool) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self._token = connection, token.encode()
        self._directions = (b"hub", b"spoke") if is_hub else (b"spoke", b"hub")
        self._nonce = secrets.token_hex(NONCE_BYTES)
        self._key: bytes | None = None
        self._sent = self._received = 0
        self._in, self._out = b"", json.dumps({"nonce": self._nonce}).encode() + b"\n"

    @property
    def is_open(self) -> bool:
        """True if the peer's nonce is known, so that messages can be sent."""
        return self._key is not None

    @property
    def is_trusted(self) -> bool:
        """True if the peer is authenticated: it has shown that it knows the token."""
        return self._received > 0

    def say(self, message: dict[str, Any]) -> None:
        """Send a message; drops it while the peer's nonce is not known. Raises `PeerError`."""
        if self._key is None:
            return
        # The name of a file may be invalid UTF-8.
        body = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        self._out += self._code(self._directions[0], self._sent, body) + b" " + body + b"\n"
        self._sent += 1
        self.flush()

    def flush(self) -> None:
        """Send the queued bytes, as far as possible without blocking. Raises `PeerError`."""
        try:
            while self._out:
                self._out = self._out[self.connection.send(self._out) :]
        except BlockingIOError:
            if len(self._out) > MOST_WAITING_BYTES:
                raise PeerError("the peer does not read its messages") from None
        except OSError as error:
            raise PeerError(str(error)) from None

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived. Raises `PeerError`."""
        try:
            while content := self.connection.recv(65536):
                self._in += content
                if len(self._in) > MOST_WAITING_BYTES:
                    raise PeerError("the peer sends too much")
            ended = True
        except BlockingIOError:
            ended = False
        except OSError as error:
            raise PeerError(str(error)) from None
        *lines, self._in = self._in.split(b"\n")
        if len(self._in) > MOST_LINE_BYTES:
            raise PeerError("the peer's line is too long")
        messages = [message for line in lines if (message := self._take(line)) is not None]
        if ended and not messages:
            raise PeerError("the peer has closed the connection")
        return messages

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _take(self, line: bytes) -> dict[str, Any] | None:
        if self._key is None:
            self._agree(line)
            return None
        code, _, body = line.partition(b" ")
        if not hmac.compare_digest(code, self._code(self._directions[1], self._received, body)):
            raise PeerError("the peer does not know the token")
        self._received += 1
        return _parsed(body)

    def _agree(self, line: bytes) -> None:
        nonce = _parsed(line).get("nonce")
        if not isinstance(nonce, str) or len(nonce) != 2 * NONCE_BYTES:
            raise PeerError("the peer does not speak the monitors' protocol")
        nonces = (self._nonce, nonce) if self._directions[0] == b"hub" else (nonce, self._nonce)
        self._key = hmac.digest(self._token, " ".join(nonces).encode(), hashlib.sha256)

    def _code(self, direction: bytes, number: int, body: bytes) -> bytes:
        assert self._key is not None
        signed = b"%s %d %s" % (direction, number, body)
        return hmac.digest(self._key, signed, hashlib.sha256).hex().encode()


def _parsed(body: bytes) -> dict[str, Any]:
    if len(body) > MOST_LINE_BYTES:
        raise PeerError("the peer's line is too long")
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise PeerError("the peer does not speak the monitors' protocol")
    return message
