"""Signal handlers of a script that runs as a run: said and not installed, instead of an error that ends the script.

    with signals_in_a_thread():      # around the script, in the thread in which Ray runs it
        ...

Python calls handlers in the main thread alone, and refuses to install them anywhere else. A script that asks for one
to save before it is ended works by hand; as a run it needs none, since a run is stopped by `steer stop`, with a
checkpoint, and goes on after a failure from its newest one. A time limit by SIGALRM would never come, or would end the
process: it stays refused, with a sentence.
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
    """Inside, `signal.signal`, `alarm` and `setitimer` answer for threads other than the main one."""
    theirs = signal.signal, signal.alarm, signal.setitimer
    handlers = _Handlers(*theirs)
    signal.signal, signal.alarm, signal.setitimer = (
        handlers.signal,
        handlers.alarm,
        handlers.setitimer,
    )
    try:
        yield
    finally:
        signal.signal, signal.alarm, signal.setitimer = theirs


class _Handlers:
    """What the script believes to have installed."""

    def __init__(self, install: Any, alarm: Any, setitimer: Any) -> None:
        self._install, self._alarm, self._setitimer = install, alarm, setitimer
        self._believed: dict[int, Any] = {}
        self._told: set[str] = set()

    def signal(self, signalnum: int, handler: Any) -> Any:
        """The handler before; in a thread nothing is installed, and the log says so once a place."""
        if _in_the_main_thread():
            return self._install(signalnum, handler)
        number = signal.Signals(signalnum)
        if number in TIMERS:
            raise ValueError(_refused(f"signal.signal({number.name}, ...)"))
        before = self._believed.get(number, signal.getsignal(number))
        self._believed[number] = handler
        told = (
            f"the {number.name} handler of {_place()} is not installed: the script runs in a thread of a Ray worker, "
            "where Python installs none. To end a run early use `steer stop`, which saves a checkpoint; what has to "
            "happen at its end belongs after `train()`"
        )
        if told not in self._told:
            self._told.add(told)
            log.warning("%s", told)
        return before

    def alarm(self, seconds: int, /) -> int:
        """Refused in a thread, unless it ends an alarm that was never set."""
        if _in_the_main_thread():
            return int(self._alarm(seconds))
        if seconds:
            raise ValueError(_refused(f"signal.alarm({seconds})"))
        return 0

    def setitimer(self, which: int, seconds: float, interval: float = 0.0, /) -> Any:
        """Refused in a thread, unless it ends a timer that was never set."""
        if _in_the_main_thread():
            return self._setitimer(which, seconds, interval)
        if seconds:
            raise ValueError(_refused(f"signal.setitimer(..., {seconds})"))
        return (0.0, 0.0)


def _in_the_main_thread() -> bool:
    """A process that the script forks has its own: there signals work as ever."""
    return threading.current_thread() is threading.main_thread()


def _refused(call: str) -> str:
    return (
        f"{call} at {_place()}: a time limit by a signal cannot work in a run, where the script runs in a thread of a "
        "Ray worker; measure the time in the script, or have the work done in a process of its own"
    )


def _place() -> str:
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
