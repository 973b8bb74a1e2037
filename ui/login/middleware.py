"""ASGI middleware in front of Streamlit: a request without a session only gets the login page.

A request must have the console's Host; a page, in addition, the cookie of a valid session; a stream, which carries all
data and commands, in addition the Origin of exactly this address and the session's secret; the upload of a file the
same, and a role that may steer. Streamlit itself compares host names without ports, and accepts requests without an
Origin.
"""

import re
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane import console_login
from control_plane.addresses import host_name
from control_plane.config import Settings
from control_plane.console_login import Login, SessionRecord
from control_plane.core.model.errors import NotAllowed, SteerwayError
from ui.login.exchange import read_request

SESSION_HEADER = "x-steerway-session"
"""Header with the session for the page's script. Removed from the browser's requests."""

SECRET_HEADER = "x-steerway-secret"
SECRET_PROTOCOL = "steerway."
"""Prefix of the secret among the protocols, the only part of a WebSocket's handshake that a page can set."""

STREAM, HEALTH = "/_stcore/stream", "/_stcore/health"
STATIC, COMPONENT, MEDIA = "/static/", "/component/", "/media/"
UPLOAD = re.compile(r"/_stcore/upload_file/[A-Za-z0-9-]{1,64}/[A-Za-z0-9-]{1,64}")
NEVER = ("/_stcore/agent", "/_stcore/upload_file", "/_stcore/metrics")
"""Parts of Streamlit that the console does not use."""

POLICY_VIOLATION = 1008
OURS = Path(__file__).parent
FILES = {
    "/login": ("login.html", "text/html"),
    "/login/login.css": ("login.css", "text/css"),
    "/login/login.js": ("login.js", "text/javascript"),
    "/login/session.js": ("session.js", "text/javascript"),
    "/login/icon.svg": ("../icon.svg", "image/svg+xml"),
}
OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SCRIPT_TAG = b'<script src="/login/session.js"></script>'


class LoginRequired:
    """ASGI middleware that requires a login, see the module."""

    def __init__(self, app: ASGIApp, where: Settings, check_token: Callable[[str], None]) -> None:
        """`app`: Streamlit's. `check_token` raises `SteerwayError` unless the gateway knows the token."""
        self._app, self._where, self._check_token = app, where, check_token
        self._cookie_name = f"steerway_console_{where.console_port}"
        self._hosts, self._public = frozenset(where.host_names), frozenset(where.public_names)
        self._scheme = "http" if where.tls_cert is None else "https"
        self._files = {path: ((OURS / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on to Streamlit."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = dict(scope, headers=[header for header in scope["headers"] if header[0] != SESSION_HEADER.encode()])
        if scope["type"] == "websocket":
            await self._stream(scope, headers, receive, send)
        elif scope["type"] == "http":
            answer = await self._answer(Request(scope, receive), headers)
            if answer is None:
                await self._hand_on(scope, receive, send)
            else:
                await answer(scope, receive, _with_policy(send, scope["path"]))

    async def _answer(self, request: Request, headers: Headers) -> Response | None:
        """Return our own response; None if Streamlit may answer."""
        path, method = request.scope["path"], request.method  # as Streamlit reads it: without escapes
        if host_name(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("The console is not served under this name.\n", 403)
        if path == HEALTH and method in ("GET", "HEAD"):
            return None
        if method == "POST" and path in ("/login", "/logout"):
            return await self._post(request, headers)
        if method in ("PUT", "DELETE") and UPLOAD.fullmatch(path):
            return self._refused_upload(headers)
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("This method is not allowed.\n", 405)
        if path in self._files:
            body, kind = self._files[path]
            return Response(body, media_type=kind, headers={"Cache-Control": "no-store"})
        if any(part in ("", ".", "..") for part in path.split("/")[1:-1]) or "\\" in path or path.startswith(NEVER):
            return PlainTextResponse("There is nothing here.\n", 404)
        if path.startswith(STATIC):  # Streamlit's own program, the same for all users
            return None
        session = self._session(headers)
        if path == "/login/session":
            return Response(status_code=204 if self._is_whole(session, headers.get(SECRET_HEADER)) else 401)
        if session is not None:
            # The page of all runs is Streamlit's default page, which has no address of its own.
            return RedirectResponse("/", 307) if path == "/runs" else None
        if "text/html" in headers.get("accept", ""):
            page = quote(path + (f"?{request.url.query}" if request.url.query else ""), safe="")
            return RedirectResponse(f"/login#page={page}", 303, headers={"Cache-Control": "no-store"})
        return PlainTextResponse("This needs a login: open the link that `steer console` prints.\n", 401)

    def _refused_upload(self, headers: Headers) -> Response | None:
        """Return the refusal of a file for one of Streamlit's forms; None if Streamlit may take it."""
        session = self._session(headers)
        if session is None or not self._is_ours(headers) or not self._is_whole(session, headers.get(SECRET_HEADER)):
            return PlainTextResponse("This needs a login: open the link that `steer console` prints.\n", 401)
        if session[1].role == "viewer":
            return PlainTextResponse("A viewer may not send files.\n", 403)
        return None

    async def _post(self, request: Request, headers: Headers) -> Response:
        """Log in or out. Requires the console's Origin, which browsers send with every POST."""
        if not self._is_ours(headers):
            return PlainTextResponse("This page may not log in to the console.\n", 403)
        session = self._session(headers)
        if request.scope["path"] == "/logout":
            if session is not None and self._is_whole(session, headers.get(SECRET_HEADER)):
                console_login.log_out(self._where, session[0])
            return Response(status_code=204)
        try:
            shown = await read_request(request)
            login = await run_in_threadpool(self._log_in, shown.key, shown.token)
        except NotAllowed as no:
            return JSONResponse({"detail": no.reason}, 401)
        except SteerwayError as error:
            return JSONResponse({"detail": error.reason}, error.status_hint)
        answer = JSONResponse({"secret": login.secret}, headers={"Cache-Control": "no-store"})
        answer.set_cookie(
            self._cookie_name,
            login.cookie,
            max_age=int(console_login.VALID_S),
            httponly=True,
            samesite="strict",
            secure=self._scheme == "https",
        )
        return answer

    def _log_in(self, key: str | None, token: str | None) -> Login:
        if key is not None:
            return console_login.log_in_with_key(self._where, key)
        assert token is not None
        self._check_token(token)
        return console_login.log_in_with_token(self._where, token)

    async def _stream(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        protocols = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
        shown = protocols.pop().removeprefix(SECRET_PROTOCOL) if protocols[-1].startswith(SECRET_PROTOCOL) else None
        session = self._session(headers)
        is_whole = self._is_ours(headers) and self._is_whole(session, shown)
        if session is None or scope["path"] != STREAM or not is_whole:
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        scope = dict(scope, headers=list(scope["headers"]))
        changed = MutableHeaders(scope=scope)
        changed["sec-websocket-protocol"] = ", ".join(protocols)
        changed[SESSION_HEADER] = session[0]
        await self._app(scope, receive, send)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        send = _with_policy(send, path)
        if not path.startswith((STATIC, COMPONENT, MEDIA)):
            # This may be a page, which gets our script, so it must not be compressed.
            scope = dict(scope, headers=[header for header in scope["headers"] if header[0] != b"accept-encoding"])
            send = _with_script(send)
        await self._app(scope, receive, send)

    def _session(self, headers: Headers) -> tuple[str, SessionRecord] | None:
        return console_login.find_session(self._where, _cookie(headers.getlist("cookie"), self._cookie_name))

    def _is_whole(self, session: tuple[str, SessionRecord] | None, secret: str | None) -> bool:
        return session is not None and console_login.has_secret(session[1], secret)

    def _is_ours(self, headers: Headers) -> bool:
        """Return whether the request is of the console's own page: its Origin has the host and port of a known Host.

        The port may be another than the console's own: that of a tunnel or an ingress, which may also add TLS.
        """
        host = headers.get("host", "").lower()
        name = host_name(host)
        schemes = {self._scheme, "https"} if name in self._public else {self._scheme}
        origins = headers.getlist("origin")
        return name in self._hosts and len(origins) == 1 and origins[0] in {f"{scheme}://{host}" for scheme in schemes}


def _cookie(sent: Iterable[str], name: str) -> str | None:
    try:
        cookie = SimpleCookie("; ".join(sent)).get(name)
    except CookieError:
        return None
    return None if cookie is None else cookie.value


def _with_policy(send: Send, path: str) -> Send:
    """Add security headers to a response: who may frame it, and no content sniffing."""
    ancestors = "'self'" if path.startswith(COMPONENT) else "'none'"
    policy = OWN_POLICY if path in FILES else f"frame-ancestors {ancestors}; object-src 'none'; base-uri 'self'"

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = policy
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "SAMEORIGIN" if path.startswith(COMPONENT) else "DENY"
            headers["Referrer-Policy"] = "no-referrer"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
        await send(message)

    return sending


def _with_script(send: Send) -> Send:
    """Insert our script into a page, before Streamlit's own, which opens the stream."""
    start: Message | None = None
    body = b""

    async def sending(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            if not Headers(raw=message["headers"]).get("content-type", "").startswith("text/html"):
                await send(message)
            else:
                start = message
        elif start is None:
            await send(message)
        else:
            body += message.get("body", b"")
            if not message.get("more_body"):
                page = body.replace(b"<head>", b"<head>" + SCRIPT_TAG, 1)
                headers = MutableHeaders(scope=start)
                headers["Content-Length"] = str(len(page))
                headers["Cache-Control"] = "no-store"
                await send(start)
                await send({"type": "http.response.body", "body": page})

    return sending
