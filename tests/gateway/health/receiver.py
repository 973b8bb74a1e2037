"""Service that receives webhooks over real HTTP: it refuses each message once, and takes it when it is repeated."""

import hashlib
import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One request, and how it was answered."""

    path: str
    delivery: str
    timestamp: str
    signature: str
    body: bytes
    status: int

    def is_signed_with(self, secret: str) -> bool:
        signed = self.timestamp.encode() + b"." + self.body
        return self.signature == "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


@dataclass
class Receiver:
    """Receiver at `url`. `requests`: all of them, in order."""

    url: str
    requests: list[Received] = field(default_factory=list)

    def of(self, path: str, run: str) -> dict[str, list[Received]]:
        """Requests to a path about a run, by the id of the message."""
        found: dict[str, list[Received]] = {}
        for request in list(self.requests):
            if request.path == path and run.encode() in request.body:
                found.setdefault(request.delivery, []).append(request)
        return found


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listen on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told = {name: self.headers.get(f"Steerway-{name.title()}", "") for name in ("delivery", "timestamp")}
            with lock:
                is_new = all(told["delivery"] != seen.delivery for seen in receiver.requests)
                status = 500 if is_new else 200
                signature = self.headers.get("Steerway-Signature", "")
                receiver.requests.append(Received(self.path, body=body, status=status, signature=signature, **told))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *unused: object) -> None:
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
