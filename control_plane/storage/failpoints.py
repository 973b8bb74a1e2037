"""Failpoints: named points around every durable write where a test can kill, stop, delay or fail the process.

    STEERWAY_FAILPOINTS="seed=7;journal.append.mid_write=kill@0.1;journal.append.before_sync=error:EIO@3"

A point is `site.moment`; `SITES` lists them all, and a test finds durable writes that have none. Actions:

    kill            SIGKILL to this process     error:ENOSPC   raise this OSError; only where the disk is used
    stop            SIGSTOP, until SIGCONT      sleep:0.5      sleep in this thread; seconds

`@3` means the third passage only, `@0.1` each passage with probability 0.1; by default every passage. Counters are per
process, and each point has its own random generator from `seed` (default 0). Without the variable a passage costs one
comparison. An invalid value raises `Invalid` at the first durable write of the process.
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
    # the journal: its folder, a new segment, what a newer term takes over, an append
    "journal.folder": ("before_create", *SYNC),
    "journal.segment": ("before_create", "after_create", *SYNC, "after_fence"),
    "journal.taken_over": SYNC,
    "journal.header": WRITE,
    "journal.abandoned": ("before_unlink",),
    "journal.append": (*WRITE, "after_fence"),
    # the control server: between durable and visible, visible and replied, decided and removed
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
    # its universal conversion (for any number of ranks) is renamed to its name
    "conversion.name": ("before_rename", *SYNC),
    # a checkpoint's removal
    "removal.link": ("before_unlink",),
    "removal.manifest": ("before_unlink", *SYNC),
    "removal.files": ("before_removal", *SYNC),
    # transfers: an imported journal, a checkpoint of a parent, an exported journal
    "import.folders": SYNC,
    "import.name": SYNC,
    "inherited.folder": SYNC,
    "inherited.file": SYNC,
    "export.file": WRITE,
    "export.folder": SYNC,
    # a code bundle: a piece of its upload, its name when it is whole, a run's own link to it
    "bundle.piece": WRITE,
    "bundle.name": ("before_rename", *SYNC),
    "bundle.kept": ("before_link", *SYNC),
    # records for a live source: their shard's file, its name
    "ingest.file": ("before_create", *WRITE, "before_rename"),
    "ingest.folder": SYNC,
    # a launch: its record, the run's folder (made, then renamed), its job, the answer
    "launch": (
        "after_record",
        "after_folder",
        "after_rename",
        "after_entry",
        "after_submit",
        "after_answer",
    ),
    # the installation's key
    "key.file": ("before_create", *WRITE, "before_link", "before_unlink"),
    "key.folder": SYNC,
}

POINTS = tuple(f"{site}.{moment}" for site, moments in SITES.items() for moment in moments)

NO_DISK = ("server.",)
"""Sites without a disk call: `error` makes no sense there."""

Data = TypeVar("Data", bytes, memoryview)


class Rule(Protocol):
    """Interface of an armed point. `is_due` is called at every passage."""

    def is_due(self) -> bool:
        """Return whether to act at this passage."""
        ...

    def act(self) -> None:
        """Perform the action. May not return; may raise `OSError`."""
        ...


@dataclass(slots=True)
class ArmedFailpoint:
    """One armed failpoint of a specification."""

    act: Callable[[], None]
    passage: int | None
    chance: float | None
    dice: random.Random
    passed: int = 0
    # Ranks save in separate threads.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self) -> bool:
        """Return whether to act at this passage."""
        with self.lock:
            self.passed += 1
            if self.chance is not None:
                return self.dice.random() < self.chance
            return self.passage is None or self.passed == self.passage


@dataclass(frozen=True, slots=True)
class InvalidSpecification:
    """An invalid specification, reported before anything is written."""

    reason: str

    def is_due(self) -> bool:
        """Return True."""
        return True

    def act(self) -> None:
        """Raise `Invalid`."""
        raise Invalid(self.reason)


Tell = Callable[[str], None]
"""Called with the name of a point before its action is performed."""

_armed: Mapping[str, Rule] | None = None
_tell: Tell = lambda point: logging.getLogger(__name__).warning("failpoint %s", point)  # noqa: E731


def reach(site: str, moment: str) -> None:
    """Pass a failpoint. Does nothing unless it is armed."""
    if _armed is not None:
        _fire(f"{site}.{moment}")


def halves(site: str, data: Data) -> Iterator[Data]:
    """Yield the data to write: whole, or in two halves with the failpoint between if `mid_write` is armed."""
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
    """Arm exactly the specified failpoints; an empty text disarms all. Raises `Invalid`."""
    global _armed, _tell
    rules = parse(specification)
    _armed, _tell = rules or None, tell or _tell


def parse(specification: str) -> dict[str, Rule]:
    """Parse a specification into rules by point. Raises `Invalid`, naming the invalid item."""
    items = [item.strip() for item in specification.split(";") if item.strip()]
    seeds = [item.partition("=")[2] for item in items if item.startswith("seed=")]
    seed = seeds[-1] if seeds else "0"
    rules = dict[str, Rule]()
    for item in items:
        if item.startswith("seed="):
            continue
        point, equals, what = (part.strip() for part in item.partition("="))
        if not equals:
            raise _invalid(item, "write it as POINT=ACTION or POINT=ACTION@WHEN")
        if point in rules:
            raise _invalid(item, f"{point} is given twice")
        rules[point] = _fault(item, _known(item, point), what, seed)
    return rules


def _fault(item: str, point: str, what: str, seed: str) -> ArmedFailpoint:
    action, at, when = what.partition("@")
    passage, chance = _when(item, when) if at else (None, None)
    return ArmedFailpoint(_action(item, point, action), passage, chance, random.Random(f"{seed}:{point}"))


def _known(item: str, point: str) -> str:
    if point in POINTS:
        return point
    near = get_close_matches(point, POINTS, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; the sites are {', '.join(SITES)}"
    raise _invalid(item, f"unknown failpoint {point!r}{hint}")


def _when(item: str, when: str) -> tuple[int | None, float | None]:
    if when.isdecimal() and int(when) >= 1:
        return int(when), None
    try:
        chance = float(when) if "." in when else -1.0
    except ValueError:
        chance = -1.0
    if not 0.0 <= chance <= 1.0:
        raise _invalid(item, f"{when!r} is neither a passage (1, 2, ..) nor a probability (0.0 to 1.0)")
    return None, chance


def _action(item: str, point: str, action: str) -> Callable[[], None]:
    name, _, value = action.partition(":")
    if action in ("kill", "stop"):
        number = signal.SIGKILL if action == "kill" else signal.SIGSTOP
        return lambda: os.kill(os.getpid(), number)
    if name == "error" and value in errno.errorcode.values():
        if point.startswith(NO_DISK):
            raise _invalid(item, f"{point} does not use the disk: only kill, stop and sleep are possible there")
        return lambda: _refuse(getattr(errno, value))
    if name == "sleep" and value.replace(".", "", 1).isdecimal():
        seconds = float(value)
        return lambda: time.sleep(seconds)
    raise _invalid(
        item, f"unknown action {action!r}; allowed are kill, stop, error:NAME (such as error:ENOSPC), sleep:SECONDS"
    )


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _invalid(item: str, reason: str) -> Invalid:
    return Invalid(f"{VARIABLE}: invalid item {item[:200]!r}: {reason}")


def _arm_from(environment: Mapping[str, str]) -> None:
    """Arm the failpoints of the environment. Importing must not fail: an error is raised at the first passage."""
    global _armed
    try:
        arm(environment.get(VARIABLE, ""))
    except Invalid as error:
        _armed = dict.fromkeys(POINTS, InvalidSpecification(error.reason))


_arm_from(os.environ)
