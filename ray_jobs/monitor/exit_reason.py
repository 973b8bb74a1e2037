"""Exit reason of a rank: written by the rank itself if it can, and read by the failure reporter.

The file `RUN/logs/rank-N.died.json` holds `reason`, a sentence; `time_s` and `pid`; `signature`, which is equal for
equal failures; `step`, the last completed one. The watchdog writes `kind` and `phase` instead of the last two.
"""

import json
import logging
import os
import re
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_paths
from typing import Any

from control_plane.core.rules.crash_loop import MAX_CAUSE_CHARS, PEER_LOST, SIGNAL
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE, write_file

log = logging.getLogger(__name__)

MAX_AGE_S = 60.0
"""An older exit reason is one of an earlier start."""

CRASHED = re.compile(r"Fatal Python error: (?P<name>.+)")
FRAME = re.compile(r'File "(?P<path>.+)", line (?P<line>\d+) in (?P<function>.+)')
SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
"""Names of signals in the output of Python's fault handler."""

OF_A_PEER = re.compile(
    r"connection (?:was )?(?:closed|reset|refused)|broken pipe|socket closed|connection aborted|NCCL communicator was "
    r"aborted|remote process exited|recvValue failed|sendBytes failed",
    re.IGNORECASE,
)
"""Messages of a collective's backend when another rank is gone."""

OURS = str(Path(__file__).resolve().parents[2])
LIBRARIES = tuple({get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True, slots=True)
class ExitReason:
    """Recorded reason for a rank's end. Without a `signature` only the sentence is known."""

    reason: str
    signature: str = ""
    step: int | None = None


def signature_of(error: BaseException) -> str:
    """Return the exception's type and where it was raised: the innermost frame of the script, and the innermost of all.

    Equal for equal failures: without the message, and without the folders of paths.
    """
    if OF_A_PEER.search(str(error)):
        return PEER_LOST
    frames = traceback.extract_tb(error.__traceback__)
    innermost = [frame for frame in frames if not frame.filename.startswith("<frozen")][-1:]
    of_script = [frame for frame in frames if _is_of_a_script(frame.filename)][-1:]
    places = dict.fromkeys(
        f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in (*of_script, *innermost)
    )
    signature = f"{type(error).__name__} at {', '.join(places)}" if places else type(error).__name__
    return signature[:MAX_CAUSE_CHARS]


def _is_of_a_script(path: str) -> bool:
    is_a_library = path.startswith((*LIBRARIES, "<")) or (path.startswith(OURS) and "/ray_jobs/" in path)
    return not is_a_library and "/site-packages/" not in path


def write(files: RunFiles, rank: int, reason: str, signature: str, step: int | None) -> None:
    """Write the exit reason. Logs an `OSError` and does not raise it."""
    content = {"pid": os.getpid(), "reason": reason, "time_s": time.time(), "signature": signature, "step": step}
    try:
        write_file(files.exit_reason(rank), json.dumps(content))
    except OSError as error:
        log.warning("the exit reason of this rank could not be written: %s", error)


def begin(files: RunFiles, rank: int) -> None:
    """Remove the exit reason of an earlier start, and enable Python's fault handler with a file of this rank."""
    import faulthandler

    try:
        files.exit_reason(rank).unlink(missing_ok=True)
        # It stays open for the life of the process: the handler writes to its descriptor.
        descriptor = os.open(files.crash(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        faulthandler.enable(descriptor, all_threads=False)
    except OSError as error:
        log.warning("a crash of this rank will not be recorded: %s", error)


def read(files: RunFiles, rank: int) -> ExitReason | None:
    """Return the recent exit reason of a rank, or None."""
    try:
        content = json.loads(files.exit_reason(rank).read_text())
        if time.time() - float(content["time_s"]) < MAX_AGE_S:
            step = content.get("step")
            return ExitReason(str(content["reason"]), _signature_in(content), step if isinstance(step, int) else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return _crash(files.crash(rank))


def _signature_in(content: dict[str, Any]) -> str:
    if isinstance(content.get("signature"), str):
        return str(content["signature"])[:MAX_CAUSE_CHARS]
    kind, phase = content.get("kind"), content.get("phase")
    return f"{kind} while {phase}" if kind and phase else ""


def _crash(path: Path) -> ExitReason | None:
    """Return the exit reason in the output of Python's fault handler, or None."""
    try:
        text = path.read_text(errors="replace") if time.time() - path.stat().st_mtime < MAX_AGE_S else ""
    except OSError:
        return None
    crash = CRASHED.search(text)
    if crash is None:
        return None
    name = SIGNALS.get(crash["name"].strip(), crash["name"].strip())
    frames = list(FRAME.finditer(text, crash.end()))  # the innermost one first
    of_script = [frame for frame in frames if _is_of_a_script(frame["path"])][:1]
    places = dict.fromkeys(
        f"{Path(frame['path']).name}:{frame['line']} in {frame['function']}" for frame in (*of_script, *frames[:1])
    )
    place = f" at {', '.join(places)}" if places else ""
    return ExitReason(f"it crashed: {name}{place}", f"{SIGNAL}{name}{place}"[:MAX_CAUSE_CHARS])
