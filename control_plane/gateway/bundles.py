"""Routes for the upload of code bundles: in pieces, streamed to the disk, resumable; size, time and number are bounded.

PUT a piece with `Content-Range: bytes FIRST-LAST/TOTAL`, or a small bundle whole without it; GET how much is there. The
request guard hands these bodies on unread: they may be larger, and slower, than those of all other routes.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import Message, Receive, Scope, Send

from control_plane.api.bundles import MAX_PIECE_BYTES, BundleView, deadline_s
from control_plane.core.model.errors import Invalid, Overloaded, Refused, Unavailable
from control_plane.gateway.auth import BUNDLE_PATH, DATA_PATH, ConnectionLimit
from control_plane.storage.code.uploads import BundleUploads, Piece, Received, TooLarge

MAX_UPLOADS_PER_TOKEN = 2
MAX_UPLOADS = 8
"""At one time, of all tokens: each holds up to a piece in the memory of Serve's proxy."""

_UNREAD = {"PUT": compile_path(BUNDLE_PATH)[0], "POST": compile_path(DATA_PATH)[0]}
_RANGE = re.compile(r"bytes (?:(\d{1,12})-(\d{1,12})|\*)/(\d{1,12})")

Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the whole bundle")]


class TooSlow(Refused):
    """The piece was not received within its deadline; what was received stays."""

    status_hint = 408
    slug = "too-slow"


class UploadSlots:
    """Limits on the uploads in progress, of code bundles or of records: of one token, and of all."""

    def __init__(
        self, per_token: int = MAX_UPLOADS_PER_TOKEN, in_all: int = MAX_UPLOADS, what: str = "code bundles"
    ) -> None:
        self._of_token, self._left, self._what = ConnectionLimit(per_token, f"uploads of {what}"), in_all, what

    @contextmanager
    def take(self, request: Request) -> Iterator[None]:
        """Hold a slot. Raises `Overloaded` if there is none."""
        if not self._left:
            raise Overloaded(f"too many {self._what} are being uploaded at this moment; try again in a moment")
        with self._of_token.take(request.state.identity):
            self._left -= 1
            try:
                yield
            finally:
                self._left += 1


def is_upload(scope: Scope) -> bool:
    """Return whether this request uploads a piece of a bundle, or records: its body is read where it is handled."""
    pattern = _UNREAD.get(scope["method"]) if scope["type"] == "http" else None
    return pattern is not None and pattern.match(scope["path"].removeprefix(scope.get("root_path", ""))) is not None


def closing_unread(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Wrap a request whose body is not read before it is handled: if it is answered earlier, the connection is closed.

    The server would otherwise go on reading a body that nobody wants.
    """
    complete = False

    async def counted() -> Message:
        nonlocal complete
        message = await receive()
        complete = complete or not message.get("more_body", False)
        return message

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start" and not complete:
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return counted, closing


async def read_bundle(request: Request, sha256: Sha256) -> Response:
    """Return how much of a code bundle is here, so that an upload can be skipped or continued."""
    uploads = _uploads(request)
    return _respond(uploads, sha256, await asyncio.to_thread(uploads.received, sha256), 200)


async def upload_bundle(request: Request, sha256: Sha256) -> Response:
    """Upload a code bundle, or the next piece of it. 201: it is complete and acceptable; 202: more is expected."""
    uploads = _uploads(request)
    offset, length, total_bytes = _range_of(request)
    received = await asyncio.to_thread(uploads.received, sha256)
    if received.complete:
        return _respond(uploads, sha256, received, 200)
    with request.app.state.upload_slots.take(request):
        piece = await asyncio.to_thread(uploads.open_piece, sha256, offset, total_bytes)
        try:
            try:
                async with asyncio.timeout(deadline_s(length)):
                    await _receive(request, piece, length)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it; what was received stays
            except TimeoutError:
                raise TooSlow(
                    f"the piece of {length:,} bytes was not received within {deadline_s(length):.0f} s; continue with "
                    "what is missing"
                ) from None
            size_bytes = await asyncio.to_thread(piece.settle)
            if size_bytes != total_bytes:
                return _respond(uploads, sha256, Received(size_bytes, complete=False), 202)
            return _respond(uploads, sha256, await asyncio.to_thread(uploads.complete, sha256), 201)
        finally:
            piece.close()


async def _receive(request: Request, piece: Piece, length: int) -> None:
    """Write the body as it arrives. Raises `Invalid` if it is longer than announced."""
    count = 0
    async for data in request.stream():
        count += len(data)
        if count > length:
            raise Invalid(f"the piece is longer than its Content-Range says, {length:,} bytes")
        if data:
            await asyncio.to_thread(piece.write, data)


def _range_of(request: Request) -> tuple[int, int, int]:
    """Return offset and length of the piece, and the size of the whole. Raises `Invalid`, `TooLarge`."""
    declared = request.headers.get("content-length", "")
    given = request.headers.get("content-range")
    if given is None:
        if not re.fullmatch(r"\d{1,12}", declared):
            raise Invalid("send the bundle's size as Content-Length, or a piece of it with Content-Range")
        offset, length, total_bytes = 0, int(declared), int(declared)
    elif match := _RANGE.fullmatch(given):
        total_bytes = int(match[3])
        offset, end = (int(match[1]), int(match[2]) + 1) if match[1] else (total_bytes, total_bytes)
        length = end - offset
        if end > total_bytes or (match[1] and length < 1) or declared not in ("", str(length)):
            raise Invalid("the Content-Range contradicts itself, or the Content-Length")
    else:
        raise Invalid("the Content-Range must be 'bytes FIRST-LAST/TOTAL', or 'bytes */TOTAL' to finish")
    if not total_bytes:
        raise Invalid("the bundle is empty")
    if length > MAX_PIECE_BYTES:
        raise TooLarge(
            f"a piece may have {MAX_PIECE_BYTES:,} bytes; send a larger bundle in pieces, with Content-Range",
            limit=MAX_PIECE_BYTES,
        )
    return offset, length, total_bytes


def _uploads(request: Request) -> BundleUploads:
    uploads: BundleUploads | None = request.app.state.uploads
    if uploads is None:
        raise Unavailable("this gateway takes no code bundles: it was created without a folder for them")
    return uploads


def _respond(uploads: BundleUploads, sha256: str, received: Received, status: int) -> Response:
    view = BundleView(
        sha256=sha256, received_bytes=received.size_bytes, complete=received.complete, max_bytes=uploads.max_bytes
    )
    return Response(
        view.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def add_bundle_routes(app: FastAPI) -> None:
    """Add the routes of code bundles. Function names are the operation ids; `auth.ACCESS` lists the allowed roles."""
    also: dict[int | str, dict[str, Any]] = {status: {"model": BundleView} for status in (200, 202)}
    app.add_api_route(BUNDLE_PATH, read_bundle, methods=["GET"], status_code=200, response_model=BundleView)
    app.add_api_route(
        BUNDLE_PATH, upload_bundle, methods=["PUT"], status_code=201, response_model=BundleView, responses=also
    )
