"""The environment variables of a run: plain ones in its config, secret ones in a file beside it.

A plain value is kept in the config and seen by whoever sees that. A secret one (`{secret: true}`, or `--env NAME`) is
taken from the submitter's environment and lies in RUN/secrets.json, mode 0600: it is in no config, journal, export or
log, and a run that was moved without the file asks for its secrets by name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from control_plane.core.errors import Damaged, Invalid
from control_plane.core.redaction import names_secret
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import write_file
from ray_jobs.config_sections import SecretVariable

if TYPE_CHECKING:
    from ray_jobs.config import RunConfig

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
OURS = re.compile(
    r"(?:STEERWAY|RAY|TORCHELASTIC)_.*|(?:LOCAL_|NODE_|GROUP_|ROLE_)?(?:RANK|WORLD_SIZE)|MASTER_(?:ADDR|PORT)|"
    r"CUDA_VISIBLE_DEVICES|DS_ACCELERATOR"
)
"""What says who a rank is and what it runs on: Ray's and Steerway's to set."""

OF_THE_INTERPRETER = re.compile(r"PYTHON.*|LD_.*|PATH|HOME|TMPDIR|VIRTUAL_ENV")
"""What decides whether a worker process can start at all: set in it later, for what the script starts."""


def check_variables(env: Mapping[str, "str | SecretVariable"]) -> None:
    """Raises `ValueError` for a name that cannot be one, is not the run's to set, or has a secret in the open."""
    for name, value in env.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if OURS.fullmatch(name):
            raise ValueError(f"{name} is set for each rank by Steerway and Ray, and not by a config")
        if isinstance(value, str) and names_secret(name):
            raise ValueError(
                f"{name} looks like a secret, and a config is kept and shown: write `{name}: {{secret: true}}` and set "
                f"it in the shell where you submit, or submit with --env {name}"
            )


def with_variables(config: "RunConfig", names: Iterable[str]) -> "RunConfig":
    """The config with these variables marked as secret ones. Raises `Invalid`."""
    env = dict(config.env) | {name: SecretVariable(secret=True) for name in names}
    try:
        check_variables(env)
    except ValueError as error:
        raise Invalid(f"--env: {error}") from None
    return config.model_copy(update={"env": env})


def keep_secrets(files: RunFiles, config: "RunConfig", environ: Mapping[str, str], given: Iterable[str] = ()) -> None:
    """Put into the run's file what it needs and has not yet, and `given` again. Raises `Invalid` if one is missing."""
    known, wanted, given = read_secrets(files), secret_names(config), list(given)
    if strange := sorted(set(given) - set(wanted)):
        raise Invalid(
            f"run {files.run} has no secret variable {', '.join(strange)}; it has {', '.join(wanted) or 'none'}"
        )
    missing = [name for name in wanted if name not in environ and (name in given or name not in known)]
    if missing:
        flags = " ".join(f"--env {name}" for name in missing)
        raise Invalid(
            f"run {files.run} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not set here: "
            f"set {'it' if len(missing) == 1 else 'them'} in this shell, then the same with {flags}"
        )
    new = {name: environ[name] for name in wanted if name in given or name not in known}
    if new:
        write_file(files.secrets, json.dumps(known | new))


def secret_names(config: "RunConfig") -> list[str]:
    """The names of the run's secret variables."""
    return sorted(name for name, value in config.env.items() if not isinstance(value, str))


def read_secrets(files: RunFiles) -> dict[str, str]:
    """The run's secrets by name. Raises `Damaged` if the file is none of ours."""
    try:
        found = json.loads(files.secrets.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Damaged(f"{files.secrets} cannot be read as a run's secrets; remove it and submit with --env again")
    return found


def variables(config: "RunConfig", files: RunFiles) -> dict[str, str]:
    """What a rank sets. Raises `Invalid` naming secrets that are not here."""
    known = read_secrets(files)
    if missing := [name for name in secret_names(config) if name not in known]:
        flags = " ".join(f"--env {name}" for name in missing)
        raise Invalid(
            f"run {files.run} lacks {', '.join(missing)}: `steer resume {files.run} {flags}` from a shell with them"
        )
    plain = {name: value for name, value in config.env.items() if isinstance(value, str)}
    return plain | {name: known[name] for name in secret_names(config)}


def first_variables(config: "RunConfig") -> dict[str, str]:
    """Plain ones for the very start of a rank's process: libraries read some when they are imported (`HF_HOME`,
    `HF_HUB_OFFLINE`, `OMP_NUM_THREADS`), and a spare has imported everything before it knows its run. Ray shows an
    environment to whoever sees its jobs, so secrets come later, from their file."""
    plain = {name: value for name, value in config.env.items() if isinstance(value, str)}
    return {name: value for name, value in plain.items() if not OF_THE_INTERPRETER.fullmatch(name)}
