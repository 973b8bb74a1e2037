"""Working directory of a run's ranks, RUN/work, with links to the files in the script's folder.

It is the same folder on every rank and at every start, so what a script writes under relative paths stays with its run
and is there after a restart; forks do not share it. The contents of the script's folder appear in it: files as links,
folders as new folders. A script that *overwrites* such a file changes the file in its own folder, as when it is started
by hand; `overwritten_files` lists those.
"""

import contextlib
import logging
import os
from collections import deque
from pathlib import Path

from control_plane.storage.layout import RunFiles
from control_plane.storage.private import make_folder

log = logging.getLogger(__name__)

MAX_LINKS = 5_000
"""Further folders are linked as a whole: a data set of a million files must not delay every start."""

LINKED_WHOLE = frozenset({"__pycache__", "node_modules", "venv", "site-packages"})
"""Folders without results; hidden ones are linked as a whole, too."""


def enter_work_folder(files: RunFiles, script: Path | None = None) -> Path:
    """Change to the run's working directory, with links to the folder of `script`, and return it.

    Idempotent, and safe on several ranks at once. Raises `OSError` if the folder cannot be made.
    """
    make_folder(files.work)
    if script is not None:
        _link_beside(script.parent.resolve(), files.work)
    os.chdir(files.work)
    return files.work


def _link_beside(source: Path, work: Path) -> None:
    """Link the contents of a folder, breadth first, so that the limit applies to deep folders first."""
    left, crowded = MAX_LINKS, list[str]()
    waiting = deque([(source, work)])
    while waiting:
        folder, mirror = waiting.popleft()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            log.warning("%s cannot be read (%s): its contents are missing in RUN/work", folder, error.strerror)
            continue
        left -= len(entries)
        for entry in entries:
            if work.resolve().is_relative_to(Path(entry.path).resolve()):
                continue  # the runs' folders are in the script's folder
            whole = entry.name.startswith(".") or entry.name in LINKED_WHOLE or left < 0
            if entry.is_dir(follow_symlinks=False) and not whole:
                if _made_anew(mirror / entry.name):
                    waiting.append((Path(entry.path), mirror / entry.name))
                continue
            if entry.is_dir(follow_symlinks=False) and left < 0:
                crowded.append(entry.path)
            _linked(Path(entry.path), mirror / entry.name)
    if crowded:
        log.warning(
            "the script's folder has more than %d files: %d folders are linked as a whole, and files written into them "
            "are shared by all runs of the script: %s",
            MAX_LINKS,
            len(crowded),
            ", ".join(crowded[:5]),
        )


def _made_anew(path: Path) -> bool:
    """Make a folder of the run's own and return True; False if the script has put something else in its place."""
    if not os.path.lexists(path):
        path.mkdir(exist_ok=True)
    return path.is_dir() and not path.is_symlink()


def _linked(target: Path, link: Path) -> None:
    if not os.path.lexists(link):
        with contextlib.suppress(FileExistsError):  # another rank was faster
            link.symlink_to(target)


def overwritten_files(work: Path, since_s: float) -> list[Path]:
    """Return the files of the script's folder that were changed since then (Unix time), as paths in `work`."""
    changed = []
    for folder, _, names in os.walk(work):
        for name in names:
            path = Path(folder) / name
            try:
                if path.is_symlink() and path.is_file() and path.stat().st_mtime >= since_s:
                    changed.append(path.relative_to(work))
            except OSError:
                continue
    return sorted(changed)
