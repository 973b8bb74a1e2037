"""How the ranks' monitors talk: lines of JSON over TCP, each with a code that only those who know the token can make.

    both ends     {"nonce": "..."}                first line, without a code
    afterwards    CODE {"..."}                    HMAC-SHA256 of nonces, direction, number of the line, and the line

The token is made anew for each training and handed over by the ranks' own collectives, so that whoever can reach the
port can neither report a death nor order one, nor repeat what was said before. Nothing here is secret, so nothing is
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
"""An end that does not read is given up beyond so much."""

NONCE_BYTES = 16


class Refused(ConnectionError):
    """The other end is none of ours, or has broken off."""


class Wire:
    """One end of a connection. Never blocks: `receive` and `flush` do what is possible now."""

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
        """Whether the other end's nonce is known, so that something can be said."""
        return self._key is not None

    @property
    def is_trusted(self) -> bool:
        """Whether the other end has shown that it knows the token."""
        return self._received > 0

    def say(self, message: dict[str, Any]) -> None:
        """Send a message, or nothing as long as the other end is not known: it would be old. Raises `Refused`."""
        if self._key is None:
            return
        # A file's name may hold bytes that are no text.
        body = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        self._out += self._code(self._directions[0], self._sent, body) + b" " + body + b"\n"
        self._sent += 1
        self.flush()

    def flush(self) -> None:
        """Send what waits. Raises `Refused`."""
        try:
            while self._out:
                self._out = self._out[self.connection.send(self._out) :]
        except BlockingIOError:
            if len(self._out) > MOST_WAITING_BYTES:
                raise Refused("it does not read what it is sent") from None
        except OSError as error:
            raise Refused(str(error)) from None

    def receive(self) -> list[dict[str, Any]]:
        """What has come. Raises `Refused`."""
        try:
            while content := self.connection.recv(65536):
                self._in += content
                if len(self._in) > MOST_WAITING_BYTES:
                    raise Refused("it sends too much")
            ended = True
        except BlockingIOError:
            ended = False
        except OSError as error:
            raise Refused(str(error)) from None
        *lines, self._in = self._in.split(b"\n")
        if len(self._in) > MOST_LINE_BYTES:
            raise Refused("its line is too long")
        told = [message for line in lines if (message := self._take(line)) is not None]
        if ended and not told:
            raise Refused("it has closed the connection")
        return told

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def _take(self, line: bytes) -> dict[str, Any] | None:
        if self._key is None:
            self._agree(line)
            return None
        code, _, body = line.partition(b" ")
        if not hmac.compare_digest(code, self._code(self._directions[1], self._received, body)):
            raise Refused("it does not know the token")
        self._received += 1
        return _parsed(body)

    def _agree(self, line: bytes) -> None:
        theirs = _parsed(line).get("nonce")
        if not isinstance(theirs, str) or len(theirs) != 2 * NONCE_BYTES:
            raise Refused("it does not speak as a monitor does")
        mine = (self._nonce, theirs) if self._directions[0] == b"hub" else (theirs, self._nonce)
        self._key = hmac.digest(self._token, " ".join(mine).encode(), hashlib.sha256)

    def _code(self, direction: bytes, number: int, body: bytes) -> bytes:
        assert self._key is not None
        said = b"%s %d %s" % (direction, number, body)
        return hmac.digest(self._key, said, hashlib.sha256).hex().encode()


def _parsed(body: bytes) -> dict[str, Any]:
    if len(body) > MOST_LINE_BYTES:
        raise Refused("its line is too long")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("it does not speak as a monitor does") from None
    if not isinstance(told, dict):
        raise Refused("it does not speak as a monitor does")
    return told
