"""Who committed a checkpoint: HMAC-SHA256 with the installation's key.

Loading a checkpoint unpickles it, so whoever can forge one runs code. Hashes find damage; only the signature finds
somebody who changes a shard and its hash. The key is one file of the installation, readable by its owner alone.

Beside it the folder `accepted-keys` may hold more keys, one a file. Nothing is signed with them, and what they have
signed is accepted: keys that were rotated away, and those of other installations with which runs are exchanged.

Not covered: whoever can read a key, or can change files between their verification and their use.
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
"""So much of a digest of the key stands before a signature, to tell another installation's from a forged one."""

ACCEPTED = "accepted-keys"

TRUST = "load it with --trust if you know where it comes from"


class SigningKey:
    """The installation's key. Build it with `of_installation`."""

    __slots__ = ("_accepted", "_name", "_secret")

    def __init__(self, secret: bytes, accepted: Iterable["SigningKey"] = ()) -> None:
        """Take `KEY_BYTES` secret bytes, and the keys whose signatures count, too. Raises `Damaged` if too few."""
        if len(secret) != KEY_BYTES:
            raise Damaged(f"a signing key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret, self._accepted = secret, tuple(accepted)
        self._name = self._mac(b"the name of this key")[:NAME_CHARS]

    @classmethod
    def of_installation(cls, path: Path) -> "SigningKey":
        """Read the key, or make it if there is none. Processes that race to make it all get the same one.

        Raises: `Damaged` if the file is not a key, `SteerwayError` if others than its owner have access to it or may
        write to its folder, `Unavailable` if the disk fails.
        """
        check_home(path.parent)
        try:
            if not os.path.lexists(path):
                _create(path)
            return cls(_read(path), [cls(_read(each)) for each in _accepted_files(path)])
        except OSError as error:
            raise Unavailable(f"the signing key {path} could not be read or made: {error.strerror or error}") from error

    def sign(self, manifest: Manifest) -> Manifest:
        """The manifest with this key's signature. Raises `Invalid` if JSON cannot hold it."""
        manifest.canonical()
        whole = complete(manifest)
        return whole.model_copy(update={"signature": self._signature(whole)})

    def check(self, manifest: Manifest, root: Path) -> None:
        """Raises `Damaged` unless this key signed exactly this manifest. `root` is the checkpoint, for the sentence."""
        told = manifest.signature
        if hmac.compare_digest(told.encode(), self._signature(manifest).encode()):
            return
        if any(key.signed_text(manifest.canonical(), told) for key in self._accepted):
            return
        if not told:
            raise Damaged(f"checkpoint {root.name} is not signed: {TRUST}")
        name, _, mac = told.partition(":")
        if re.fullmatch(rf"[0-9a-f]{{{NAME_CHARS}}}:[0-9a-f]{{64}}", told) and name != self._name and mac:
            raise Damaged(
                f"checkpoint {root.name} was signed by another installation (key {name}, this one is {self._name}): "
                f"{TRUST}"
            )
        raise Damaged(f"the manifest of {root.name} was changed after it was signed; restoring it needs --trust")

    @property
    def name(self) -> str:
        """What tells this key from another one. It is no secret."""
        return self._name

    def sign_text(self, text: bytes) -> str:
        """This key's signature of something else than a manifest; `text` says what it is."""
        return f"{self._name}:{self._mac(text)}"

    @property
    def accepted(self) -> tuple[str, ...]:
        """The names of the other keys whose signatures count."""
        return tuple(key.name for key in self._accepted)

    def signed_text(self, text: bytes, signature: str) -> bool:
        """Whether this key, or one that is accepted, signed exactly this text."""
        if any(key.signed_text(text, signature) for key in self._accepted):
            return True
        return hmac.compare_digest(signature.encode(), self.sign_text(text).encode())

    def _signature(self, manifest: Manifest) -> str:
        return self.sign_text(manifest.canonical())

    def _mac(self, data: bytes) -> str:
        return hmac.new(self._secret, data, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        """Names the key and does not show it."""
        return f"SigningKey({self._name})"


def rotate(path: Path) -> tuple[SigningKey, Path]:
    """Sign with a fresh key from now on, and accept the one before: answers the fresh one, and where the old one lies.

    A process that is killed meanwhile leaves the old key, or both. Raises what `SigningKey.of_installation` does.
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
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _create(path: Path) -> None:
    """The installation's first key."""
    make_folder(path.parent)
    with suppress(FileExistsError):  # another process was faster: its key is the installation's
        _put(path, os.link)


def _put(path: Path, name: Callable[[Path, Path], None]) -> None:
    """Make a key under another name, whole and durable, then name it: whoever sees the name sees a whole key."""
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
            raise Damaged(f"the signing key {path} is a symbolic link; it has to be a file of its own") from error
        raise
    try:
        status = os.fstat(descriptor)
        _refuse_shared(path, status)
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    match = KEY_TEXT.fullmatch(text)
    if not match:
        raise Damaged(f"{path} is not a signing key: {2 * KEY_BYTES} hexadecimal digits are expected in it")
    return bytes.fromhex(match[1].decode())


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(f"the signing key {path} is not a regular file")
    if status.st_mode & 0o077:
        raise SteerwayError(
            f"others than its owner have access to the signing key {path} (mode {stat.S_IMODE(status.st_mode):04o}), "
            "so its signatures prove nothing: `chmod 600` it if nobody has used that, or remove it to get a new one"
        )
