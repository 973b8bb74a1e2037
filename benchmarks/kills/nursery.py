"""The other end of `kills_life`: asks for lives, and hears when each one serves and how it ends."""

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

from benchmarks.kills.life import Life
from control_plane.core.model.errors import Unavailable

START_LIMIT_S = 60.0
LOOK_S = 0.002


class Being:
    """One life, from here."""

    def __init__(self, life: Life) -> None:
        """Asked for, just now."""
        self.life, self.asked_s = life, time.monotonic()
        self.pid: int | None = None
        self.events = queue.Queue[dict[str, Any]]()
        self.code: int | None = None
        self.serving_after_s: float | None = None

    def wait(self, limit_s: float) -> bool:
        """Wait for the next event. False if there was none."""
        try:
            event = self.events.get(timeout=max(0.0, limit_s))
        except queue.Empty:
            return False
        if "ready" in event:
            self.serving_after_s = event["at_s"] - self.asked_s
        self.code = event.get("code", self.code)
        return True

    def wait_serving(self, stops_at: str | None = None, limit_s: float = START_LIMIT_S) -> bool:
        """Wait until it serves. False if it ended, or stopped where it was to stop, before."""
        deadline = time.monotonic() + limit_s
        while self.serving_after_s is None and self.code is None:
            heard = self.wait(LOOK_S if stops_at else deadline - time.monotonic())
            if stops_at in self.fired():
                break
            if not heard and time.monotonic() > deadline:
                raise Unavailable(f"a control server neither served nor died within {limit_s:g} s")
        return self.serving_after_s is not None

    def wait_end(self, limit_s: float) -> bool:
        """Wait until it ends. False if it did not, so far."""
        deadline = time.monotonic() + limit_s
        while self.code is None and self.wait(deadline - time.monotonic()):
            pass
        return self.code is not None

    def kill(self) -> None:
        """SIGKILL, from outside; waits for the end."""
        self.signal(signal.SIGKILL)
        if not self.wait_end(START_LIMIT_S):
            raise Unavailable("a control server outlived SIGKILL")

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.pid is not None and self.code is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def fired(self) -> list[str]:
        """The points at which something was done so far."""
        diary = self.life.diary()
        return diary.read_text().split() if diary.exists() else []


class Nursery:
    """Where lives begin. Use `nursery()`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Over a process that runs `kills_life`."""
        self._process, self._beings, self._count = process, dict[int, Being](), 0
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, **life: Any) -> Being:
        """Ask for a life."""
        self._count += 1
        being = self._beings[self._count] = Being(Life(number=self._count, **life))
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(being.life)).encode() + b"\n")
        self._process.stdin.flush()
        return being

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line) | {"at_s": time.monotonic()}
            being = self._beings[event["life"]]
            if "pid" in event:
                being.pid = event["pid"]
            else:
                being.events.put(event)
            if "code" in event:
                del self._beings[event["life"]]


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery; every life in it ends with the block."""
    command = [sys.executable, "-m", "benchmarks.kills.life"]
    # From here, what is planted by a test can be imported.
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(START_LIMIT_S)
