"""Load generator of the storm benchmark: one process that sends commands at a fixed rate, in an open loop.

    python -m benchmarks.storm.storm_client       stdin: the order as one JSON line, and an empty one to begin
                                            stdout: `ready`, and at the end the outcome as one JSON line

A request is written when it is due, on the connection with the fewest pending requests (HTTP/1.1 pipelining), so that
slow answers do not slow the storm. Requests are prepared before it begins, and answers are parsed as little as
possible: the client shares the machine with what it measures.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import cast
from uuid import uuid4

import httptools

READY = "ready"

TICK_S = 0.005
"""Interval of the loop: five requests at 1,000 per second."""

CONNECT_WAIT_S = 20.0
DRAIN_S = 10.0
"""Timeout for answers after the last request; requests without one then count as unanswered."""

MAX_OUTSTANDING = 20_000
"""Limit of pending requests, beyond which requests are not sent, and counted as such."""


@dataclass(frozen=True)
class Order:
    """Settings of the storm: `per_s` commands for `seconds`, with this token, at this `niceness`."""

    host: str
    port: int
    path: str
    token: str
    per_s: int
    seconds: float
    connections: int
    rate: float
    niceness: int = 0


@dataclass
class Outcome:
    """Counts of requests and answers: by status, and for 429 by limit."""

    due: int = 0
    sent: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    cut_off: int = 0
    cpu_s: float = 0.0
    sending_s: float = 0.0


class Connection(asyncio.Protocol):
    """Keep-alive connection with pipelining: answers arrive in the order of the requests."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._transport: asyncio.Transport | None = None
        self.waiting: deque[tuple[str, float]] = deque()

    @property
    def open(self) -> bool:
        """True if requests can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, uuid: str, request: bytes) -> None:
        """Write one request, without waiting for earlier answers."""
        assert self._transport is not None
        self.waiting.append((uuid, time.monotonic()))
        self._transport.write(request)

    def close(self) -> None:
        """Abort the connection without waiting for answers."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the opened connection."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection as cut off if requests were pending."""
        self._outcome.cut_off += bool(self.waiting)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Append to the body of the answer in progress."""
        self._body += body

    def on_message_complete(self) -> None:
        """Count the answer to the oldest request."""
        uuid, begun_s = self.waiting.popleft()
        status = self._parser.get_status_code()
        if status == 202:
            self._outcome.acknowledged.append(uuid)
        elif status == 429:
            self._outcome.refused_s.append(time.monotonic() - begun_s)
        key = _limit_in(bytes(self._body)) if status == 429 else str(status)
        self._outcome.answers[key] = self._outcome.answers.get(key, 0) + 1
        self._body.clear()


def _limit_in(refusal: bytes) -> str:
    return next((f"429 {limit}" for limit in ("per_s", "at_once") if b'"%s"' % limit.encode() in refusal), "429 queue")


def prepare(order: Order) -> list[tuple[str, bytes]]:
    """Return every request of the storm, with its uuid."""
    head = (
        f"POST {order.path} HTTP/1.1\r\nHost: {order.host}:{order.port}\r\nAuthorization: Bearer {order.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    intent = {"kind": "set_learning_rate", "value": order.rate, "schedule": "hold"}
    made = []
    for _ in range(round(order.per_s * order.seconds)):
        uuid = str(uuid4())
        body = json.dumps({"uuid": uuid, "intent": intent})
        made.append((uuid, f"{head}{len(body)}\r\n\r\n{body}".encode()))
    return made


async def connect(order: Order, outcome: Outcome) -> list[Connection]:
    """Open all connections. Raises `OSError` or `TimeoutError` if that fails."""
    loop, made = asyncio.get_running_loop(), list[Connection]()
    async with asyncio.timeout(CONNECT_WAIT_S):
        for _ in range(order.connections):
            _, connection = await loop.create_connection(lambda: Connection(outcome), order.host, order.port)
            made.append(connection)
    return made


async def blow(
    order: Order, outcome: Outcome, connections: list[Connection], requests: list[tuple[str, bytes]]
) -> None:
    """Send all requests when they are due; then wait for answers."""
    begun_s = time.monotonic()
    while outcome.due < len(requests):
        now_due = min(len(requests), int((time.monotonic() - begun_s) * order.per_s))
        offer(outcome, connections, requests[outcome.due : now_due])
        outcome.due = now_due
        await asyncio.sleep(TICK_S)
    outcome.sending_s = time.monotonic() - begun_s
    until_s = time.monotonic() + DRAIN_S
    while time.monotonic() < until_s and any(connection.open and connection.waiting for connection in connections):
        await asyncio.sleep(TICK_S)


def offer(outcome: Outcome, connections: list[Connection], requests: list[tuple[str, bytes]]) -> None:
    """Send each on the connection with the fewest pending requests. Drops those beyond `MAX_OUTSTANDING`."""
    if not requests:
        return
    living = sorted((one for one in connections if one.open), key=lambda connection: len(connection.waiting))
    outstanding = sum(len(connection.waiting) for connection in living)
    room = min(len(requests), MAX_OUTSTANDING - outstanding) if living else 0
    for number, (uuid, request) in enumerate(requests[:room]):
        living[number % len(living)].send(uuid, request)
    outcome.sent += room


async def carry_out(order: Order) -> Outcome:
    """Prepare the requests, connect, print `ready`, wait for a line, and send."""
    outcome = Outcome()
    requests = prepare(order)
    connections = await connect(order, outcome)
    print(READY, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    before_s = time.process_time()
    await blow(order, outcome, connections, requests)
    outcome.cpu_s = time.process_time() - before_s
    for connection in connections:
        connection.close()
    return outcome


def main() -> None:
    """Read the order from stdin, and write the outcome to stdout."""
    order = Order(**json.loads(sys.stdin.readline()))
    os.nice(order.niceness)
    print(json.dumps(asdict(asyncio.run(carry_out(order)))), flush=True)


if __name__ == "__main__":
    main()
