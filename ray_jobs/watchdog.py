"""A rank's part in the watch over all ranks: it tells its monitor what goes on, and ends itself when told why.

    arrange     collective: where rank 0's monitor listens, and the token that all of them know
    Watchdog    one rank's: starts the monitor beside it (see `rank_monitor`), and again if that is lost

What is a death, and what is none, is decided in `verdict`; `recovery.hang_after_s` and `recovery.user_code_s` are its
bounds. A rank ends itself so that Ray Train sees a death and starts the trainers anew.
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

from ray_jobs.collectives import Collectives
from ray_jobs.monitor_star import verdict_of
from ray_jobs.monitor_ward import Orders, write_last_words
from ray_jobs.rank_monitor import MESSAGE_BYTES
from ray_jobs.rank_processes import machine
from ray_jobs.stacks import Stacks, write_on_signal
from ray_jobs.verdict import Bounds, Verdict

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often a rank tells its monitor where it is."""

MONITOR_TICK_S = 0.25
SLOWEST_STEPS = 50
MONITOR_SILENT_TICKS = 20
"""A monitor that says nothing for so many of our ticks is started again."""

MOST_STARTS = 20
LOOPBACK = "127.0.0.1"
EXIT_HUNG = 75


@dataclass(frozen=True)
class Arrangement:
    """Where rank 0's monitor is found, and by what the others are known to it. `listener` is rank 0's alone."""

    rank: int
    world_size: int
    node: str
    address: str
    port: int
    token: str
    on_devices: bool = False
    listener: socket.socket | None = None


def arrange(collectives: Collectives, node: str) -> Arrangement:
    """Collective. Rank 0 listens where the ranks reach each other anyway, and on the loopback if all are there."""
    import torch.distributed as dist

    machines = collectives.all_gather(machine())
    here = machines[0] and len(set(machines)) == 1
    listener: socket.socket | None = None
    address = LOOPBACK if here else os.environ.get("MASTER_ADDR", LOOPBACK)
    if collectives.rank == 0:
        try:
            listener = _listen(address)
        except OSError as error:
            log.warning("the ranks' monitors cannot listen on %s, and each watches its own rank: %s", address, error)
    port = listener.getsockname()[1] if listener is not None else 0
    port, token = collectives.broadcast_json([port, secrets.token_hex(32)])
    on_devices = dist.get_backend() == "nccl"
    return Arrangement(collectives.rank, collectives.world_size, node, address, port, token, on_devices, listener)


def _listen(address: str) -> socket.socket:
    found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    listener = socket.socket(found[0][0], socket.SOCK_STREAM)
    listener.bind(found[0][4])
    listener.listen(1024)
    return listener


class Watchdog:
    """One rank's. `bite` is called, in a thread of its own, with the verdict; by default the process ends at once."""

    def __init__(
        self,
        bounds: Bounds,
        last_words: Path,
        arrangement: Arrangement,
        bite: Callable[[Verdict], None] | None = None,
    ) -> None:
        """Made in the thread that trains: it is this one's stack that is looked at."""
        self._bounds, self._last_words, self._arrangement = bounds, last_words, arrangement
        self._bite = bite or self._end
        self._training_thread = threading.get_ident()
        self._stacks = Stacks(self._training_thread, arrangement.on_devices)
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
        """Begin to watch. The monitor of the training before this one, if there was any, is let go."""
        global _current
        if _current is not None:
            _current.leave()
        _current = self
        self._start_monitor()
        self._thread.start()

    def stop(self) -> None:
        """The training is over. The monitor stays: rank 0's still hears the others."""
        self._stopped.set()
        self._report()

    def leave(self) -> None:
        """The monitor ends, too."""
        self._stopped.set()
        self._say({"leave": True})
        if self._channel is not None:
            self._channel.close()
        if self._arrangement.listener is not None:
            self._arrangement.listener.close()

    def beat(self, phase: str) -> None:
        """A sign of progress: what comes next is a part of `phase`."""
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
        """The process beside this one."""
        return self._monitor.pid if self._monitor is not None else None

    def tell_of_fork(self) -> None:
        """In a process that was forked: say so, and hold on to nothing that is the rank's."""
        if self._channel is not None and self._monitor is not None:
            self._say({"child": os.getpid()})
            self._channel.close()
        if self._arrangement.listener is not None:
            self._arrangement.listener.close()

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
            return True  # it is slow; that it has ended says `_listen`
        except OSError:
            return False
        return self._channel is not None

    def _listen(self) -> bool:
        """Take what the monitor says; False if there is none any more."""
        try:
            while self._channel is not None and (message := self._channel.recv(MESSAGE_BYTES)):
                self._silent_ticks = 0
                told = json.loads(message)
                if missing := told.get("never_heard"):
                    log.warning(
                        "the monitors of ranks %s cannot reach rank 0's: nobody notices if their nodes are cut off",
                        missing,
                    )
                if "verdict" in told:
                    self._stopped.set()
                    self._bite(verdict_of(told["verdict"]))
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
            log.error("this rank's monitor ended %d times: nobody watches this rank any more", self._starts)
        elif self._starts == 1:
            log.warning("this rank's monitor has ended, and is started again; the rank goes on")
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
        given, (dump, number) = self._arrangement, _dump()
        listening = given.listener.fileno() if given.listener is not None else -1
        files = [theirs.fileno(), dump, listening]
        call = f"main({', '.join(map(str, files))})"
        code = f"import sys; sys.path.append({_ROOT!r}); from ray_jobs.rank_monitor import main; {call}"
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
            orders = Orders(
                rank=given.rank,
                world_size=given.world_size,
                pid=os.getpid(),
                node=given.node,
                thread=self._training_thread,
                signal=number,
                address=given.address,
                port=given.port,
                token=given.token,
                last_words=str(self._last_words),
                tick_s=MONITOR_TICK_S,
                **asdict(self._bounds),
            )
            mine.send(json.dumps(asdict(orders)).encode())
        except OSError as error:
            mine.close()
            log.warning("this rank's monitor was not started: %s", error)
            return
        mine.setblocking(False)
        self._channel = mine
        self._report()

    def _end(self, verdict: Verdict) -> None:
        """Say why, where the driver finds it, and end without waiting for anything that may hang, too."""
        log.error("%s; this rank ends itself", verdict.reason)
        write_last_words(self._last_words, os.getpid(), verdict)
        with suppress(OSError, ValueError):
            faulthandler.dump_traceback()
        logging.shutdown()
        os._exit(EXIT_HUNG)


_ROOT = str(Path(__file__).parents[1])
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
    """The file into which this process writes its stacks, and the signal upon which it does."""
    global _stacks_file
    if _stacks_file is None:
        file = os.memfd_create("steerway-stacks")
        _stacks_file = file, write_on_signal(file)
    return _stacks_file


def _collectives_made() -> int:
    """How many this rank has begun, in all groups."""
    from torch.distributed import distributed_c10d

    try:
        groups: list[Any] = list(distributed_c10d._world.pg_map)
        return sum(int(group._get_sequence_number_for_group()) for group in groups)
    except Exception:  # a group that is being made or ended
        return 0


def _in_forked_process() -> None:
    global _current
    watchdog, _current = _current, None
    if watchdog is not None:
        with suppress(OSError):
            watchdog.tell_of_fork()


os.register_at_fork(after_in_child=_in_forked_process)
