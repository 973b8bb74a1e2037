"""Room for checkpoints: their removal, what crashes have left of them, and how much is free."""

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
"""One component of a path that neither hides nor leads elsewhere."""

RESERVE_BYTES = 256 * 2**20
"""A save leaves so much free: a journal that cannot be written stops everything."""


def checkpoint_folder(folder: Path, name: str) -> Path:
    """The path of the checkpoint `name` in `folder`. Raises `Invalid` if the name is none: it may come from a journal
    that somebody else has written, and an absolute path or `..` would lead out of the folder."""
    root = folder / name
    if not re.fullmatch(FOLDER_NAME, name) or root.parent.resolve() != folder.resolve():
        raise Invalid(f"{name!r} is not the name of a checkpoint: nothing is done with {root}")
    return root


def is_ours(folder: Path, name: str) -> bool:
    """Whether there is something of that name in `folder` that looks like a checkpoint, or like what is left of one.

    Raises `Invalid` if the name is none.
    """
    root = checkpoint_folder(folder, name)
    return root.is_symlink() or any(os.path.lexists(root / part) for part in (MANIFEST, STATE))


def discard(folder: Path, name: str) -> None:
    """Remove a checkpoint of this folder, or what is left of one. It is no checkpoint any more from the first step on.

    Repeating it, also after a crash or at the same time elsewhere, is harmless. A reader at work notices that files
    are gone. Raises `Invalid` if the name leads elsewhere, and `Unavailable` if something could not be removed;
    `leftovers` will find it.
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
        raise Unavailable(f"checkpoint {root.name} could not be removed wholly: {error.strerror or error}") from error


def leftovers(folder: Path, older_than_s: float) -> list[Path]:
    """Folders without a manifest in which nothing has changed for so long: unfinished saves and removals."""
    before = time.time() - older_than_s
    roots = (root for root in folders(folder) if not os.path.lexists(root / MANIFEST))
    return sorted(root for root in roots if _last_change(root) < before)


def room_refusal(folder: Path, needed_bytes: int) -> str | None:
    """Why the disk cannot take so many bytes more, or None. `folder` need not exist yet. Raises `OSError`."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes >= needed_bytes + RESERVE_BYTES:
        return None
    return (
        f"a checkpoint needs about {needed_bytes:,} bytes and must leave {RESERVE_BYTES:,} free; "
        f"{free_bytes:,} are free in {folder}"
    )


def folders(folder: Path) -> list[Path]:
    """Every folder that may be a checkpoint, by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pass_over_missing(function: Any, path: str, error: tuple[Any, BaseException, Any]) -> None:
    """What somebody else has removed meanwhile is what was wanted."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _last_change(root: Path) -> float:
    """The newest change below, as Unix time; what vanishes meanwhile is changing now."""
    try:
        folders = [*os.walk(root)]
        paths = [path for folder, _, files in folders for path in (folder, *(os.path.join(folder, f) for f in files))]
        return max(os.lstat(path).st_mtime for path in paths)
    except FileNotFoundError:
        return time.time()
