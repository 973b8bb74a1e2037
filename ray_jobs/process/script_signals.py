"""Signal handlers of scripts: logged and ignored in a worker's thread, where Python cannot install them.

    with signals_in_a_thread():      # around the script, in the thread in which Ray runs it
        ...

Python calls handlers in the main thread only, and raises an error in any other. A script that installs a handler to
save before it is ended works by hand; as a run it does not need it, since `steer stop` saves a checkpoint, and a failed
run is restored from its latest one. A time limit by SIGALRM would have no effect, or would end the process: it still
raises an error, with an explanation.
"""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TIMERS = frozenset({signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF})


@contextmanager
def signals_in_a_thread() -> Iterator[None]:
    """Make `signal.signal`, `alarm` and `setitimer` callable in threads other than the main one, inside the context."""
    originals = signal.signal, signal.alarm, signal.setitimer
    handlers = _Handlers(*originals)
    signal.signal, signal.alarm, signal.setitimer = (
        handlers.signal,
        handlers.alarm,
        handlers.setitimer,
    )
    try:
        yield
    finally:
        signal.signal, signal.alarm, signal.setitimer = originals


class _Handlers:
    """Replacements of the signal functions, and the handlers that the script has asked for."""

    def __init__(self, install: Any, alarm: Any, setitimer: Any) -> None:
        self._install, self._alarm, self._setitimer = install, alarm, setitimer
        self._requested: dict[int, Any] = {}
        self._logged: set[str] = set()

    def signal(self, signalnum: int, handler: Any) -> Any:
        """Return the previous handler; in a thread other than the main one, log once per line and install nothing."""
        if _in_the_main_thread():
            return self._install(signalnum, handler)
        number = signal.Signals(signalnum)
        if number in TIMERS:
            raise ValueError(_refused(f"signal.signal({number.name}, ...)"))
        before = self._requested.get(number, signal.getsignal(number))
        self._requested[number] = handler
        message = (
            f"the {number.name} handler of {_place()} is not installed: the script runs in a thread of a Ray worker, "
            "where Python cannot install one. To end a run early use `steer stop`, which saves a checkpoint; put code "
            "for the end of a run after `train()`"
        )
        if message not in self._logged:
            self._logged.add(message)
            log.warning("%s", message)
        return before

    def alarm(self, seconds: int, /) -> int:
        """Raise `ValueError` in a thread other than the main one, unless `seconds` is 0."""
        if _in_the_main_thread():
            return int(self._alarm(seconds))
        if seconds:
            raise ValueError(_refused(f"signal.alarm({seconds})"))
        return 0

    def setitimer(self, which: int, seconds: float, interval: float = 0.0, /) -> Any:
        """Raise `ValueError` in a thread other than the main one, unless `seconds` is 0."""
        if _in_the_main_thread():
            return self._setitimer(which, seconds, interval)
        if seconds:
            raise ValueError(_refused(f"signal.setitimer(..., {seconds})"))
        return (0.0, 0.0)


def _in_the_main_thread() -> bool:
    """Return whether this is the main thread, as it is in a process that the script has forked."""
    return threading.current_thread() is threading.main_thread()


def _refused(call: str) -> str:
    return (
        f"{call} at {_place()}: a time limit by a signal cannot work in a run, where the script runs in a thread of a "
        "Ray worker; measure the time in the script, or do the work in a process of its own"
    )


def _place() -> str:
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
