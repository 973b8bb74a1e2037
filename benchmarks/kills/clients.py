"""Load clients of control servers that are killed: operators that retry their requests, and a reader of the journal.

They behave like the client of the gateway and rank 0's link: a request has a uuid and is retried until it is answered;
after a `fenced` error it is sent to the successor.
"""

import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.model.commands import Command, Intent, Pause, Resume, SetLearningRate
from control_plane.core.model.intents.server import DeleteCheckpoint

RETRY_S = 0.002
ANSWER_LIMIT_S = 5.0
"""Timeout of a request, for servers that are stopped."""


@dataclass
class ServerLocation:
    """Current socket of the control server, and the state of the clients' shutdown."""

    path: str = ""
    ending: threading.Event = field(default_factory=threading.Event)
    # Set when no operator sends any more: no further commands will be pending.
    silent: threading.Event = field(default_factory=threading.Event)
    # Set at the timeout of the shutdown: clients that still wait for an answer give up.
    over: threading.Event = field(default_factory=threading.Event)
    # Checkpoints that rank 0 has reported; operators delete some.
    checkpoints: list[str] = field(default_factory=list)


class GaveUp(Exception):
    """No server answered until the end."""


class ServerConnection:
    """Connection of one client. It is kept until it breaks or its server is fenced."""

    def __init__(self, place: ServerLocation) -> None:
        """Connects at the first request."""
        self._place = place
        self._socket: socket.socket | None = None
        self._unread = b""

    def ask(self, what: str, body: Any) -> dict[str, Any]:
        """Retry a request until there is a final answer. Raises `GaveUp`."""
        data = json.dumps({"ask": what, "body": body}).encode() + b"\n"
        while not self._place.over.is_set():
            answer = self._try(data)
            if answer is not None and answer.get("error") not in ("unavailable", "fenced"):
                return answer
            if answer is None or answer["error"] == "fenced":
                self.hang_up()
            time.sleep(RETRY_S)
        raise GaveUp

    def _try(self, data: bytes) -> dict[str, Any] | None:
        try:
            if self._socket is None:
                self._socket, self._unread = socket.socket(socket.AF_UNIX), b""
                self._socket.settimeout(ANSWER_LIMIT_S)
                self._socket.connect(self._place.path)
            self._socket.sendall(data)
            while b"\n" not in self._unread:
                if not (more := self._socket.recv(1 << 16)):
                    return None
                self._unread += more
        except OSError:
            return None
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def hang_up(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class LoadClient(threading.Thread):
    """Base class of a client thread. `problems` are violations that it has seen."""

    def __init__(self, place: ServerLocation, seed: str) -> None:
        """`seed` determines its requests."""
        super().__init__(daemon=True)
        self.place, self.dice, self.line = place, random.Random(seed), ServerConnection(place)
        self.problems = list[str]()

    def run(self) -> None:
        """Work until the end."""
        try:
            self.work()
        except GaveUp:
            self.problems.append(f"{type(self).__name__} got no answer")
        except Exception as error:
            self.problems.append(f"{type(self).__name__}: {error!r}")
        self.line.hang_up()

    def work(self) -> None:
        """Send the requests of this client."""
        raise NotImplementedError


class LoadOperator(LoadClient):
    """Client that sends commands, one after the other, and sometimes repeats an old one."""

    def __init__(self, place: ServerLocation, seed: str) -> None:
        """Start without commands."""
        super().__init__(place, seed)
        self.acknowledged = dict[UUID, int]()
        self.refused = list[UUID]()
        self._sent = list[Command]()

    def work(self) -> None:
        """Send until the end."""
        while not self.place.ending.is_set():
            self._send(Command(uuid=self._uuid(), author="ada", intent=self._intent()))
            if self._sent and self.dice.random() < 0.2:
                self._send(self.dice.choice(self._sent))

    def _uuid(self) -> UUID:
        return UUID(int=self.dice.getrandbits(128), version=4)

    def _intent(self) -> Intent:
        drawn = self.dice.random()
        if drawn < 0.1:
            return self.dice.choice((Pause(), Resume()))
        if drawn < 0.25 and (known := self.place.checkpoints[-6:-1]):
            return DeleteCheckpoint(checkpoint=self.dice.choice(known))
        return SetLearningRate(value=self.dice.uniform(1e-5, 1e-3))

    def _send(self, command: Command) -> None:
        answer = self.line.ask("submit", command.model_dump(mode="json"))
        if "ok" not in answer:
            self._take_refusal(command, answer)
            return
        seq = answer["ok"]["seq"]
        if self.acknowledged.setdefault(command.uuid, seq) != seq:
            self.problems.append(f"{command.uuid} is entry {self.acknowledged[command.uuid]}, and then entry {seq}")
        self._sent.append(command)

    def _take_refusal(self, command: Command, answer: dict[str, Any]) -> None:
        if answer["error"] == "surprise" or command.uuid in self.acknowledged:
            self.problems.append(f"{command.uuid}, sent again: {answer['reason']}")
        self.refused.append(command.uuid)


class JournalWatcher(LoadClient):
    """Client that reads the journal's tail, as the stream of the gateway does. Entries that it has seen must stay."""

    def __init__(self, place: ServerLocation, seed: str) -> None:
        """Start without entries."""
        super().__init__(place, seed)
        self.seen = list[dict[str, Any]]()

    def work(self) -> None:
        """Read until the end."""
        while not self.place.silent.is_set():
            answer = self.line.ask("tail", [len(self.seen), 200, 0.02])
            for entry in answer["ok"]:
                if entry["seq"] != len(self.seen) + 1:
                    self.problems.append(f"after entry {len(self.seen)} the tail has entry {entry['seq']}")
                    return
                self.seen.append(entry)
