"""Stack inspection of a training thread: whether it is in a collective, waits for its GPU or runs user code, and where.

Sampled from another thread, twice a second, without stopping it. While a C call holds the GIL no thread can sample;
then a monitor has `faulthandler` write the line, in a signal handler.
"""

import faulthandler
import importlib.util
import linecache
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ray_jobs.monitor.verdict import Waits

STANDARD = sysconfig.get_paths()["stdlib"]
OURS = str(Path(__file__).parents[1])
WAITING = re.compile(r"\b(wait|synchronize|barrier|monitored_barrier)\(|\bitem\(\)")
NOT_THE_RANKS = ("checkpoint", "elastic", "launcher", "run.py", "fsdp", "pipelining")
"""Parts of torch.distributed in which a thread does not wait for other ranks: it writes files, or runs a model."""

MAX_CHARS = 300


@dataclass(frozen=True, slots=True)
class StackPosition:
    """Sampled position of a thread. `at`, for messages: the innermost line of the user's own code."""

    waits: Waits
    at: str


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else f"no {package}"


class Stacks:
    """Sampler of one thread. `on_devices`: collectives are NCCL's, so that a thread waits for them on the GPU."""

    def __init__(self, thread: int, on_devices: bool) -> None:
        self._thread, self._on_devices = thread, on_devices
        torch = _folder("torch")
        self._distributed = os.path.join(torch, "distributed") + os.sep
        self._deepspeed = _folder("deepspeed") + os.sep
        self._data = os.path.join(torch, "utils", "data") + os.sep
        self._libraries = tuple(_folder(name) + os.sep for name in ("torch", "deepspeed", "accelerate", "transformers"))

    def look(self) -> StackPosition:
        """Return the current position of the thread."""
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return StackPosition("", "")
        return StackPosition(self._waits(frame), _told(frame))

    def _waits(self, frame: FrameType) -> Waits:
        while frame.f_back is not None and _is_wrapper(frame):
            frame = frame.f_back
        path = frame.f_code.co_filename
        if path.startswith(self._distributed):
            return "" if path[len(self._distributed) :].startswith(NOT_THE_RANKS) else "collective"
        if path == os.path.join(OURS, "collectives.py") or path.startswith(os.path.join(self._deepspeed, "comm")):
            return "collective"
        if path.startswith(self._deepspeed) and WAITING.search(linecache.getline(path, frame.f_lineno)):
            return "collective"
        if self._on_devices and path.startswith(self._libraries) and not path.startswith(self._data):
            return "device"
        return ""


def _is_wrapper(frame: FrameType) -> bool:
    """Return whether a frame only logs or times a call, and does not wait itself."""
    return frame.f_code.co_filename.endswith(("c10d_logger.py", "contextlib.py"))


def _told(innermost: FrameType) -> str:
    frames = list(_outwards(innermost))
    of_the_user = next((frame for frame in frames if _is_users(frame.f_code.co_filename)), None)
    frame = of_the_user or innermost
    return format_line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_users(path: str) -> bool:
    """Return whether a file is the user's: neither Python's, nor a library's, nor Steerway's."""
    inner = ("<", STANDARD, OURS)
    return not path.startswith(inner) and "site-packages" not in path and "dist-packages" not in path


def format_line(path: str, line: int, name: str) -> str:
    """Format one line of a stack for a message."""
    return f"at {path}:{line} in {name}"[:MAX_CHARS]


FRAME = re.compile(r'^  File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<name>\S+)', re.MULTILINE)


def parse_dump(text: str, thread: int) -> str:
    """Return `StackPosition.at` from a dump of all threads by `faulthandler`; empty if the thread is not in it."""
    for block in text.split("\n\n"):
        if not re.match(rf"(Current thread|Thread) 0x0*{thread:x} ", block):
            continue
        frames = [(frame["path"], int(frame["line"]), frame["name"]) for frame in FRAME.finditer(block)]
        if frames:
            return format_line(*next((frame for frame in frames if _is_users(frame[0])), frames[0]))
    return ""


def write_on_signal(file: int) -> int | None:
    """Install a signal handler that writes the stacks of all threads into that file, even while the GIL is held.

    Returns the signal, a real-time one without another handler, or None if there is none.
    """
    caught = int(next(line.split()[1] for line in _status_lines() if line.startswith("SigCgt")), 16)
    for number in range(signal.SIGRTMIN + 6, signal.SIGRTMAX):
        if not caught >> (number - 1) & 1:
            faulthandler.register(number, file=file, all_threads=True, chain=False)
            return number
    return None


def _status_lines() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()
