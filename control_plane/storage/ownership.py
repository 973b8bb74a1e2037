"""Signature of a run's config: an installation only starts jobs from configs that it has signed.

A config names a script and its arguments, so whoever writes it runs code. The signature covers the run's id and every
byte of the config: a run that was imported, copied from another installation, or given another config has no valid
one.

Not covered: the journal, which is not signed and names no code; the script itself.
"""

import json
import os
from hashlib import sha256

from control_plane.core.model.errors import Damaged, Unavailable
from control_plane.storage.checkpoint.signing import SigningKey
from control_plane.storage.layout import IMPORTED, RunFiles
from control_plane.storage.private import replace_file
from control_plane.storage.regular import open_regular, read_regular

MAX_READ_BYTES = 1 << 20
"""Limit of what is read of an import's manifest."""

MAX_SIGNATURE_BYTES = 256


def sign_config(files: RunFiles) -> None:
    """Sign this run's current config, so that it may start jobs here. Raises `Unavailable` if the disk fails."""
    try:
        signature = SigningKey.of_installation(files.signing_key).sign_text(_signed(files, _read(files)))
        replace_file(files.config_signature, signature + "\n")
    except OSError as error:
        raise Unavailable(f"{files.config_signature} could not be written: {error.strerror or error}") from error


def signed_config(files: RunFiles) -> str | None:
    """Return the text of the run's config if this installation has signed exactly that; else None.

    Use the returned text and do not read the file again, so that the text is what was verified.
    Raises `Damaged` if the config cannot be read.
    """
    try:
        config = _read(files)
        text = config.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{files.config} cannot be read ({type(error).__name__})") from None
    key = SigningKey.of_installation(files.signing_key)
    return text if key.signed_text(_signed(files, config), _signature(files)) else None


def whence(files: RunFiles) -> str:
    """Return the origin of a run whose config this installation has not signed, as the end of a sentence.

    Contains untrusted text, which the caller must escape.
    """
    if os.path.lexists(files.root / IMPORTED):
        return f"was imported{_of_machine(files)}"
    key, signature = SigningKey.of_installation(files.signing_key), _signature(files)
    if not signature:
        return "was copied here or created by an earlier release: its config is not signed"
    signer = signature.partition(":")[0]
    if signer == key.name:
        return "has another config or another id than this installation has signed"
    return f"was created by another installation (key {signer[:16]}; this one has {key.name})"


def _of_machine(files: RunFiles) -> str:
    try:
        with open_regular(files.root / IMPORTED) as file:
            manifest = json.loads(file.read(MAX_READ_BYTES))
        run, machine = manifest["run"], manifest["machine"]
        return f" from an export of run {run} ({machine['system']} {machine['architecture']}, {machine['cpu']})"
    except (Damaged, OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""  # informative only: an import's manifest is not trusted


def _signed(files: RunFiles, config: bytes) -> bytes:
    return f"config of run {files.run}: {sha256(config).hexdigest()}".encode()


def _read(files: RunFiles) -> bytes:
    return read_regular(files.config)


def _signature(files: RunFiles) -> str:
    try:
        with open_regular(files.config_signature) as file:
            return file.read(MAX_SIGNATURE_BYTES).decode("ascii", "replace").strip()
    except (Damaged, OSError):
        return ""
