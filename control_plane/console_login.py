"""Console login: one-time keys and sessions, stored as private files of this installation.

A key is a secret of 256 bits in a link. Its first use creates a session and removes the key's file. A session has two
secrets: an id in a cookie, and a second one in the page's own storage. Browsers send a cookie to every port of a host,
so to another user's server, too; storage belongs to one port. Only digests of the secrets are stored, so the files do
not allow a login.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from control_plane.config import Role, Settings
from control_plane.core.model.errors import NotAllowed, SteerwayError
from control_plane.storage.private import make_folder, replace_file

VALID_S = 12 * 3600.0
"""Lifetime of a key, and of a session since its login: a working day."""

SECRET_BYTES = 32
MAX_SECRET_CHARS = 200
"""Longer than any generated secret; bounds what is hashed for an unauthenticated client."""


class KeyRecord(BaseModel):
    """Stored record of a key. `expires_at`: seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    expires_at: float


class SessionRecord(BaseModel):
    """Stored record of a session. It acts with the local token of `role`, or with the `token` it was opened with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_sha256: str
    expires_at: float
    role: Role | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials of a new session: the cookie's value, and the secret for the page's storage."""

    cookie: str
    secret: str


def create_link(where: Settings, role: Role = "operator", page: str = "") -> str:
    """Return a one-time login link, valid for `VALID_S`. The key is in the fragment (`#`), which no server receives.

    `page` is opened after the login, e.g. "/run?run=gpt2-1". Raises `SteerwayError` if the key cannot be stored.
    """
    key = secrets.token_urlsafe(SECRET_BYTES)
    record = KeyRecord(role=role, expires_at=time.time() + VALID_S)
    _write(_folder(where, "keys") / _digest(key), record.model_dump_json())
    return f"{where.console_url}/login#key={key}" + (f"&page={quote(page, safe='')}" if page else "")


def log_in_with_key(where: Settings, key: str) -> Login:
    """Consume a key and open a session. Raises `NotAllowed` if the key is unknown, used or expired."""
    path = _folder(where, "keys") / _digest(key)
    taken = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(taken)  # of two concurrent logins with one key, one succeeds
        record = KeyRecord.model_validate_json(taken.read_bytes())
        taken.unlink()
    except (OSError, ValidationError):
        raise NotAllowed("this link is unknown or already used; `steer console` prints a new one") from None
    if record.expires_at < time.time():
        raise NotAllowed("this link has expired; `steer console` prints a new one")
    return _begin(where, role=record.role)


def log_in_with_token(where: Settings, token: str) -> Login:
    """Open a session that acts with this token, which the caller has verified with the gateway."""
    return _begin(where, token=token)


def find_session(where: Settings, cookie: str | None) -> tuple[str, SessionRecord] | None:
    """Return the name and record of the unexpired session with this cookie, or None."""
    name = _digest(cookie or "")
    record = read_session(where, name) if cookie else None
    return None if record is None else (name, record)


def read_session(where: Settings, name: str) -> SessionRecord | None:
    """Return an unexpired session by its name, the SHA-256 of its cookie's value, or None."""
    if len(name) != 64 or not name.isalnum():
        return None
    try:
        record = SessionRecord.model_validate_json((where.home / "console" / "sessions" / name).read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.expires_at >= time.time() else None


def has_secret(record: SessionRecord, secret: str | None) -> bool:
    """Return whether this is the session's second secret."""
    return secret is not None and hmac.compare_digest(record.secret_sha256, _digest(secret))


def log_out(where: Settings, name: str) -> None:
    """End a session. Idempotent."""
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
    """Return the private folder of keys or sessions, after removing expired ones."""
    folder = where.home / "console" / name
    try:
        make_folder(folder)
        for old in folder.iterdir():
            if old.stat().st_mtime < time.time() - VALID_S:
                old.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # removed concurrently
    except OSError as error:
        raise SteerwayError(f"the console's logins cannot be stored in {folder}: {error.strerror}") from None
    return folder


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text)
    except OSError as error:
        raise SteerwayError(f"the console's logins cannot be stored in {path.parent}: {error.strerror}") from None
