"""Watchdog of a rank: reports progress to its monitor process, and ends the rank on a verdict.

    open_monitor_port   collective: the address of rank 0's monitor, and the token that authenticates all of them
    Watchdog            one rank's: starts the monitor beside it (see `monitor`), and restarts it if it dies

`verdict` decides which ranks have failed; `recovery.hang_after_s` and `recovery.user_code_s` are its timeouts. A rank
ends itself so that Ray Train sees a failure and restarts the trainers.
"""

import faulthandler
import json
import logging
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_jobs.monitor.monitor import MESSAGE_BYTES
from ray_jobs.monitor.processes import machine
from ray_jobs.monitor.stacks import Stacks, write_on_signal
from ray_jobs.monitor.star import verdict_of
from ray_jobs.monitor.verdict import RankFailure, Timeouts
from ray_jobs.monitor.ward import MonitorSettings, write_exit_reason
from ray_jobs.process.collectives import Collectives

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Interval of a rank's reports to its monitor."""

MONITOR_TICK_S = 0.25
SLOWEST_STEPS = 50
MONITOR_SILENT_TICKS = 20
"""A monitor that is silent for so many ticks is restarted."""

MOST_STARTS = 20
LOOPBACK = "127.0.0.1"
EXIT_HUNG = 75


@dataclass(frozen=True)
class MonitorAddress:
    """Address of rank 0's monitor, and the token for it. `listener` is None on all ranks but 0."""

    rank: int
    world_size: int
    node: str
    address: str
    port: int
    token: str
    on_devices: bool = False
    listener: socket.socket | None = None


def open_monitor_port(collectives: Collectives, node: str) -> MonitorAddress:
    """Collective. Open rank 0's listening socket: on the ranks' master address, or the loopback if all are there."""
    import torch.distributed as dist

    machines = collectives.all_gather(machine())
    here = machines[0] and len(set(machines)) == 1
    listener: socket.socket | None = None
    address = LOOPBACK if here else os.environ.get("MASTER_ADDR", LOOPBACK)
    if collectives.rank == 0:
        try:
            listener = _listen(address)
        except OSError as error:
            log.warning(
                "rank 0's monitor cannot listen on %s, so that each monitor only watches its own rank: %s",
                address,
                error,
            )
    port = listener.getsockname()[1] if listener is not None else 0
    port, token = collectives.broadcast_json([port, secrets.token_hex(32)])
    on_devices = dist.get_backend() == "nccl"
    return MonitorAddress(collectives.rank, collectives.world_size, node, address, port, token, on_devices, listener)


def _listen(address: str) -> socket.socket:
    addresses = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    listener = socket.socket(addresses[0][0], socket.SOCK_STREAM)
    listener.bind(addresses[0][4])
    listener.listen(1024)
    return listener


class Watchdog:
    """Watchdog of one rank. `terminate` is called with the verdict, in another thread; by default it exits at once."""

    def __init__(
        self,
        timeouts: Timeouts,
        exit_reason_file: Path,
        hub: MonitorAddress,
        terminate: Callable[[RankFailure], None] | None = None,
    ) -> None:
        """Must be called in the training thread, whose stack is sampled."""
        self._timeouts, self._exit_reason_file, self._hub = timeouts, exit_reason_file, hub
        self._terminate = terminate or self._end
        self._training_thread = threading.get_ident()
        self._stacks = Stacks(self._training_thread, hub.on_devices)
        self._phase = "starting"
        self._beats = 0
        self._steps_s: deque[float] = deque(maxlen=SLOWEST_STEPS)
        self._step_began_s: float | None = None
        self._monitor: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._starts = self._silent_ticks = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="steerway-watchdog", daemon=True)

    def start(self) -> None:
        """Start the watchdog thread and its monitor; end the monitor of an earlier training in this process."""
        global _current
        if _current is not None:
            _current.leave()
        _current = self
        self._start_monitor()
        self._thread.start()

    def stop(self) -> None:
        """End the watchdog after the training. The monitor stays: rank 0's still receives the others' reports."""
        self._stopped.set()
        self._report()

    def leave(self) -> None:
        """End the watchdog and its monitor."""
        self._stopped.set()
        self._say({"leave": True})
        if self._channel is not None:
            self._channel.close()
        if self._hub.listener is not None:
            self._hub.listener.close()

    def beat(self, phase: str) -> None:
        """Register progress. `phase`: what the rank does next."""
        now_s = time.monotonic()
        if self._phase == phase == "training" and self._step_began_s is not None:
            self._steps_s.append(now_s - self._step_began_s)
        is_new = phase != self._phase
        self._step_began_s, self._phase = now_s, phase
        self._beats += 1
        if is_new:
            self._report()

    @property
    def monitor_pid(self) -> int | None:
        """Pid of the monitor process, or None."""
        return self._monitor.pid if self._monitor is not None else None

    def tell_of_fork(self) -> None:
        """Register a forked process with the monitor, from that process, and close its copies of the rank's sockets."""
        if self._channel is not None and self._monitor is not None:
            self._say({"child": os.getpid()})
            self._channel.close()
        if self._hub.listener is not None:
            self._hub.listener.close()

    def _watch(self) -> None:
        due_s = 0.0
        while not self._stopped.is_set():
            _wait_for(self._channel, max(0.0, due_s - time.monotonic()))
            is_there = self._listen()
            if time.monotonic() >= due_s and not self._stopped.is_set():
                due_s = time.monotonic() + TICK_S
                self._silent_ticks += 1
                is_there = self._report() and is_there
                if not is_there or self._silent_ticks > MONITOR_SILENT_TICKS:
                    self._start_again()
            elif not is_there:
                self._stopped.wait(max(0.0, due_s - time.monotonic()))

    def _report(self) -> bool:
        spot = self._stacks.look()
        return self._say(
            {
                "beats": self._beats,
                "made": _collectives_made(),
                "phase": self._phase,
                "waits": spot.waits,
                "at": spot.at,
                "slowest_step_s": max(tuple(self._steps_s), default=0.0),
                "over": self._stopped.is_set(),
            }
        )

    def _say(self, message: dict[str, Any]) -> bool:
        try:
            if self._channel is not None:
                self._channel.send(json.dumps(message).encode())
        except BlockingIOError:
            return True  # the monitor is slow; `_listen` sees whether it has ended
        except OSError:
            return False
        return self._channel is not None

    def _listen(self) -> bool:
        """Handle the messages of the monitor; return False if it has ended."""
        try:
            while self._channel is not None and (message := self._channel.recv(MESSAGE_BYTES)):
                self._silent_ticks = 0
                content = json.loads(message)
                if missing := content.get("never_heard"):
                    log.warning(
                        "the monitors of ranks %s cannot reach rank 0's: a network failure there will not be detected",
                        missing,
                    )
                if "verdict" in content:
                    self._stopped.set()
                    self._terminate(verdict_of(content["verdict"]))
                    return True
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            pass
        return False

    def _start_again(self) -> None:
        if self._starts > MOST_STARTS:
            return
        if self._starts == MOST_STARTS:
            log.error("the monitor of this rank ended %d times: this rank is not monitored any more", self._starts)
        elif self._starts == 1:
            log.warning("the monitor of this rank has ended and is restarted; the rank continues")
        if self._monitor is not None:
            self._monitor.kill()
            self._monitor.wait()
        self._start_monitor()

    def _start_monitor(self) -> None:
        self._starts += 1
        self._silent_ticks = 0
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        hub, (dump, number) = self._hub, _dump()
        listening = hub.listener.fileno() if hub.listener is not None else -1
        files = [theirs.fileno(), dump, listening]
        call = f"main({', '.join(map(str, files))})"
        code = f"import sys; sys.path.append({_ROOT!r}); from ray_jobs.monitor.monitor import main; {call}"
        try:
            with theirs:
                self._monitor = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-E", "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    pass_fds=[file for file in files if file >= 0],
                    start_new_session=True,
                )
            settings = MonitorSettings(
                rank=hub.rank,
                world_size=hub.world_size,
                pid=os.getpid(),
                node=hub.node,
                thread=self._training_thread,
                signal=number,
                address=hub.address,
                port=hub.port,
                token=hub.token,
                exit_reason_file=str(self._exit_reason_file),
                tick_s=MONITOR_TICK_S,
                **asdict(self._timeouts),
            )
            mine.send(json.dumps(asdict(settings)).encode())
        except OSError as error:
            mine.close()
            log.warning("the monitor of this rank could not be started: %s", error)
            return
        mine.setblocking(False)
        self._channel = mine
        self._report()

    def _end(self, verdict: RankFailure) -> None:
        """Write the exit reason for the driver, and exit without waiting for anything that may hang, too."""
        log.error("%s; this rank ends itself", verdict.reason)
        write_exit_reason(self._exit_reason_file, os.getpid(), verdict)
        with suppress(OSError, ValueError):
            faulthandler.dump_traceback()
        logging.shutdown()
        os._exit(EXIT_HUNG)


_ROOT = str(Path(__file__).parents[2])
_current: Watchdog | None = None
_stacks_file: tuple[int, int | None] | None = None


def _wait_for(channel: socket.socket | None, wait_s: float) -> None:
    if channel is None:
        time.sleep(wait_s)
        return
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.poll(wait_s * 1000)


def _dump() -> tuple[int, int | None]:
    """Return the file for this process's stack dumps, and the signal that triggers one."""
    global _stacks_file
    if _stacks_file is None:
        file = os.memfd_create("steerway-stacks")
        _stacks_file = file, write_on_signal(file)
    return _stacks_file


def _collectives_made() -> int:
    """Return how many collectives this rank has begun, in all process groups."""
    from torch.distributed import distributed_c10d

    try:
        groups: list[Any] = list(distributed_c10d._world.pg_map)
        return sum(int(group._get_sequence_number_for_group()) for group in groups)
    except Exception:  # a group that is being created or destroyed
        return 0


def _in_forked_process() -> None:
    global _current
    watchdog, _current = _current, None
    if watchdog is not None:
        with suppress(OSError):
            watchdog.tell_of_fork()


os.register_at_fork(after_in_child=_in_forked_process)
