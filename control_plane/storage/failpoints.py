"""Named moments around every durable write, where a test may end, stop, slow or fail the process.

    STEERWAY_FAILPOINTS="seed=7;journal.append.mid_write=kill@0.1;journal.append.before_sync=error:EIO@3"

A point is `site.moment`; `SITES` lists them all, and a test finds a durable write that has none. What is done there:

    kill            SIGKILL to this process            error:ENOSPC   the disk refuses; not where no disk is asked
    stop            SIGSTOP, until somebody continues  sleep:0.5      this thread sleeps; seconds

`@3` means the third passage alone, `@0.1` one passage in ten by chance, and nothing every passage. Each process counts
for itself, and each point has dice of its own from `seed` (0 unless given). Without the variable a passage costs one
comparison. A value that makes no sense is refused, in a sentence, at the first durable write of the process.
"""

import errno
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Protocol, TypeVar

from control_plane.core.model.errors import Invalid

VARIABLE = "STEERWAY_FAILPOINTS"

WRITE = ("before_write", "mid_write", "before_sync", "after_sync")
SYNC = ("before_sync", "after_sync")

SITES: Mapping[str, tuple[str, ...]] = {
    # the journal: its folder, a segment's birth, what a newer term takes over, an append
    "journal.folder": ("before_create", *SYNC),
    "journal.segment": ("before_create", "after_create", *SYNC, "after_fence"),
    "journal.taken_over": SYNC,
    "journal.header": WRITE,
    "journal.abandoned": ("before_unlink",),
    "journal.append": (*WRITE, "after_fence"),
    # the control server: between durable and visible, between visible and told, between decided and removed
    "server.commit": ("before_append", "after_append", "after_evolve"),
    "server.submit": ("before_reply",),
    "server.report": ("before_reply",),
    "server.delete": ("before_removal",),
    "server.retire": ("before_removal",),
    # the files of a checkpoint
    "shard.file": ("before_create", "after_create", *WRITE, "before_rename", "after_rename"),
    "shard.folder": SYNC,
    "shard.abandoned": ("before_unlink",),
    "shard.found": SYNC,
    # its manifest, and with it the checkpoint
    "checkpoint.folders": SYNC,
    "manifest.file": ("before_create", *WRITE, "before_rename", "after_rename"),
    "manifest.folder": SYNC,
    "checkpoint.name": SYNC,
    # its twin for any number of ranks gets its name
    "conversion.name": ("before_rename", *SYNC),
    # a checkpoint's removal
    "removal.link": ("before_unlink",),
    "removal.manifest": ("before_unlink", *SYNC),
    "removal.files": ("before_removal", *SYNC),
    # what comes from elsewhere: a journal that was imported, a checkpoint of a parent; and a journal that leaves
    "import.folders": SYNC,
    "import.name": SYNC,
    "inherited.folder": SYNC,
    "inherited.file": SYNC,
    "export.file": WRITE,
    "export.folder": SYNC,
    # the installation's key
    "key.file": ("before_create", *WRITE, "before_link", "before_unlink"),
    "key.folder": SYNC,
}

POINTS = tuple(f"{site}.{moment}" for site, moments in SITES.items() for moment in moments)

NO_DISK = ("server.",)
"""Here the journal has been asked already, or not yet: what would fail is no call of the disk."""

Data = TypeVar("Data", bytes, memoryview)


class Rule(Protocol):
    """What is to be done at one point. `is_due` is asked at every passage."""

    def is_due(self) -> bool:
        """Whether this passage is one."""
        ...

    def act(self) -> None:
        """Do it. May not return; may raise `OSError`."""
        ...


@dataclass(slots=True)
class Fault:
    """One item of a specification."""

    act: Callable[[], None]
    passage: int | None
    chance: float | None
    dice: random.Random
    passed: int = 0
    # Ranks save in threads of their own.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self) -> bool:
        """Whether this passage is one."""
        with self.lock:
            self.passed += 1
            if self.chance is not None:
                return self.dice.random() < self.chance
            return self.passage is None or self.passed == self.passage


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A specification that makes no sense: whoever set it hears so before anything is written."""

    reason: str

    def is_due(self) -> bool:
        """Always."""
        return True

    def act(self) -> None:
        """Refuse."""
        raise Invalid(self.reason)


Tell = Callable[[str], None]
"""Is told the name of a point before something is done there."""

_armed: Mapping[str, Rule] | None = None
_tell: Tell = lambda point: logging.getLogger(__name__).warning("failpoint %s", point)  # noqa: E731


def reach(site: str, moment: str) -> None:
    """This moment has come. Does nothing unless it is armed."""
    if _armed is not None:
        _fire(f"{site}.{moment}")


def halves(site: str, data: Data) -> Iterator[Data]:
    """What to write: all at once, or, if the moment `mid_write` is armed, in two parts with that moment between."""
    if _armed is None or f"{site}.mid_write" not in _armed:
        yield data
        return
    middle = len(data) // 2
    yield data[:middle]
    reach(site, "mid_write")
    yield data[middle:]


def _fire(point: str) -> None:
    assert _armed is not None
    rule = _armed.get(point)
    if rule is not None and rule.is_due():
        _tell(point)
        rule.act()


def arm(specification: str, tell: Tell | None = None) -> None:
    """Arm what is specified, and nothing else; an empty text disarms everything. Raises `Invalid`."""
    global _armed, _tell
    rules = parse(specification)
    _armed, _tell = rules or None, tell or _tell


def parse(specification: str) -> dict[str, Rule]:
    """The rules, by point. Raises `Invalid`, naming the item that makes no sense."""
    items = [item.strip() for item in specification.split(";") if item.strip()]
    seeds = [item.partition("=")[2] for item in items if item.startswith("seed=")]
    seed = seeds[-1] if seeds else "0"
    rules = dict[str, Rule]()
    for item in items:
        if item.startswith("seed="):
            continue
        point, equals, what = (part.strip() for part in item.partition("="))
        if not equals:
            raise _nonsense(item, "write it as POINT=ACTION or POINT=ACTION@WHEN")
        if point in rules:
            raise _nonsense(item, f"{point} stands there twice")
        rules[point] = _fault(item, _known(item, point), what, seed)
    return rules


def _fault(item: str, point: str, what: str, seed: str) -> Fault:
    action, at, when = what.partition("@")
    passage, chance = _when(item, when) if at else (None, None)
    return Fault(_action(item, point, action), passage, chance, random.Random(f"{seed}:{point}"))


def _known(item: str, point: str) -> str:
    if point in POINTS:
        return point
    near = get_close_matches(point, POINTS, n=1)
    meant = f"; did you mean {near[0]}?" if near else f"; the sites are {', '.join(SITES)}"
    raise _nonsense(item, f"there is no failpoint {point!r}{meant}")


def _when(item: str, when: str) -> tuple[int | None, float | None]:
    if when.isdecimal() and int(when) >= 1:
        return int(when), None
    try:
        chance = float(when) if "." in when else -1.0
    except ValueError:
        chance = -1.0
    if not 0.0 <= chance <= 1.0:
        raise _nonsense(item, f"{when!r} is neither a passage (1, 2, ..) nor a probability (0.0 to 1.0)")
    return None, chance


def _action(item: str, point: str, action: str) -> Callable[[], None]:
    name, _, value = action.partition(":")
    if action in ("kill", "stop"):
        number = signal.SIGKILL if action == "kill" else signal.SIGSTOP
        return lambda: os.kill(os.getpid(), number)
    if name == "error" and value in errno.errorcode.values():
        if point.startswith(NO_DISK):
            raise _nonsense(item, f"no disk is asked at {point}: kill, stop or sleep there")
        return lambda: _refuse(getattr(errno, value))
    if name == "sleep" and value.replace(".", "", 1).isdecimal():
        seconds = float(value)
        return lambda: time.sleep(seconds)
    raise _nonsense(item, f"{action!r} is none of kill, stop, error:NAME (such as error:ENOSPC) and sleep:SECONDS")


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _nonsense(item: str, why: str) -> Invalid:
    return Invalid(f"{VARIABLE} has an item {item[:200]!r} that makes no sense: {why}")


def _arm_from(environment: Mapping[str, str]) -> None:
    """What the environment asks for. An import must not fail: a complaint waits for the first passage."""
    global _armed
    try:
        arm(environment.get(VARIABLE, ""))
    except Invalid as error:
        _armed = dict.fromkeys(POINTS, Unreadable(error.reason))


_arm_from(os.environ)
