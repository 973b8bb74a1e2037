"""Supervisor of the console, and health checks of the cluster's services.

    python -m cluster.keeper

It restarts the console whenever that ends, with exponential backoff. Ray does the same for the gateway, whose processes
are its actors. A stopped service is killed, so that its supervisor restarts it (see `stopped`). Every second it checks
which services answer, and writes changes to `parts.json` in the home: `steer nodes` shows them. A console that has
never answered is not restarted: it would only fail again.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.parts import answers
from cluster.record import read_record, utc_now
from cluster.stopped import StoppedServices
from control_plane.config import Settings, settings
from control_plane.programs import program
from control_plane.storage.private import replace_file

POLL_S = 1.0
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
HEALTHY_AFTER_S = 15.0
"""The backoff is reset for a console that has lived so long."""

MISSES = 3
"""Failed health checks in a row before a service is reported as down: two cores may be busy for a second or two."""

PR_SET_PDEATHSIG = 1


class PartView(BaseModel):
    """State of one service. `since`: ISO 8601, the time of the last change of `up`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: bool
    since: str
    restarts: int = 0


def parts_file(where: Settings) -> Path:
    """Return the path of the keeper's state file."""
    return where.home / "parts.json"


def read_parts(where: Settings) -> dict[str, PartView]:
    """Return the services' states as last written by the keeper; empty if there is no readable file."""
    try:
        return {name: PartView.model_validate(view) for name, view in json.loads(parts_file(where).read_text()).items()}
    except (OSError, ValueError, ValidationError, AttributeError):
        return {}


def table(views: dict[str, PartView]) -> str:
    """Format the services' states as a table, one line each."""
    rows = [("SERVICE", "STATE", "SINCE", "RESTARTS")]
    rows += [(name, "up" if view.up else "down", view.since, str(view.restarts)) for name, view in views.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


class HealthChecks:
    """Health checks of the services. Writes their states when they change."""

    def __init__(self, where: Settings, ask: Callable[[str], bool] = answers) -> None:
        self._where, self._ask = where, ask
        self._urls = {
            "gateway": where.own_gateway_health_url,
            "console": where.own_console_health_url,
        }
        self._views: dict[str, PartView] = {}
        self._missed: dict[str, int] = {}

    def look(self, restarts: int) -> None:
        """Check every service once. `restarts`: how often the console was restarted."""
        views = dict(self._views)
        for name, url in self._urls.items():
            answered = self._ask(url)
            self._missed[name] = 0 if answered else self._missed.get(name, 0) + 1
            before = views.get(name)
            up = answered or (before is not None and before.up and self._missed[name] < MISSES)
            count = restarts if name == "console" else 0
            if before is None or (before.up, before.restarts) != (up, count):
                since = utc_now() if before is None or before.up != up else before.since
                views[name] = PartView(up=up, since=since, restarts=count)
        if views != self._views:
            self._views = views
            content = {name: view.model_dump() for name, view in views.items()}
            replace_file(parts_file(self._where), json.dumps(content) + "\n")

    def is_up(self, name: str) -> bool:
        """Return whether a service has answered and is not down since."""
        return name in self._views and self._views[name].up


class Keeper:
    """Supervisor of one program, which it restarts until the keeper is ended."""

    def __init__(
        self,
        command: Sequence[str],
        say: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        log: int | None = None,
    ) -> None:
        """Start the program, with this process's environment and output if none are given. `log`: a descriptor."""
        self._command, self._say = list(command), say
        self._environment, self._log = environment, log
        self._ending = False
        self._waits_s = FIRST_WAIT_S
        self._start_at = 0.0
        self._has_answered = False
        self.restarts = 0
        self._start()

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            self._command,
            preexec_fn=_die_with(os.getpid()),
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )

    def end(self) -> None:
        """Terminate the program and do not restart it."""
        self._ending = True
        if self._process is not None:
            self._process.terminate()

    @property
    def pid(self) -> int | None:
        """Pid of the running program, or None."""
        return None if self._process is None else self._process.pid

    def answered(self) -> None:
        """Record that the program has answered: from now on it is restarted."""
        self._has_answered = True

    def look(self) -> int | None:
        """Restart the program if it has ended. Returns the exit code if the keeper must end, too, else None."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return None
            if self._ending or not self._has_answered:
                return code
            if time.monotonic() - self._started_at >= HEALTHY_AFTER_S:
                self._waits_s = FIRST_WAIT_S
            self._say(f"the console ended with exit code {code}; restarting it in {self._waits_s:g} s")
            self._process, self._start_at = None, time.monotonic() + self._waits_s
            self._waits_s = min(2 * self._waits_s, MAX_WAIT_S)
        if self._ending:
            return 0
        if time.monotonic() >= self._start_at:
            self.restarts += 1
            self._start()
        return None


def _die_with(parent: int) -> Callable[[], None]:
    """Return a function for a child process that makes it end with the keeper, which frees its port."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _members(where: Settings) -> list[psutil.Process]:
    record = read_record(where)
    return [] if record is None else record.members()


def say(line: str) -> None:
    """Print a line to the keeper's log, with the time."""
    print(f"{utc_now()} {line}", flush=True)


def main() -> int:
    """Supervise until a signal comes, or until the console ends without ever having answered."""
    where = settings()
    keeper = Keeper(program("ui"), say)
    watch = HealthChecks(where)
    stopped = StoppedServices(lambda: _members(where), say)

    def end(_signum: int, _frame: FrameType | None) -> None:
        keeper.end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    while (code := keeper.look()) is None:
        watch.look(keeper.restarts)
        if watch.is_up("console"):
            keeper.answered()
        stopped.look(keeper.pid)
        time.sleep(POLL_S)
    parts_file(where).unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
