"""Redaction of the secrets that a process of a run can know: from its environment and the run's config."""

import json
import os
from collections.abc import Mapping
from hashlib import sha256

from control_plane.config_text import from_yaml
from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.model.redaction import Redaction, secrets_in
from control_plane.storage.layout import RunFiles
from control_plane.storage.regular import read_regular

_read: dict[str, tuple[str, ...]] = {}


def redaction_of(files: RunFiles | None, environ: Mapping[str, str] = os.environ) -> Redaction:
    """Return a redaction that removes the currently known secrets from text that this process is about to output."""
    return Redaction.of(environ, () if files is None else (*_of_config(files), *_of_variables(files)))


def _of_variables(files: RunFiles) -> tuple[str, ...]:
    """Return the values of variables that were declared secret, whatever their names."""
    try:
        values = json.loads(files.secrets.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(value for value in values.values() if isinstance(value, str)) if isinstance(values, dict) else ()


def _of_config(files: RunFiles) -> tuple[str, ...]:
    try:
        config = read_regular(files.config)
    except (Damaged, OSError):
        return ()
    digest = sha256(config).hexdigest()
    if digest not in _read:
        _read[digest] = _searched(config)
    return _read[digest]


def _searched(config: bytes) -> tuple[str, ...]:
    """Return the secrets in a config; none if it cannot be parsed, and the other sources still apply."""
    try:
        return tuple(secrets_in(from_yaml(config.decode(), "the run's config", as_text=True)))
    except (Invalid, UnicodeDecodeError):
        return ()
