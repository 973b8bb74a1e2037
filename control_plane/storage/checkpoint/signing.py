"""Signatures of checkpoints and configs: HMAC-SHA256 with the installation's key.

Loading a checkpoint unpickles it, so a forged one runs code. Hashes detect damage; only the signature detects a shard
that was changed together with its hash. The key is one file of the installation, readable by its owner alone.

The folder `accepted-keys` beside it may hold more keys, one per file, whose signatures are accepted but which sign
nothing: rotated keys, and those of other installations with which runs are exchanged.

Not covered: anyone who can read a key, or can change files between their verification and their use.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from control_plane.core.model.errors import Damaged, SteerwayError, Unavailable
from control_plane.storage.checkpoint.manifest import Manifest, complete
from control_plane.storage.checkpoint.shards import sync, sync_folder, write_all
from control_plane.storage.failpoints import reach
from control_plane.storage.private import check_folder, check_home, make_folder

KEY_BYTES = 32
KEY_TEXT = re.compile(rb"([0-9a-f]{64})\n?")
NAME_CHARS = 16
"""Length of the key's name before a signature, which tells another installation's signature from a forged one."""

ACCEPTED = "accepted-keys"

TRUST = "use --trust if you trust its origin"


class SigningKey:
    """Signing key of the installation. Build it with `of_installation`."""

    __slots__ = ("_accepted", "_name", "_secret")

    def __init__(self, secret: bytes, accepted: Iterable["SigningKey"] = ()) -> None:
        """Take `KEY_BYTES` secret bytes, and further accepted keys. Raises `Damaged` for another length."""
        if len(secret) != KEY_BYTES:
            raise Damaged(f"a signing key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret, self._accepted = secret, tuple(accepted)
        self._name = self._mac(b"the name of this key")[:NAME_CHARS]

    @classmethod
    def of_installation(cls, path: Path) -> "SigningKey":
        """Read the key, or create it if there is none. Concurrent creators all get the same one.

        Raises `Damaged` if the file is not a key, `SteerwayError` if other users have access to it or may write to its
        folder, `Unavailable` if the disk fails.
        """
        check_home(path.parent)
        try:
            if not os.path.lexists(path):
                _create(path)
            return cls(_read(path), [cls(_read(file)) for file in _accepted_files(path)])
        except OSError as error:
            raise Unavailable(
                f"the signing key {path} could not be read or created: {error.strerror or error}"
            ) from error

    def sign(self, manifest: Manifest) -> Manifest:
        """Return the manifest with this key's signature. Raises `Invalid` if it cannot be written as JSON."""
        manifest.canonical()
        whole = complete(manifest)
        return whole.model_copy(update={"signature": self._signature(whole)})

    def check(self, manifest: Manifest, root: Path) -> None:
        """Raise `Damaged` unless this key, or an accepted one, signed exactly this manifest. `root`: the checkpoint."""
        signature = manifest.signature
        if hmac.compare_digest(signature.encode(), self._signature(manifest).encode()):
            return
        if any(key.signed_text(manifest.canonical(), signature) for key in self._accepted):
            return
        if not signature:
            raise Damaged(f"checkpoint {root.name} is not signed: {TRUST}")
        name, _, mac = signature.partition(":")
        if re.fullmatch(rf"[0-9a-f]{{{NAME_CHARS}}}:[0-9a-f]{{64}}", signature) and name != self._name and mac:
            raise Damaged(
                f"checkpoint {root.name} was signed by another installation (key {name}; this one has {self._name}): "
                f"{TRUST}"
            )
        raise Damaged(f"the manifest of {root.name} was changed after it was signed; restoring it requires --trust")

    @property
    def name(self) -> str:
        """Return the key's public name, a digest of the key."""
        return self._name

    def sign_text(self, text: bytes) -> str:
        """Sign a text that is not a manifest; the text must say what it is."""
        return f"{self._name}:{self._mac(text)}"

    @property
    def accepted(self) -> tuple[str, ...]:
        """Return the names of the other accepted keys."""
        return tuple(key.name for key in self._accepted)

    def signed_text(self, text: bytes, signature: str) -> bool:
        """Return whether this key, or an accepted one, signed exactly this text."""
        if any(key.signed_text(text, signature) for key in self._accepted):
            return True
        return hmac.compare_digest(signature.encode(), self.sign_text(text).encode())

    def _signature(self, manifest: Manifest) -> str:
        return self.sign_text(manifest.canonical())

    def _mac(self, data: bytes) -> str:
        return hmac.new(self._secret, data, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        """Return the key's name, never its secret."""
        return f"SigningKey({self._name})"


def rotate(path: Path) -> tuple[SigningKey, Path]:
    """Create a new signing key and accept the old one; return the new key and the path of the old one.

    Crash-safe: a process that is killed meanwhile leaves the old key, or both. Raises like `of_installation`.
    """
    before = SigningKey.of_installation(path)
    kept = path.with_name(ACCEPTED) / before.name
    try:
        make_folder(kept.parent)
        with suppress(FileExistsError):
            os.link(path, kept)
        sync_folder(kept.parent, "key.folder")
        _put(path, os.replace)
    except OSError as error:
        raise Unavailable(f"the signing key {path} could not be rotated: {error.strerror or error}") from error
    return SigningKey.of_installation(path), kept


def _accepted_files(path: Path) -> list[Path]:
    folder = path.with_name(ACCEPTED)
    if not os.path.lexists(folder):
        return []
    check_folder(folder)
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _create(path: Path) -> None:
    """Create the installation's first key."""
    make_folder(path.parent)
    with suppress(FileExistsError):  # another process was faster: its key is the installation's
        _put(path, os.link)


def _put(path: Path, name: Callable[[Path, Path], None]) -> None:
    """Write a key under a temporary name, fsync, then name it, so that the name always refers to a complete key."""
    reach("key.file", "before_create")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(descriptor, secrets.token_hex(KEY_BYTES).encode() + b"\n", "key.file")
            sync(descriptor, "key.file")
        finally:
            os.close(descriptor)
        reach("key.file", "before_link")
        name(temporary, path)
    finally:
        reach("key.file", "before_unlink")
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent, "key.folder")


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise Damaged(f"the signing key {path} is a symbolic link; it must be a regular file") from error
        raise
    try:
        status = os.fstat(descriptor)
        _refuse_shared(path, status)
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    match = KEY_TEXT.fullmatch(text)
    if not match:
        raise Damaged(f"{path} is not a signing key: expected {2 * KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(match[1].decode())


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(f"the signing key {path} is not a regular file")
    if status.st_mode & 0o077:
        raise SteerwayError(
            f"other users have access to the signing key {path} (mode {stat.S_IMODE(status.st_mode):04o}), so its "
            "signatures prove nothing: `chmod 600` it if nobody has read it, or remove it to get a new one"
        )
