"""A local HTTP server that speaks the chat protocol, or refuses to in every way a test can think of."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Chat", dict[str, Any]], None]


class Chat(BaseHTTPRequestHandler):
    """One request; `server.answer` decides what becomes of it."""

    server: "ChatServer"

    def do_POST(self) -> None:
        """Take a chat request down and let the test's answer loose."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        try:
            self.server.answer(self, request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client hung up on us, as it should on an endless answer

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests read what was requested."""

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """A whole HTTP answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class ChatServer(ThreadingHTTPServer):
    """Keeps what it was asked. `released` is set at the end, for answers that wait for ever."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Chat)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def chat_server(answer: Answer) -> Iterator[ChatServer]:
    """A server for the length of a `with`."""
    server = ChatServer(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def completion(content: Any, **message: Any) -> bytes:
    """A chat completion as an endpoint sends it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content} | message}
    whole = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(whole).encode()


def says(content: Any, **message: Any) -> Answer:
    """Answers every request with this content."""
    return lambda chat, request: chat.send(200, completion(content, **message))


def sends(body: bytes, status: int = 200, **headers: str) -> Answer:
    """Answers every request with these bytes."""
    return lambda chat, request: chat.send(status, body, **headers)


def never(chat: Chat, request: dict[str, Any]) -> None:
    """Takes the request and says nothing until the test is over."""
    chat.server.released.wait(5)


def drips(chat: Chat, request: dict[str, Any]) -> None:
    """A byte now and then, for ever: no single read takes long."""
    chat.send_response(200)
    chat.end_headers()
    while not chat.server.released.wait(0.05):
        chat.wfile.write(b" ")
        chat.wfile.flush()


def floods(chat: Chat, request: dict[str, Any]) -> None:
    """Bytes as fast as they go, for ever."""
    chat.send_response(200)
    chat.end_headers()
    while not chat.server.released.is_set():
        chat.wfile.write(b"x" * 65536)


def hangs_up(chat: Chat, request: dict[str, Any]) -> None:
    """Promises more than it sends."""
    chat.send_response(200)
    chat.send_header("Content-Length", "1000")
    chat.end_headers()
    chat.wfile.write(completion("{}")[:20])
    chat.close_connection = True
