"""Folders and files for their owner only, and the check that nobody else can write to an installation's home.

Whoever can write to the home replaces keys, tokens, configs and journals by renaming, whatever the modes of the files.

Not covered: access lists beyond the mode; folders above the home; whoever is root. One home serves one user: a home
that several users share is refused.
"""

import os
import stat
from pathlib import Path

from control_plane.core.model.errors import SteerwayError, Unavailable

FOLDER_MODE, FILE_MODE = 0o700, 0o600


def check_home(home: Path) -> None:
    """Refuse a home, or its `runs`, that is not the user's own or that others may write to. What is missing is fine.

    Raises `SteerwayError` with what to do, `Unavailable` if it cannot be looked at.
    """
    for folder in (home, home / "runs"):
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """Refuse one folder that is not the user's own or that others may write to. Raises as `check_home` does."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"{folder} cannot be looked at: {error.strerror or error}") from error
    because = "whoever can write there can replace its keys, tokens and runs"
    if status.st_uid not in (os.geteuid(), 0):
        raise SteerwayError(
            f"{folder} belongs to another user (uid {status.st_uid}, you are {os.geteuid()}): {because}; use a "
            "STEERWAY_HOME of your own"
        )
    if status.st_mode & 0o022:
        raise SteerwayError(
            f"others than its owner may write to {folder} (mode {stat.S_IMODE(status.st_mode):04o}): {because}; "
            f"`chmod go-w {folder}` if nobody has, or use another STEERWAY_HOME"
        )


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner only. Raises `OSError`."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def write_file(path: Path, text: str) -> None:
    """Write a file of mode 0600; one that is there is replaced in its content. Raises `OSError`."""
    with open(path, "w", encoding="utf-8", opener=private) as file:
        file.write(text)


def private(path: str, flags: int) -> int:
    """An `opener` of `open`: what it creates is of mode 0600."""
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
