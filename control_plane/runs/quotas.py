"""Quotas of owners, and how long ended runs are kept: `quotas.json` in the home.

`steer quota` changes the file, as `steer token` does the tokens; a running gateway reads it anew when it has changed.
A file that cannot be used is ignored: the last good one stays in force.
"""

import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from control_plane.core.model.commands import MAX_LABEL_CHARS
from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.model.intent_base import Message
from control_plane.core.rules.start_order import Quota
from control_plane.storage.locks import lock_folder
from control_plane.storage.private import replace_file
from control_plane.storage.regular import file_version, open_regular

MAX_OWNERS = 10_000
Owner = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]

log = logging.getLogger(__name__)


class QuotaBook(Message):
    """Quotas by owner; `default` is for owners without one of their own. `keep_ended_days`: None keeps ended runs."""

    version: Literal[1] = 1
    default: Quota = Quota()
    owners: Annotated[dict[Owner, Quota], Field(max_length=MAX_OWNERS)] = {}
    keep_ended_days: float | None = Field(default=None, gt=0)

    def of(self, owner: str) -> Quota:
        """Return an owner's quota."""
        return self.owners.get(owner, self.default)

    @classmethod
    def from_file(cls, path: Path) -> "QuotaBook":
        """Read the file; without one, nothing is limited. Raises `Damaged`, also if other users may write to it."""
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o022 or status.st_uid not in (os.geteuid(), 0):
                    raise Damaged(f"other users may write to {path}: check it with `steer quota`, then `chmod 600` it")
                return cls.model_validate_json(file.read())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise Damaged(f"{path} cannot be read ({type(error).__name__}): mend it, or remove it") from None


class QuotaFile:
    """Quotas of a running gateway, read anew when their file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, ...] | None = ()
        self._book = QuotaBook()

    def book(self) -> QuotaBook:
        """Return the quotas that are in force."""
        version = file_version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._book = QuotaBook.from_file(self._path)
            except Damaged as error:
                log.warning("%s; the previous quotas stay in force", error.reason)
        return self._book


def change_quota(home: Path, owner: str | None, changes: dict[str, Any]) -> QuotaBook:
    """Change members of an owner's quota (None: of the default) and return the book. A value None lifts a limit.

    Raises `Invalid` for a malformed owner or limit, `Damaged` if the file cannot be read.
    """
    path = quotas_path(home)
    with lock_folder(home):
        book = QuotaBook.from_file(path)
        before = book.default if owner is None else book.of(owner)
        changed = before.model_dump() | changes
        body = book.model_dump()
        if owner is None:
            body["default"] = changed
        else:
            body["owners"][owner] = changed
        return _write(path, body)


def forget_quota(home: Path, owner: str) -> QuotaBook:
    """Remove an owner's own quota, so that the default applies, and return the book."""
    with lock_folder(home):
        body = QuotaBook.from_file(quotas_path(home)).model_dump()
        body["owners"].pop(owner, None)
        return _write(quotas_path(home), body)


def keep_ended(home: Path, days: float | None) -> QuotaBook:
    """Set for how many days ended runs are kept (None: for good), and return the book."""
    with lock_folder(home):
        body = QuotaBook.from_file(quotas_path(home)).model_dump() | {"keep_ended_days": days}
        return _write(quotas_path(home), body)


def quotas_path(home: Path) -> Path:
    """Return the path of the file."""
    return home / "quotas.json"


def _write(path: Path, body: dict[str, Any]) -> QuotaBook:
    try:
        book = QuotaBook.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{where} is {first['input']!r}: {first['msg'].lower()}") from None
    replace_file(path, book.model_dump_json(indent=2, exclude_none=True) + "\n")
    return book
