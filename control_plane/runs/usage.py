"""Disk usage of runs: bytes of each run's files by kind, and of each owner.

Sizes of files as `ls` shows them. Links are not followed. A file with several names counts under each of them: a fork
shares the shards of its first checkpoint with its parent, and keeps them when the parent is deleted.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from control_plane.api.launching import Submission
from control_plane.api.queueing import OwnerUsage, RunUsage
from control_plane.core.model.errors import Damaged
from control_plane.storage.layout import RunFiles, list_runs
from control_plane.storage.regular import read_regular

Kind = Literal["checkpoints", "journal", "metrics", "code", "work", "logs", "other"]
KINDS: tuple[Kind, ...] = ("checkpoints", "journal", "metrics", "code", "work", "logs", "other")
FRESH_FOR_S = 30.0
"""How long a size is used again: a folder of 100,000 files takes about a second."""

UNKNOWN_OWNER = "(unknown)"
"""Owner of runs of earlier releases, which have no submission record."""


def owner_of(files: RunFiles) -> str | None:
    """Return the owner of a run by its submission record; None without one."""
    submission = submission_of(files)
    return None if submission is None else submission.owner


def submission_of(files: RunFiles) -> Submission | None:
    """Return a run's submission record, or None without a readable one."""
    try:
        return Submission.model_validate_json(read_regular(files.submission))
    except (OSError, ValidationError, Damaged):
        return None


def measure(files: RunFiles) -> RunUsage:
    """Return the bytes of a run's files."""
    sizes = dict.fromkeys(KINDS, 0)
    for entry in _scan(files.root):
        sizes[_kind_of(entry.name)] += _size_of(entry)
    return RunUsage(run=files.run, owner=owner_of(files) or UNKNOWN_OWNER, **sizes, total=sum(sizes.values()))


def _kind_of(name: str) -> Kind:
    if name in ("code", "code.zip"):
        return "code"
    if name.startswith("metrics."):
        return "metrics"
    return next((kind for kind in KINDS if kind == name), "other")


def _size_of(entry: os.DirEntry[str]) -> int:
    """Return the bytes of a file, or of everything below a folder."""
    total, folders = 0, [entry]
    while folders:
        at = folders.pop()
        try:
            if at.is_dir(follow_symlinks=False):
                folders += _scan(at.path)
            else:
                total += at.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # removed meanwhile
    return total


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except OSError:
        return []


class UsageMeter:
    """Measures runs; remembers each for `FRESH_FOR_S`. Thread-safe; call it in a thread."""

    def __init__(self, runs_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs_dir, self._clock = runs_dir, clock
        self._known: dict[str, tuple[float, RunUsage]] = {}
        self._lock = threading.Lock()

    def read(self, sees: Callable[[str], bool] = lambda run: True) -> tuple[RunUsage, ...]:
        """Return the usage of every run that `sees` allows, the largest first."""
        with self._lock:
            listed = [files for files in list_runs(self._runs_dir) if sees(files.run)]
            usages = [self._measured(files) for files in listed]
            if len(self._known) > 2 * len(listed) + 1000:
                self._known.clear()  # of runs that were deleted
        return tuple(sorted(usages, key=lambda usage: (-usage.total, usage.run)))

    def _measured(self, files: RunFiles) -> RunUsage:
        now = self._clock()
        known = self._known.get(files.run)
        if known is not None and now - known[0] < FRESH_FOR_S:
            return known[1]
        usage = measure(files)
        self._known[files.run] = (now, usage)
        return usage


def by_owner(usages: Iterable[RunUsage], limit_of: Callable[[str], int | None]) -> tuple[OwnerUsage, ...]:
    """Return the sums by owner, the largest first."""
    sums = dict[str, list[int]]()
    for usage in usages:
        sums.setdefault(usage.owner, []).append(usage.total)
    owners = [
        OwnerUsage(owner=owner, runs=len(totals), total=sum(totals), limit=limit_of(owner))
        for owner, totals in sums.items()
    ]
    return tuple(sorted(owners, key=lambda owner: (-owner.total, owner.owner)))


def bytes_of_owner(runs_dir: Path, owner: str) -> int:
    """Return the bytes of all runs of an owner, measured now."""
    return sum(measure(files).total for files in list_runs(runs_dir) if owner_of(files) == owner)
