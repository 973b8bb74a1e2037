"""The folder that a run's ranks work in: RUN/work, where a script finds its inputs and leaves its outputs.

A relative path means this folder, on every rank and at every start, so what a script writes stays with its run and is
found again after a loss; forks write beside each other. What lies beside the script appears here: its files as links,
its folders made anew. A file that a script writes *over* is still the file beside the script, as when it is started by
hand; `written_over` names those.
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
"""Beyond it a folder is linked as a whole: a data set of a million files must not delay every start."""

LINKED_WHOLE = frozenset({"__pycache__", "node_modules", "venv", "site-packages"})
"""Folders that nobody writes results to; those whose names begin with a dot are linked as a whole, too."""


def enter_work_folder(files: RunFiles, script: Path | None = None) -> Path:
    """Work in the run's own folder from now on, with what lies beside `script` in it. Answers the folder.

    May be called by several ranks at once and again at each start. Raises `OSError` if the folder cannot be made.
    """
    make_folder(files.work)
    if script is not None:
        _link_beside(script.parent.resolve(), files.work)
    os.chdir(files.work)
    return files.work


def _link_beside(source: Path, work: Path) -> None:
    """Breadth first, so that what lies next to the script is there even if what lies deep below is too much."""
    left, crowded = MAX_LINKS, list[str]()
    waiting = deque([(source, work)])
    while waiting:
        folder, mirror = waiting.popleft()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            log.warning("%s cannot be read (%s), so what lies in it is not found from here", folder, error.strerror)
            continue
        left -= len(entries)
        for entry in entries:
            if work.resolve().is_relative_to(Path(entry.path).resolve()):
                continue  # the runs themselves lie beside the script
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
            "more than %d files lie beside the script: %d folders are linked as a whole, and what is written into them "
            "is written beside the script: %s",
            MAX_LINKS,
            len(crowded),
            ", ".join(crowded[:5]),
        )


def _made_anew(path: Path) -> bool:
    """Whether it is a folder of the run's own now. What the script put in this place itself is left as it is."""
    if not os.path.lexists(path):
        path.mkdir(exist_ok=True)
    return path.is_dir() and not path.is_symlink()


def _linked(target: Path, link: Path) -> None:
    if not os.path.lexists(link):
        with contextlib.suppress(FileExistsError):  # another rank was faster
            link.symlink_to(target)


def written_over(work: Path, since_s: float) -> list[Path]:
    """Files beside the script that were changed through their links since then (Unix time), as paths in `work`."""
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
