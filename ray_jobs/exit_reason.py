"""Why a rank ended: written by the rank itself where it can, and read by whoever finds it dead.

The file `RUN/logs/rank-N.died.json` holds `reason`, a sentence; `time_s` and `pid`; `signature`, which says the same of
the same failure; `step`, the last one that was made. The watchdog writes its own `kind` and `phase` instead.
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

from control_plane.core.crash_loop import MAX_CAUSE_CHARS, PEER_LOST, SIGNAL
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE, write_file

log = logging.getLogger(__name__)

MAX_AGE_S = 60.0
"""An older one is an earlier start's."""

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
"""Python's words for what its fault handler was called for."""

OF_A_PEER = re.compile(
    r"connection (?:was )?(?:closed|reset|refused)|broken pipe|socket closed|connection aborted|NCCL communicator was "
    r"aborted|remote process exited|recvValue failed|sendBytes failed",
    re.IGNORECASE,
)
"""How a collective's backend says that another rank is gone."""

OURS = str(Path(__file__).resolve().parents[1])
LIBRARIES = tuple({get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True, slots=True)
class ExitReason:
    """What a rank left behind. Without a `signature` nothing is known but the sentence."""

    reason: str
    signature: str = ""
    step: int | None = None


def signature_of(error: BaseException) -> str:
    """The exception's type and where it was raised: the innermost frame of the script, and the innermost of all.

    The same for the same failure: no message, and of a path the name only.
    """
    if OF_A_PEER.search(str(error)):
        return PEER_LOST
    frames = traceback.extract_tb(error.__traceback__)
    innermost = [frame for frame in frames if not frame.filename.startswith("<frozen")][-1:]
    of_script = [frame for frame in frames if _is_of_a_script(frame.filename)][-1:]
    places = dict.fromkeys(
        f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in (*of_script, *innermost)
    )
    told = f"{type(error).__name__} at {', '.join(places)}" if places else type(error).__name__
    return told[:MAX_CAUSE_CHARS]


def _is_of_a_script(path: str) -> bool:
    is_a_library = path.startswith((*LIBRARIES, "<")) or (path.startswith(OURS) and "/ray_jobs/" in path)
    return not is_a_library and "/site-packages/" not in path


def note(files: RunFiles, rank: int, reason: str, signature: str, step: int | None) -> None:
    """Leave it behind. A rank that is failing does not fail for this."""
    words = {"pid": os.getpid(), "reason": reason, "time_s": time.time(), "signature": signature, "step": step}
    try:
        write_file(files.last_words(rank), json.dumps(words))
    except OSError as error:
        log.warning("why this rank ends was not written down: %s", error)


def begin(files: RunFiles, rank: int) -> None:
    """Forget what an earlier start's rank left behind, and have Python's fault handler write where this one's does."""
    import faulthandler

    try:
        files.last_words(rank).unlink(missing_ok=True)
        # It stays open for the life of the process: the handler writes to its descriptor.
        descriptor = os.open(files.crash(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        faulthandler.enable(descriptor, all_threads=False)
    except OSError as error:
        log.warning("a crash of this rank will leave no trace: %s", error)


def read(files: RunFiles, rank: int) -> ExitReason | None:
    """What the rank left behind just now, or None."""
    try:
        told = json.loads(files.last_words(rank).read_text())
        if time.time() - float(told["time_s"]) < MAX_AGE_S:
            step = told.get("step")
            return ExitReason(str(told["reason"]), _signature_in(told), step if isinstance(step, int) else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return _crash(files.crash(rank))


def _signature_in(told: dict[str, Any]) -> str:
    if isinstance(told.get("signature"), str):
        return str(told["signature"])[:MAX_CAUSE_CHARS]
    kind, phase = told.get("kind"), told.get("phase")
    return f"{kind} while {phase}" if kind and phase else ""


def _crash(path: Path) -> ExitReason | None:
    """What Python's fault handler wrote when a signal ended the process."""
    try:
        text = path.read_text(errors="replace") if time.time() - path.stat().st_mtime < MAX_AGE_S else ""
    except OSError:
        return None
    found = CRASHED.search(text)
    if found is None:
        return None
    name = SIGNALS.get(found["name"].strip(), found["name"].strip())
    frames = list(FRAME.finditer(text, found.end()))  # the innermost one first
    of_script = [frame for frame in frames if _is_of_a_script(frame["path"])][:1]
    places = dict.fromkeys(
        f"{Path(frame['path']).name}:{frame['line']} in {frame['function']}" for frame in (*of_script, *frames[:1])
    )
    place = f" at {', '.join(places)}" if places else ""
    return ExitReason(f"it crashed: {name}{place}", f"{SIGNAL}{name}{place}"[:MAX_CAUSE_CHARS])
