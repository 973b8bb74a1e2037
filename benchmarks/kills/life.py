"""Lives of a control server as plain processes: forked from one that has imported everything, served on a socket.

    python -m benchmarks.kills.life       reads a JSON object a line: the lives to begin; writes one for what happens

Forking costs milliseconds, so that a campaign can afford thousands of kills. A life has the real control server over
the real journal; left out are Ray, the gateway, and the measurements, on which no decision depends. Requests and
answers are JSON, one a line.
"""

import asyncio
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.kills.power import NotedDisk
from control_plane.api.handle import Measurements, MetricSummary, Point, Report, StepRange
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.records import RunCreated
from control_plane.core.rules.decisions import GenerationStart
from control_plane.server.control_server import ControlServer
from control_plane.storage import failpoints
from control_plane.storage.checkpoint.cleanup import discard
from control_plane.storage.journal.writer import Disk, Journal

CREATED = RunCreated(run="killed", name="killed", author="benchmark", config_sha256="c" * 64)
START = TypeAdapter(GenerationStart)

NOT_BEGUN, SURPRISED = 3, 4
"""Exit codes of a life that could not begin: the disk refused; anything else, told in the surprises."""

PR_SET_PDEATHSIG = 1
MAX_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Life:
    """One life to begin. `planted` is a `module:function` that plants a fault into this process first."""

    number: int
    root: str
    socket: str
    failpoints: str = ""
    power: bool = False
    planted: str | None = None

    def diary(self) -> Path:
        """The points at which something was done, a line each."""
        return Path(self.root) / f"diary-{self.number}"

    def notes(self) -> Path:
        """What the disk has for certain."""
        return Path(self.root) / "synced"

    def surprises(self) -> Path:
        """Errors that nobody meant to raise."""
        return Path(self.root) / "surprises"

    def journal(self) -> Path:
        """The folder of the journal."""
        return Path(self.root) / "journal"


class NoMeasurements:
    """A `MeasurementStore` that keeps nothing."""

    def add(self, points: Sequence[Point]) -> None:
        """Drop them."""

    def read(self, after: int, limit: int, names: Sequence[str] = ()) -> Measurements:
        """Nothing."""
        return Measurements(points=(), cursor=0)

    def latest(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """Nothing."""
        return ()


def main() -> None:
    """Fork a life for each line, and tell how each one ends. Ends with its input; its lives end with it."""
    libc, lives, waiting = ctypes.CDLL(None), dict[int, tuple[int, int]](), b""
    gc.freeze()
    while True:
        ready, _, _ = select.select([0, *lives], [], [])
        for descriptor in ready:
            if descriptor in lives:
                number, pid = lives.pop(descriptor)
                os.close(descriptor)
                tell(life=number, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if 0 in ready:
            if not (data := os.read(0, 65536)):
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                life = Life(**json.loads(line))
                if (pid := os.fork()) == 0:
                    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                    live(life)
                tell(life=life.number, pid=pid)
                lives[os.pidfd_open(pid)] = life.number, pid


def tell(**event: Any) -> None:
    """A line for whoever asked. It is short, so it arrives whole."""
    os.write(1, json.dumps(event).encode() + b"\n")


def live(life: Life) -> None:
    """Serve until killed. Never returns."""
    try:
        asyncio.run(_serve(life))
    except Unavailable:
        os._exit(NOT_BEGUN)
    except BaseException:
        surprise(life, traceback.format_exc())
        os._exit(SURPRISED)
    os._exit(0)


def surprise(life: Life, what: str) -> None:
    """Keep what nobody meant to happen."""
    with life.surprises().open("a") as file:
        file.write(f"life {life.number}: {what}\n")


async def _serve(life: Life) -> None:
    diary = os.open(life.diary(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if life.planted:
        module, _, function = life.planted.partition(":")
        getattr(importlib.import_module(module), function)()
    failpoints.arm(life.failpoints, tell=lambda point: void(os.write(diary, f"{point}\n".encode())))
    disk = NotedDisk(life.notes()).disk if life.power else Disk()
    checkpoints = Path(life.root) / "checkpoints"
    journal = Journal.open(life.journal(), disk)
    server = ControlServer(
        CREATED, journal, NoMeasurements(), discard=lambda gone: discard(checkpoints, gone.checkpoint)
    )
    answers = Answers(server, life)
    async with await asyncio.start_unix_server(answers.converse, life.socket, limit=MAX_LINE_BYTES):
        tell(life=life.number, ready=True)
        await asyncio.Event().wait()


def void(value: object) -> None:
    """Take a value that is not wanted."""


class Answers:
    """What a life answers."""

    def __init__(self, server: ControlServer, life: Life) -> None:
        """For one server."""
        self._server, self._life = server, life
        self._methods: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "submit": self._submit,
            "start": self._start,
            "offers": self._offers,
            "report": self._report,
            "tail": self._tail,
        }

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other, until the client goes."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(json.loads(line))).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": await self._methods[request["ask"]](request["body"])}
        except SteerwayError as error:
            return {"error": error.slug, "reason": error.reason}
        except Exception as error:
            surprise(self._life, traceback.format_exc())
            return {"error": "surprise", "reason": repr(error)}

    async def _submit(self, body: Any) -> Any:
        return (await self._server.submit(Command.model_validate(body))).model_dump(mode="json")

    async def _start(self, body: Any) -> Any:
        return await self._server.start_generation(START.validate_python(body))

    async def _offers(self, body: Any) -> Any:
        return (await self._server.offers(*body)).model_dump(mode="json")

    async def _report(self, body: Any) -> Any:
        return await self._server.report(Report.model_validate(body))

    async def _tail(self, body: Any) -> Any:
        return [entry.model_dump(mode="json") for entry in await self._server.tail(*body)]


if __name__ == "__main__":
    main()
    sys.exit(0)
