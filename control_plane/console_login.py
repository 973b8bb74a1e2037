"""Logging in to the console: one-time keys and sessions, kept as private files of this installation.

A key is a secret of 256 bits in a link. Whoever shows it first gets a session, and the key's file is gone. A session is
two secrets: an id, which the browser keeps in a cookie, and a second one, which a page keeps in its own storage.
Browsers send a cookie to every port of a host, so to another user's server, too; storage belongs to one port. On the
disk lie digests of all three, so that whoever reads the files cannot log in with them.
"""

import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from control_plane.config import Role, Settings
from control_plane.core.model.errors import NotAllowed, SteerwayError

VALID_S = 12 * 3600.0
"""How long a key may be used, and how long a session lasts from the login on. A working day."""

SECRET_BYTES = 32
MAX_SECRET_CHARS = 200
"""Longer than any secret that we make; bounds what is hashed for a stranger."""


class KeyRecord(BaseModel):
    """What is kept of a key. `expires_at`: seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    expires_at: float


class SessionRecord(BaseModel):
    """What is kept of a session. It acts with the local token of `role`, or with `token`, which somebody brought."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_sha256: str
    expires_at: float
    role: Role | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Login:
    """What a browser gets for a key or a token: the cookie's value, and the secret for the page's storage."""

    cookie: str
    secret: str


def create_link(where: Settings, role: Role = "operator", page: str = "") -> str:
    """A link that logs one browser in, once, within `VALID_S`. The key stands behind `#`, which no server is sent.

    `page` is where the browser goes then, e.g. "/run?run=gpt2-1". Raises `SteerwayError` if the key cannot be kept.
    """
    key = secrets.token_urlsafe(SECRET_BYTES)
    record = KeyRecord(role=role, expires_at=time.time() + VALID_S)
    _write(_folder(where, "keys") / _digest(key), record.model_dump_json())
    return f"{where.console_url}/login#key={key}" + (f"&page={quote(page, safe='')}" if page else "")


def log_in_with_key(where: Settings, key: str) -> Login:
    """Use a key up. Raises `NotAllowed` if it is unknown, was used, or is too old."""
    path = _folder(where, "keys") / _digest(key)
    taken = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(taken)  # of two who show one key at once, one succeeds
        record = KeyRecord.model_validate_json(taken.read_bytes())
        taken.unlink()
    except (OSError, ValidationError):
        raise NotAllowed("this link is unknown or was used already: `steer console` prints a new one") from None
    if record.expires_at < time.time():
        raise NotAllowed("this link is too old: `steer console` prints a new one")
    return _begin(where, role=record.role)


def log_in_with_token(where: Settings, token: str) -> Login:
    """A session that acts with this token. The caller has asked the gateway whether it knows it."""
    return _begin(where, token=token)


def find_session(where: Settings, cookie: str | None) -> tuple[str, SessionRecord] | None:
    """A living session and its name, by the value of its cookie alone."""
    name = _digest(cookie or "")
    record = read_session(where, name) if cookie else None
    return None if record is None else (name, record)


def read_session(where: Settings, name: str) -> SessionRecord | None:
    """A living session by its name, which is the SHA-256 of its cookie's value."""
    if len(name) != 64 or not name.isalnum():
        return None
    try:
        record = SessionRecord.model_validate_json((where.home / "console" / "sessions" / name).read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.expires_at >= time.time() else None


def has_secret(record: SessionRecord, secret: str | None) -> bool:
    """Whether this is the session's second secret."""
    return secret is not None and hmac.compare_digest(record.secret_sha256, _digest(secret))


def log_out(where: Settings, name: str) -> None:
    """End a session. May be repeated."""
    if read_session(where, name) is not None:
        (where.home / "console" / "sessions" / name).unlink(missing_ok=True)


def _begin(where: Settings, role: Role | None = None, token: str | None = None) -> Login:
    login = Login(secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES))
    record = SessionRecord(
        secret_sha256=_digest(login.secret), expires_at=time.time() + VALID_S, role=role, token=token
    )
    _write(_folder(where, "sessions") / _digest(login.cookie), record.model_dump_json())
    return login


def _digest(secret: str) -> str:
    return hashlib.sha256(secret[:MAX_SECRET_CHARS].encode("utf-8", "surrogatepass")).hexdigest()


def _folder(where: Settings, name: str) -> Path:
    """The private folder of keys or sessions, without what nobody can use any more."""
    folder = where.home / "console" / name
    try:
        for made in (where.home, folder.parent, folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.stat().st_mtime < time.time() - VALID_S:
                old.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # somebody else has removed it in the same moment
    except OSError as error:
        raise SteerwayError(f"the console's logins cannot be kept in {folder}: {error.strerror}") from None
    return folder


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise SteerwayError(f"the console's logins cannot be kept in {path.parent}: {error.strerror}") from None
