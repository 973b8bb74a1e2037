"""State of one rank as its monitor sees it: from /proc, and from the reports of the rank's watchdog thread.

Standard library only, see `monitor`.
"""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from control_plane.storage.private import write_file
from ray_jobs.monitor.processes import Descendants, is_same, status_of
from ray_jobs.monitor.verdict import RankFailure, RankStatus, Timeouts

STALE_AFTER_S = 2.0
"""After so long without a report of the rank's watchdog thread its position is unknown: the GIL is held."""

LOOK_AFTER_CHILDREN_S = 1.0


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Settings that a rank sends to its monitor first. `signal`, if any, makes the rank write its stacks."""

    rank: int
    world_size: int
    pid: int
    node: str
    thread: int
    signal: int | None
    address: str
    port: int
    token: str
    exit_reason_file: str
    tick_s: float
    hang_after_s: float
    user_code_s: float
    deadlock_s: float

    @property
    def timeouts(self) -> Timeouts:
        """Time limits for failure detection."""
        return Timeouts(self.hang_after_s, self.user_code_s, self.deadlock_s)


class MonitoredRank:
    """State of the monitored rank."""

    def __init__(self, settings: MonitorSettings, dump: int) -> None:
        self._settings, self._dump = settings, dump
        self.account = RankStatus(settings.rank, settings.pid, settings.node)
        status = status_of(settings.pid)
        self.started = status.started if status else 0
        self.offspring = Descendants(settings.pid, status.session if status else 0)
        self.is_stopped = False
        self._progress: tuple[Any, ...] = ()
        self._unreported_s = self._looked_s = 0.0
        self._has_asked = False

    def hear(self, report: dict[str, Any]) -> None:
        """Take in a report of the rank's watchdog thread, or of a process that it has forked."""
        if "child" in report:
            self.offspring.add(int(report["child"]))
            return
        progress = (report["beats"], report["made"], report["phase"])
        same = progress == self._progress
        account = self.account
        self._progress, self._unreported_s = progress, 0.0
        self.account = replace(
            account,
            phase=str(report["phase"]),
            over=account.over or bool(report["over"]),
            quiet_s=account.quiet_s if same else 0.0,
            inside_s=account.inside_s if same and report["waits"] == account.waits else 0.0,
            waits=report["waits"],
            slowest_step_s=float(report["slowest_step_s"]),
            at=str(report["at"]),
        )

    def tick(self, tick_s: float) -> None:
        """Read the state of the process and advance the clocks."""
        settings, account = self._settings, self.account
        try:
            status = status_of(settings.pid)
        except OSError:
            return  # unknown, which is not a failure
        if status is None or status.started != self.started:
            self.account = replace(account, gone_s=account.gone_s + max(tick_s, 1e-3))
            return
        self.is_stopped = status.is_stopped
        self._unreported_s += tick_s
        is_known = self._unreported_s < STALE_AFTER_S
        self.account = replace(
            account,
            quiet_s=account.quiet_s + tick_s,
            stopped_s=account.stopped_s + tick_s if status.is_stopped else 0.0,
            inside_s=account.inside_s + tick_s if is_known and account.waits else 0.0,
            waits=account.waits if is_known else "",
            at=account.at if is_known else self._dumped_line(),
        )
        self._looked_s += tick_s
        if self._looked_s >= LOOK_AFTER_CHILDREN_S:
            self._looked_s = 0.0
            with contextlib.suppress(OSError):
                self.offspring.look()

    def _dumped_line(self) -> str:
        """Return the line in which the GIL is held. Requests a stack dump once, shortly before the timeout."""
        settings = self._settings
        soon = self.account.quiet_s >= settings.user_code_s - 4 * settings.tick_s
        if settings.signal is None or not soon:
            return ""
        from ray_jobs.monitor.stacks import parse_dump  # imported late: it imports as much as all the rest

        if not self._has_asked:
            self._has_asked = True
            os.ftruncate(self._dump, 0)
            os.lseek(self._dump, 0, os.SEEK_SET)
            with contextlib.suppress(OSError):
                os.kill(settings.pid, settings.signal)
        text = os.pread(self._dump, 1 << 20, 0).decode("utf-8", "replace")
        return parse_dump(text, settings.thread)

    def end(self, verdict: RankFailure) -> None:
        """Write the exit reason for the driver, and kill the rank."""
        if not is_same(self._settings.pid, self.started):
            return
        write_exit_reason(Path(self._settings.exit_reason_file), self._settings.pid, verdict)
        with contextlib.suppress(OSError):
            os.kill(self._settings.pid, signal.SIGKILL)


def write_exit_reason(path: Path, pid: int, verdict: RankFailure) -> None:
    """Write the exit reason of a rank that is terminated, for the failure reporter."""
    content = {
        "pid": pid,
        "reason": verdict.reason,
        "time_s": time.time(),
        "phase": verdict.phase,
        "kind": verdict.kind,
        "ranks": list(verdict.ranks),
    }
    with contextlib.suppress(OSError):
        write_file(path, json.dumps(content))
