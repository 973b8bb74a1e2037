"""The tokens that a gateway knows: who, which role, which runs, until when. Only digests are kept.

`tokens.json` in the home is the list; `steer token` changes it, and a running gateway and its proxy read it again as
soon as it has changed. A list that cannot be used is left out of account: the last good one stays in force.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from control_plane.config import ROLES, Role, Settings
from control_plane.core.model.commands import MAX_LABEL_CHARS
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound
from control_plane.storage.regular import open_regular

TOKEN_BYTES = 32
MAX_TOKEN_CHARS = 512
"""Longer than any token that we make; bounds what is hashed for a stranger."""

MAX_GLOBS = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LOCAL = "local-"
"""The ids of the tokens that `steer up` makes, one a role, which lie readable in the home."""

Glob = Annotated[str, Field(pattern=r"^[a-z0-9_*?\[\]!-]{1,64}$")]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it is. The id is the author of the commands. `runs`: globs; None: every run."""

    id: str
    role: Role
    runs: tuple[str, ...] | None = None

    def sees(self, run: str) -> bool:
        """Whether this run is one of those that the token is for."""
        return self.runs is None or any(fnmatchcase(run, glob) for glob in self.runs)


class Tokens(Protocol):
    """Who a token belongs to."""

    def identify(self, token: str) -> Identity | None:
        """Whose token this is now; None for a token that is unknown, revoked or too old."""
        ...


class TokenRecord(BaseModel):
    """What the gateway keeps of a token. Without `expires_at` it does not expire; without `runs` it is for all.

    An empty list of runs is none: such a token is for no run, and lets nobody in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    runs: tuple[Glob, ...] | None = Field(default=None, max_length=MAX_GLOBS)
    expires_at: AwareDatetime | None = None

    @property
    def is_for_no_run(self) -> bool:
        """Whether it grants nothing. Nobody makes such a token on purpose."""
        return self.runs == ()

    def has_expired(self, now_s: float) -> bool:
        """`now_s`: Unix time."""
        return self.expires_at is not None and self.expires_at.timestamp() <= now_s


class TokenBook(BaseModel):
    """A list of tokens, as in its JSON file: `{"version", "tokens": [{"id", "role", "sha256", "runs", "expires_at"}]}`.

    Without a version it is an earlier release's, which wrote an empty list of runs where it meant all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    tokens: tuple[TokenRecord, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_meant(cls, found: Any) -> Any:
        if not isinstance(found, dict) or "version" in found or not isinstance(found.get("tokens"), list | tuple):
            return found
        told = [_without_empty_runs(each) if isinstance(each, dict) else each for each in found["tokens"]]
        return {**found, "tokens": told}

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the file. Raises `NotFound` if it is missing, `Damaged` if it is not a list of tokens."""
        return cls._from(path, private=False)

    @classmethod
    def from_private_file(cls, path: Path) -> Self:
        """As `from_file`, for who is let in by it: `Damaged`, too, if others than its owner have access to it."""
        return cls._from(path, private=True)

    @classmethod
    def _from(cls, path: Path, private: bool) -> Self:
        try:
            with open_regular(path) as file:
                if private:
                    _refuse_shared(path, os.fstat(file.fileno()))
                return cls.model_validate_json(file.read())
        except FileNotFoundError:
            raise NotFound(f"there is no list of tokens at {path}: `steer up` makes one") from None
        except (OSError, ValidationError) as error:
            raise Damaged(f"the list of tokens at {path} cannot be used ({type(error).__name__})") from None

    def identify(self, token: str) -> Identity | None:
        """Whose token this is. Looks at every record, so the time it takes says nothing about any of them."""
        shown, now_s = digest(token[:MAX_TOKEN_CHARS]), time.time()
        found = None
        for record in self.tokens:
            if hmac.compare_digest(record.sha256, shown) and not record.has_expired(now_s) and not record.is_for_no_run:
                found = Identity(record.id, record.role, record.runs)
        return found

    def text(self) -> str:
        """As it is written to its file."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def _without_empty_runs(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "runs" or value != []}


class TokenFile:
    """The list of a running gateway: read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        """Raises `NotFound` or `Damaged` if there is no list to begin with."""
        self._path = path
        self._version = _version(path)
        self._book = self._read()

    def identify(self, token: str) -> Identity | None:
        """Whose token this is by the list as it is now."""
        version = _version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._book = self._read()
            except NotFound:
                log.warning("the list of tokens at %s is gone: nobody is let in until there is one", self._path)
                self._book = TokenBook()
            except Damaged as error:
                log.warning("%s; the list from before stays in force", error.reason)
        return self._book.identify(token)

    def _read(self) -> TokenBook:
        book = TokenBook.from_private_file(self._path)
        for record in book.tokens:
            if record.is_for_no_run:
                log.warning("%s", for_no_run(record.id))
        return book


def for_no_run(name: str) -> str:
    """Of a token with an empty list of runs."""
    return (
        f"the token {name!r} is for no run (its list of runs is empty), and lets nobody in: leave 'runs' out for all "
        f"runs, or `steer token revoke {name}` and make another one"
    )


def _version(path: Path) -> tuple[int, ...] | None:
    """Changes with the file: it is always replaced as a whole, by another one."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode, about.st_uid


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise Damaged(
            f"others than its owner have access to the list of tokens {path} (mode {status.st_mode & 0o777:04o}), so "
            "they may have let themselves in: look at it with `steer token list`, then `chmod 600` it"
        )


def digest(token: str) -> str:
    """SHA-256 of a token. The tokens are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_tokens(settings: Settings) -> TokenBook:
    """One local token per role, made if it is missing, and the list of their digests. May be called again.

    The token is written first and its digest after, so a call that was cut off is mended by the next.
    Records that are not ours (other ids) are kept. Raises `Damaged` if the list is there but cannot be used.
    """
    with _changing(settings):
        book = _book(settings)
        ids = {role: f"{LOCAL}{role}" for role in ROLES}
        records = [record for record in book.tokens if record.id not in ids.values()]
        for role, token_id in ids.items():
            token = _token_at(settings.token_file(role))
            records.append(TokenRecord(id=token_id, role=role, sha256=digest(token)))
        made = TokenBook(tokens=tuple(records))
        if made.text() != _text(settings):
            _write_private(settings.tokens_file, made.text())
        settings.tokens_file.chmod(0o600)
        return made


def add_token(
    settings: Settings,
    name: str,
    role: Role,
    runs: tuple[str, ...] | None = None,
    expires_at: datetime | None = None,
) -> str:
    """A new token, for all runs without `runs`; answers it, for it is not kept.

    Raises `Invalid`, `Conflict` if there is one of that name.
    """
    if not NAME.fullmatch(name) or name.startswith(LOCAL):
        raise Invalid(
            f"{name!r} cannot be a token's name: 1 to 64 letters, digits, '.', '_', '@' and '-', not beginning with "
            f"'{LOCAL}'"
        )
    if runs == ():
        raise Invalid("a token for no run would let nobody in: name a pattern for runs, or none at all for all runs")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid(f"a token that expired on {expires_at:%Y-%m-%d %H:%M} would let nobody in")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        record = TokenRecord(id=name, role=role, sha256=digest(token), runs=runs, expires_at=expires_at)
    except ValidationError as error:
        raise Invalid(f"not a pattern for runs: {error.errors()[0]['input']!r}; an example: 'gpt2-*'") from None
    with _changing(settings):
        book = _book(settings)
        if any(each.id == name for each in book.tokens):
            raise Conflict(f"there is a token named {name!r}: `steer token revoke {name}` first")
        _write_private(settings.tokens_file, TokenBook(tokens=(*book.tokens, record)).text())
    return token


def revoke_token(settings: Settings, name: str) -> bool:
    """Take a token out of the list. Whether it was replaced: a local one is, by a new one. Raises `NotFound`."""
    with _changing(settings):
        book = _book(settings)
        left = tuple(each for each in book.tokens if each.id != name)
        if len(left) == len(book.tokens):
            raise NotFound(f"there is no token named {name!r}; `steer token list` shows them")
        role = next((role for role in ROLES if name == f"{LOCAL}{role}"), None)
        if role is not None:
            settings.token_file(role).unlink(missing_ok=True)
        _write_private(settings.tokens_file, TokenBook(tokens=left).text())
    if role is not None:
        create_tokens(settings)
    return role is not None


@contextmanager
def _changing(settings: Settings) -> Iterator[None]:
    """One at a time changes the list."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(settings.home, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _text(settings: Settings) -> str:
    """The file as it is; another text than ours, even of the same list, is written anew."""
    return settings.tokens_file.read_text(errors="replace") if settings.tokens_file.exists() else ""


def _book(settings: Settings) -> TokenBook:
    return TokenBook.from_file(settings.tokens_file) if settings.tokens_file.exists() else TokenBook()


def _token_at(path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    found = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if not found:
        found = secrets.token_urlsafe(TOKEN_BYTES)
        _write_private(path, found + "\n")
    path.chmod(0o600)
    return found


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one move; at no moment is there half of it, or one that others can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(opened, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
