"""Private files and folders (modes 0600 and 0700), and the check that other users cannot write to the home.

Write access to the home folder allows replacing keys, tokens, configs and journals by renaming, whatever their modes.

Not covered: ACLs beyond the mode; folders above the home; root. One home serves one user: a home that several users
share is rejected.
"""

import os
import secrets
import stat
from pathlib import Path

from control_plane.core.model.errors import SteerwayError, Unavailable

FOLDER_MODE, FILE_MODE = 0o700, 0o600


def check_home(home: Path) -> None:
    """Check that the home and its `runs` belong to the user and that nobody else may write to them.

    Missing folders are fine. Raises `SteerwayError` with what to do, `Unavailable` if a folder cannot be accessed.
    """
    for folder in (home, home / "runs"):
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """Check that a folder belongs to the user and that nobody else may write to it. Raises like `check_home`."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"{folder} cannot be accessed: {error.strerror or error}") from error
    because = "anyone who can write there can replace keys, tokens and runs"
    if status.st_uid not in (os.geteuid(), 0):
        raise SteerwayError(
            f"{folder} belongs to another user (uid {status.st_uid}, you are {os.geteuid()}): {because}; set "
            "STEERWAY_HOME to a folder of your own"
        )
    if status.st_mode & 0o022:
        raise SteerwayError(
            f"other users may write to {folder} (mode {stat.S_IMODE(status.st_mode):04o}): {because}; "
            f"`chmod go-w {folder}` if nobody has, or use another STEERWAY_HOME"
        )


def make_folder(path: Path) -> None:
    """Create a private folder, and its missing parents, with mode 0700. Raises `OSError`."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def write_file(path: Path, text: str) -> None:
    """Write a private file (mode 0600), in place if it exists. Raises `OSError`."""
    with open(path, "w", encoding="utf-8", opener=private) as file:
        file.write(text)


def replace_file(path: Path, text: str) -> None:
    """Write a private file (mode 0600) atomically and durably. Raises `OSError`."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def sync_names(folder: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private(path: str, flags: int) -> int:
    """Open a file as an `opener` for `open`: new files get mode 0600."""
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
