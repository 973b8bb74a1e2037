"""Access tokens of the gateway: owner, role, runs, expiry. Only digests are stored.

`tokens.json` in the home is the list; `steer token` changes it, and a running gateway and its proxy reload it as soon
as it has changed. A list that cannot be used is ignored: the last good one stays in force.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from control_plane.config import ROLES, Role, Settings
from control_plane.core.model.commands import MAX_LABEL_CHARS
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound
from control_plane.core.rules.agent.generating import AUTHOR, author_of
from control_plane.storage.locks import lock_folder
from control_plane.storage.private import make_folder, replace_file
from control_plane.storage.regular import file_version, open_regular

TOKEN_BYTES = 32
MAX_TOKEN_CHARS = 512
"""Longer than any token; bounds the hashing for an unauthenticated client."""

MAX_GLOBS = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LOCAL = "local-"
"""Id prefix of the tokens that `steer up` creates, one per role, stored readable in the home."""

AGENT_OF = "agent:"
"""Id prefix of the tokens of supervised agents, followed by the run; no token that people create has a colon."""

Glob = Annotated[str, Field(pattern=r"^[a-z0-9_*?\[\]!-]{1,64}$")]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Owner of a token. The id is the author of its commands. `runs`: globs; None: every run."""

    id: str
    role: Role
    runs: tuple[str, ...] | None = None

    def sees(self, run: str) -> bool:
        """Return whether this run is in the token's scope."""
        return self.runs is None or any(fnmatchcase(run, glob) for glob in self.runs)


class TokenLookup(Protocol):
    """Lookup interface from a token to its owner."""

    def identify(self, token: str) -> Identity | None:
        """Return the token's owner; None if it is unknown, revoked or expired."""
        ...


class TokenRecord(BaseModel):
    """Stored record of a token. Without `expires_at` it never expires; without `runs` it is valid for all runs.

    A token with an empty list of runs is valid for no run and grants nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    runs: tuple[Glob, ...] | None = Field(default=None, max_length=MAX_GLOBS)
    expires_at: AwareDatetime | None = None

    @property
    def is_for_no_run(self) -> bool:
        """Return whether the list of runs is empty, so that the token grants nothing."""
        return self.runs == ()

    def has_expired(self, now_s: float) -> bool:
        """Return whether the token has expired at `now_s` (Unix time)."""
        return self.expires_at is not None and self.expires_at.timestamp() <= now_s


class TokenBook(BaseModel):
    """A list of tokens, as in its JSON file: `{"version", "tokens": [{"id", "role", "sha256", "runs", "expires_at"}]}`.

    Without a version it was written by an earlier release, which wrote an empty list of runs for all runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    tokens: tuple[TokenRecord, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, book: Any) -> Any:
        if not isinstance(book, dict) or "version" in book or not isinstance(book.get("tokens"), list | tuple):
            return book
        tokens = [_without_empty_runs(token) if isinstance(token, dict) else token for token in book["tokens"]]
        return {**book, "tokens": tokens}

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the file. Raises `NotFound` if it is missing, `Damaged` if it is not a token list."""
        return cls._from(path, private=False)

    @classmethod
    def from_private_file(cls, path: Path) -> Self:
        """Read the file for authentication: raises `Damaged`, too, if other users have access to it."""
        return cls._from(path, private=True)

    @classmethod
    def _from(cls, path: Path, private: bool) -> Self:
        try:
            with open_regular(path) as file:
                if private:
                    _refuse_shared(path, os.fstat(file.fileno()))
                return cls.model_validate_json(file.read())
        except FileNotFoundError:
            raise NotFound(f"no token list at {path}: `steer up` creates it") from None
        except (OSError, ValidationError) as error:
            raise Damaged(f"the token list {path} cannot be read ({type(error).__name__})") from None

    def identify(self, token: str) -> Identity | None:
        """Return the token's owner, or None. Constant time: compares with every record, whichever matches."""
        shown, now_s = digest(token[:MAX_TOKEN_CHARS]), time.time()
        owner = None
        for record in self.tokens:
            if hmac.compare_digest(record.sha256, shown) and not record.has_expired(now_s) and not record.is_for_no_run:
                owner = Identity(record.id, record.role, record.runs)
        return owner

    def text(self) -> str:
        """Return the text of its file."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def _without_empty_runs(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "runs" or value != []}


class TokenFile:
    """Token list of a running gateway, reloaded when its file changes."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises `NotFound` or `Damaged`."""
        self._path = path
        self._version = file_version(path)
        self._book = self._read()

    def identify(self, token: str) -> Identity | None:
        """Return the token's owner by the current list, or None."""
        version = file_version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._book = self._read()
            except NotFound:
                log.warning("the token list %s is missing: all requests are rejected until it exists", self._path)
                self._book = TokenBook()
            except Damaged as error:
                log.warning("%s; the previous list stays in force", error.reason)
        return self._book.identify(token)

    def _read(self) -> TokenBook:
        book = TokenBook.from_private_file(self._path)
        for record in book.tokens:
            if record.is_for_no_run:
                log.warning("%s", for_no_run(record.id))
        return book


def for_no_run(name: str) -> str:
    """Return a warning about a token with an empty list of runs."""
    return (
        f"token {name!r} is valid for no run (its list of runs is empty) and is rejected: remove 'runs' for all runs, "
        f"or `steer token revoke {name}` and create another one"
    )


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise Damaged(
            f"other users have access to the token list {path} (mode {status.st_mode & 0o777:04o}) and may have added "
            "tokens: check it with `steer token list`, then `chmod 600` it"
        )


def digest(token: str) -> str:
    """Return the SHA-256 of a token. Tokens are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_tokens(settings: Settings) -> TokenBook:
    """Create one local token per role where it is missing, and return the list of digests. Idempotent.

    A token is written before its digest, so the next call repairs an interrupted one. Other records of the list are
    kept. Raises `Damaged` if the list exists but cannot be read.
    """
    with lock_folder(settings.home):
        book = _book(settings)
        ids = {role: f"{LOCAL}{role}" for role in ROLES}
        records = [record for record in book.tokens if record.id not in ids.values()]
        for role, token_id in ids.items():
            token = _token_at(settings.token_file(role))
            records.append(TokenRecord(id=token_id, role=role, sha256=digest(token)))
        made = TokenBook(tokens=tuple(records))
        if made.text() != _text(settings):
            replace_file(settings.tokens_file, made.text())
        settings.tokens_file.chmod(0o600)
        return made


def add_token(
    settings: Settings,
    name: str,
    role: Role,
    runs: tuple[str, ...] | None = None,
    expires_at: datetime | None = None,
) -> str:
    """Add a token, valid for all runs unless `runs` is given, and return it; only its digest is stored.

    Raises `Invalid`, or `Conflict` if the name is taken.
    """
    if not NAME.fullmatch(name) or name.startswith(LOCAL):
        raise Invalid(
            f"{name!r} is not a valid token name: use 1 to 64 letters, digits, '.', '_', '@' and '-', not starting "
            f"with '{LOCAL}'"
        )
    if runs == ():
        raise Invalid("a token for no run grants nothing: give a pattern of runs, or none for all runs")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid(f"the expiry {expires_at:%Y-%m-%d %H:%M} is in the past")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        record = TokenRecord(id=name, role=role, sha256=digest(token), runs=runs, expires_at=expires_at)
    except ValidationError as error:
        raise Invalid(f"not a valid pattern of runs: {error.errors()[0]['input']!r}; for example: 'gpt2-*'") from None
    with lock_folder(settings.home):
        book = _book(settings)
        if any(record.id == name for record in book.tokens):
            raise Conflict(f"a token named {name!r} exists already: `steer token revoke {name}` first")
        replace_file(settings.tokens_file, TokenBook(tokens=(*book.tokens, record)).text())
    return token


def revoke_token(settings: Settings, name: str) -> bool:
    """Remove a token. Returns whether it was replaced: a local one is, by a new one. Raises `NotFound`."""
    with lock_folder(settings.home):
        book = _book(settings)
        left = tuple(record for record in book.tokens if record.id != name)
        if len(left) == len(book.tokens):
            raise NotFound(f"no token is named {name!r}; see `steer token list`")
        role = next((role for role in ROLES if name == f"{LOCAL}{role}"), None)
        if role is not None:
            settings.token_file(role).unlink(missing_ok=True)
        replace_file(settings.tokens_file, TokenBook(tokens=left).text())
    if role is not None:
        create_tokens(settings)
    return role is not None


def mint_agent_token(settings: Settings, run: str) -> str:
    """Return a new token for a run's agent, valid for that run only; an earlier one of the run is revoked."""
    token, name = secrets.token_urlsafe(TOKEN_BYTES), f"{AGENT_OF}{run}"
    record = TokenRecord(id=name, role="agent", sha256=digest(token), runs=(run,))
    with lock_folder(settings.home):
        kept = tuple(each for each in _book(settings).tokens if each.id != name)
        replace_file(settings.tokens_file, TokenBook(tokens=(*kept, record)).text())
    return token


def revoke_agent_tokens(settings: Settings, run: str | None = None) -> int:
    """Revoke the token of a run's agent, or those of all agents; return how many there were."""
    with lock_folder(settings.home):
        book = _book(settings)
        ids = {each.id for each in book.tokens if each.id.startswith(AGENT_OF)}
        revoked = ids if run is None else ids & {f"{AGENT_OF}{run}"}
        if revoked:
            kept = tuple(each for each in book.tokens if each.id not in revoked)
            replace_file(settings.tokens_file, TokenBook(tokens=kept).text())
    return len(revoked)


def mint_generator_token(settings: Settings, run: str, name: str, role: Role) -> str:
    """Return a new token for a generator of a run, valid for that run only; an earlier one is revoked.

    `role`: `agent` if a person approves its records, else `operator`.
    """
    token, owner = secrets.token_urlsafe(TOKEN_BYTES), author_of(name)
    record = TokenRecord(id=owner, role=role, sha256=digest(token), runs=(run,))
    with lock_folder(settings.home):
        kept = tuple(each for each in _book(settings).tokens if (each.id, each.runs) != (owner, (run,)))
        replace_file(settings.tokens_file, TokenBook(tokens=(*kept, record)).text())
    return token


def revoke_generator_tokens(settings: Settings, run: str | None = None, name: str | None = None) -> None:
    """Revoke the token of a generator of a run, or those of all generators."""
    with lock_folder(settings.home):
        book = _book(settings)
        kept = tuple(
            each
            for each in book.tokens
            if not each.id.startswith(AUTHOR)
            or (run is not None and (each.id, each.runs) != (author_of(name or ""), (run,)))
        )
        if len(kept) < len(book.tokens):
            replace_file(settings.tokens_file, TokenBook(tokens=kept).text())


def _text(settings: Settings) -> str:
    """Return the file's text, to detect whether it must be rewritten; empty if there is none."""
    return settings.tokens_file.read_text(errors="replace") if settings.tokens_file.exists() else ""


def _book(settings: Settings) -> TokenBook:
    return TokenBook.from_file(settings.tokens_file) if settings.tokens_file.exists() else TokenBook()


def _token_at(path: Path) -> str:
    make_folder(path.parent)
    path.parent.chmod(0o700)
    token = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if not token:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        replace_file(path, token + "\n")
    path.chmod(0o600)
    return token
