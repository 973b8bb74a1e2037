"""Control servers as plain processes, forked from one that has imported everything, each serving on a socket.

    python -m benchmarks.kills.server_process    reads a JSON object per line: a server to start; writes one per event

Forking costs milliseconds, so that a campaign can afford thousands of kills. A process has the real control server over
the real journal, without Ray, the gateway, and the metrics, on which no decision depends. Requests and responses are
lines of JSON.
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
from control_plane.api.messages import Measurements, MetricSummary, Point, Report, StepRange
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
"""Exit codes of a process: a disk error during the start; an unexpected error, which is in the file of errors."""

PR_SET_PDEATHSIG = 1
MAX_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Control server process to start. `planted`: a `module:function` that plants a fault into the process first."""

    number: int
    root: str
    socket: str
    failpoints: str = ""
    power: bool = False
    planted: str | None = None

    def diary(self) -> Path:
        """Return the file with the failpoints that have fired, one per line."""
        return Path(self.root) / f"diary-{self.number}"

    def notes(self) -> Path:
        """Return the file with the synced sizes, see `power`."""
        return Path(self.root) / "synced"

    def surprises(self) -> Path:
        """Return the file with unexpected errors."""
        return Path(self.root) / "surprises"

    def journal(self) -> Path:
        """Return the folder of the journal."""
        return Path(self.root) / "journal"


class NoMeasurements:
    """Metrics store that keeps nothing."""

    def add(self, points: Sequence[Point]) -> None:
        """Drop the points."""

    def read(self, after: int, limit: int, names: Sequence[str] = ()) -> Measurements:
        """Return no points."""
        return Measurements(points=(), cursor=0)

    def latest(self) -> dict[str, float]:
        """Return no values."""
        return {}

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """Nothing."""
        return ()


def main() -> None:
    """Fork a process for each line, and report how each one ends. Ends with its input; the processes end with it."""
    libc, running, waiting = ctypes.CDLL(None), dict[int, tuple[int, int]](), b""
    gc.freeze()
    while True:
        ready, _, _ = select.select([0, *running], [], [])
        for descriptor in ready:
            if descriptor in running:
                number, pid = running.pop(descriptor)
                os.close(descriptor)
                tell(number=number, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if 0 in ready:
            if not (data := os.read(0, 65536)):
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                spec = ServerSpec(**json.loads(line))
                if (pid := os.fork()) == 0:
                    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                    serve(spec)
                tell(number=spec.number, pid=pid)
                running[os.pidfd_open(pid)] = spec.number, pid


def tell(**event: Any) -> None:
    """Write an event to stdout. The line is short enough for an atomic write."""
    os.write(1, json.dumps(event).encode() + b"\n")


def serve(spec: ServerSpec) -> None:
    """Serve until killed. Never returns."""
    try:
        asyncio.run(_serve(spec))
    except Unavailable:
        os._exit(NOT_BEGUN)
    except BaseException:
        surprise(spec, traceback.format_exc())
        os._exit(SURPRISED)
    os._exit(0)


def surprise(spec: ServerSpec, what: str) -> None:
    """Append an unexpected error to the file of errors."""
    with spec.surprises().open("a") as file:
        file.write(f"process {spec.number}: {what}\n")


async def _serve(spec: ServerSpec) -> None:
    diary = os.open(spec.diary(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if spec.planted:
        module, _, function = spec.planted.partition(":")
        getattr(importlib.import_module(module), function)()
    failpoints.arm(spec.failpoints, tell=lambda point: void(os.write(diary, f"{point}\n".encode())))
    disk = NotedDisk(spec.notes()).disk if spec.power else Disk()
    checkpoints = Path(spec.root) / "checkpoints"
    journal = Journal.open(spec.journal(), disk)
    server = ControlServer(
        CREATED, journal, NoMeasurements(), discard=lambda gone: discard(checkpoints, gone.checkpoint)
    )
    answers = Answers(server, spec)
    async with await asyncio.start_unix_server(answers.converse, spec.socket, limit=MAX_LINE_BYTES):
        tell(number=spec.number, ready=True)
        await asyncio.Event().wait()


def void(value: object) -> None:
    """Discard a value."""


class Answers:
    """Requests of clients, dispatched to the control server."""

    def __init__(self, server: ControlServer, spec: ServerSpec) -> None:
        """Serve one control server."""
        self._server, self._spec = server, spec
        self._methods: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "submit": self._submit,
            "start": self._start,
            "offers": self._offers,
            "report": self._report,
            "tail": self._tail,
        }

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests one after the other, until the client disconnects."""
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
            surprise(self._spec, traceback.format_exc())
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
