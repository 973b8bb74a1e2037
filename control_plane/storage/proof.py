"""Proof that processes on several machines see one and the same folder, and one signing key.

One process writes a nonce into the folder and hands it on by another way (Ray); every other process reads the file and
compares. The same path on another machine's own disk, another installation's key and a read-only mount are refused
with a sentence that names the machine and the path. Reading takes about a millisecond.

Not covered: a file system that shows one machine's changes to another one only later; see `probe` in `storage.probe`.
"""

import os
import secrets
import socket
from pathlib import Path

from pydantic import Field

from control_plane.core.model.errors import Invalid, Refused, SteerwayError
from control_plane.core.model.intent_base import Message
from control_plane.storage.checkpoint.signing import SigningKey
from control_plane.storage.private import FILE_MODE, replace_file

PROOF = ".storage-proof-"
"""Prefix of the proof's file name, which ends with the nonce: a network file system may serve a file that it knows
from its cache for a minute, but asks the server for a name that is new to it."""

SHARE = "every node must mount the same shared folder at this path (docs/deploy.md)"


class StorageProof(Message):
    """Content that every machine must find: the nonce in the folder's proof file, and the signing key's public name.

    machine: name of the machine that wrote it, for messages.
    """

    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    key: str
    machine: str


def machine_name() -> str:
    """Return the name of this machine, for messages."""
    return socket.gethostname()


def write_proof(folder: Path, signing_key: Path) -> StorageProof:
    """Write a new nonce into the folder and return what other machines must find there.

    Raises `Refused` if the folder cannot be written, and what `SigningKey.of_installation` raises.
    """
    proof = StorageProof(
        nonce=secrets.token_hex(16), key=SigningKey.of_installation(signing_key).name, machine=machine_name()
    )
    try:
        for old in folder.glob(f"{PROOF}*"):
            old.unlink(missing_ok=True)
        replace_file(_file(folder, proof), proof.key + "\n")
    except OSError as error:
        raise Refused(f"{_here()} cannot write to {folder}: {error.strerror or error}") from None
    return proof


def _file(folder: Path, proof: StorageProof) -> Path:
    return folder / f"{PROOF}{proof.nonce}"


def check_proof(proof: StorageProof, folder: Path, signing_key: Path) -> None:
    """Check that this machine sees the folder and the key of the proof's writer, and may write to the folder.

    Raises `Refused`, naming machine and path.
    """
    _check_nonce(proof, folder)
    _check_key(proof, signing_key)
    _check_writable(folder)


def _check_nonce(proof: StorageProof, folder: Path) -> None:
    try:
        found = _file(folder, proof).is_file()
        what = "has no such folder" if not folder.is_dir() else "finds another folder there (its nonce is missing)"
    except OSError as error:
        raise Refused(f"{_here()} cannot read {folder}: {_reason(error)}; {SHARE}") from None
    if not found:
        raise Refused(f"{_here()} does not share {folder} with {proof.machine}: it {what}; {SHARE}")


def _check_key(proof: StorageProof, signing_key: Path) -> None:
    if not os.path.lexists(signing_key):
        raise Refused(f"{_here()} has no signing key at {signing_key}, but {proof.machine} has one; {SHARE}")
    try:
        name = SigningKey.of_installation(signing_key).name
    except SteerwayError as error:
        raise Refused(f"{_here()} cannot use the signing key {signing_key}: {error.reason}") from None
    if name != proof.key:
        raise Refused(
            f"{_here()} has another signing key at {signing_key} ({name}) than {proof.machine} ({proof.key}), so it "
            f"could verify no checkpoint; {SHARE}"
        )


def _check_writable(folder: Path) -> None:
    draft = folder / f"{PROOF}.{secrets.token_hex(8)}"
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
        draft.unlink()
    except OSError as error:
        raise Refused(f"{_here()} cannot write to {folder}: {_reason(error)}") from None


def _here() -> str:
    return f"node {machine_name()}"


def _reason(error: BaseException) -> str:
    if isinstance(error, SteerwayError):
        return error.reason
    return getattr(error, "strerror", None) or str(error)


def proof_of(content: object) -> StorageProof:
    """Return the proof in a config that a process was handed. Raises `Invalid` if it is malformed."""
    try:
        return StorageProof.model_validate(content)
    except ValueError:
        raise Invalid("the proof of the storage is malformed: the driver is of another release") from None
