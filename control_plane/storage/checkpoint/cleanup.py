"""Disk space for checkpoints: removal, leftovers of crashes, free space."""

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.storage.checkpoint.manifest import MANIFEST
from control_plane.storage.checkpoint.shards import sync_folder
from control_plane.storage.failpoints import reach
from control_plane.storage.layout import STATE

FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
"""A single path component that is neither hidden nor leads elsewhere."""

RESERVE_BYTES = 256 * 2**20
"""Free space that a save must leave: a full disk would stop the journal, and with it the run."""


def checkpoint_folder(folder: Path, name: str) -> Path:
    """Return the path of checkpoint `name` in `folder`. Raises `Invalid` for path traversal: the name may come from a
    foreign journal, and an absolute path or `..` would leave the folder."""
    root = folder / name
    if not re.fullmatch(FOLDER_NAME, name) or root.parent.resolve() != folder.resolve():
        raise Invalid(f"{name!r} is not a valid checkpoint name; {root} was not touched")
    return root


def is_ours(folder: Path, name: str) -> bool:
    """Return whether `folder` has a checkpoint of that name, or leftovers of one.

    Raises `Invalid` for an invalid name.
    """
    root = checkpoint_folder(folder, name)
    return root.is_symlink() or any(os.path.lexists(root / part) for part in (MANIFEST, STATE))


def discard(folder: Path, name: str) -> None:
    """Remove a checkpoint, or leftovers of one. Its manifest goes first, so a partly removed one is not a checkpoint.

    Idempotent, also after a crash or concurrently. A concurrent reader notices the missing files. Raises `Invalid` for
    an invalid name, `Unavailable` if something could not be removed; `leftovers` will find it.
    """
    root = checkpoint_folder(folder, name)
    try:
        if root.is_symlink():
            reach("removal.link", "before_unlink")
            root.unlink()
            return
        reach("removal.manifest", "before_unlink")
        with suppress(FileNotFoundError):
            os.unlink(root / MANIFEST)
            sync_folder(root, "removal.manifest")
        reach("removal.files", "before_removal")
        shutil.rmtree(root, onerror=_pass_over_missing)
        with suppress(FileNotFoundError):
            sync_folder(root.parent, "removal.files")
    except OSError as error:
        raise Unavailable(
            f"checkpoint {root.name} could not be removed completely: {error.strerror or error}"
        ) from error


def leftovers(folder: Path, older_than_s: float) -> list[Path]:
    """Return folders without a manifest that have not changed for `older_than_s`: unfinished saves and removals."""
    before = time.time() - older_than_s
    roots = (root for root in folders(folder) if not os.path.lexists(root / MANIFEST))
    return sorted(root for root in roots if _last_change(root) < before)


def space_shortage(folder: Path, needed_bytes: int) -> str | None:
    """Return why the disk has no room for `needed_bytes`, or None. `folder` need not exist yet. Raises `OSError`."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes >= needed_bytes + RESERVE_BYTES:
        return None
    return (
        f"not enough disk space: a checkpoint needs about {needed_bytes:,} bytes and must leave {RESERVE_BYTES:,} "
        f"free, but only {free_bytes:,} are free in {folder}"
    )


def folders(folder: Path) -> list[Path]:
    """Return every folder that may be a checkpoint, by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pass_over_missing(function: Any, path: str, error: tuple[Any, BaseException, Any]) -> None:
    """Ignore files that were removed concurrently; raise any other error."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _last_change(root: Path) -> float:
    """Return the time (Unix) of the newest change below; now, if files vanish meanwhile."""
    try:
        folders = [*os.walk(root)]
        paths = [path for folder, _, files in folders for path in (folder, *(os.path.join(folder, f) for f in files))]
        return max(os.lstat(path).st_mtime for path in paths)
    except FileNotFoundError:
        return time.time()
