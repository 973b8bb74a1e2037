"""Process pool for control servers: the client of `server_process`, which starts them and reports their ends."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kills.server_process import ServerSpec
from control_plane.core.model.errors import Unavailable

START_LIMIT_S = 60.0
LOOK_S = 0.002


class ServerProcess:
    """Handle of one control server process."""

    def __init__(self, spec: ServerSpec) -> None:
        """Start the clock; the process was requested just now."""
        self.spec, self.asked_s = spec, time.monotonic()
        self.pid: int | None = None
        self.events = queue.Queue[dict[str, Any]]()
        self.code: int | None = None
        self.serving_after_s: float | None = None

    def wait(self, limit_s: float) -> bool:
        """Wait for the next event; return False if there was none."""
        try:
            event = self.events.get(timeout=max(0.0, limit_s))
        except queue.Empty:
            return False
        if "ready" in event:
            self.serving_after_s = event["at_s"] - self.asked_s
        self.code = event.get("code", self.code)
        return True

    def wait_serving(self, stops_at: str | None = None, limit_s: float = START_LIMIT_S) -> bool:
        """Wait until it serves; return False if it ended, or stopped at the failpoint `stops_at`, before that."""
        deadline = time.monotonic() + limit_s
        while self.serving_after_s is None and self.code is None:
            heard = self.wait(LOOK_S if stops_at else deadline - time.monotonic())
            if stops_at in self.fired():
                break
            if not heard and time.monotonic() > deadline:
                raise Unavailable(f"a control server neither served nor ended within {limit_s:g} s")
        return self.serving_after_s is not None

    def wait_end(self, limit_s: float) -> bool:
        """Wait until it ends; return False if it has not."""
        deadline = time.monotonic() + limit_s
        while self.code is None and self.wait(deadline - time.monotonic()):
            pass
        return self.code is not None

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.signal(signal.SIGKILL)
        if not self.wait_end(START_LIMIT_S):
            raise Unavailable("a control server survived SIGKILL")

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.pid is not None and self.code is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def fired(self) -> list[str]:
        """Return the failpoints that have fired so far."""
        diary = self.spec.diary()
        return diary.read_text().split() if diary.exists() else []


class ProcessPool:
    """Pool that forks control server processes. Use `process_pool()`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """`process` runs the module `server_process`."""
        self._process, self._servers, self._count = process, dict[int, ServerProcess](), 0
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, **spec: Any) -> ServerProcess:
        """Start a control server process; the arguments are those of `ServerSpec`."""
        self._count += 1
        server = self._servers[self._count] = ServerProcess(ServerSpec(number=self._count, **spec))
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(server.spec)).encode() + b"\n")
        self._process.stdin.flush()
        return server

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line) | {"at_s": time.monotonic()}
            server = self._servers[event["number"]]
            if "pid" in event:
                server.pid = event["pid"]
            else:
                server.events.put(event)
            if "code" in event:
                del self._servers[event["number"]]


@contextmanager
def process_pool() -> Iterator[ProcessPool]:
    """Open a pool; all of its processes end with the context."""
    command = [sys.executable, "-m", "benchmarks.kills.server_process"]
    # From this folder, a test's planted faults can be imported.
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    try:
        yield ProcessPool(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(START_LIMIT_S)
