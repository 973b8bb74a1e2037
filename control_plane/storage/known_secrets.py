"""The secrets that a process of a run can know: those of its environment and those of the run's config."""

import os
from collections.abc import Mapping
from hashlib import sha256

import yaml

from control_plane.core.redaction import Redaction, secrets_in
from control_plane.storage.layout import RunFiles

MAX_CONFIG_BYTES = 2**20
"""A config that is longer, or cannot be read, is not searched: what is told is still cleaned of everything else."""

_read: dict[str, tuple[str, ...]] = {}


def redaction_of(files: RunFiles | None, environ: Mapping[str, str] = os.environ) -> Redaction:
    """What takes the secrets that are known here, now, out of a text that this process is about to tell."""
    return Redaction.of(environ, () if files is None else _of_config(files))


def _of_config(files: RunFiles) -> tuple[str, ...]:
    try:
        config = files.config.read_bytes()
    except OSError:
        return ()
    digest = sha256(config).hexdigest()
    if digest not in _read:
        _read[digest] = _searched(config)
    return _read[digest]


def _searched(config: bytes) -> tuple[str, ...]:
    if len(config) > MAX_CONFIG_BYTES:
        return ()
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(config)):
            return ()  # followed, a few of them can stand for more values than there is time
        return tuple(secrets_in(yaml.load(config, Loader=yaml.BaseLoader)))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return ()
