"""Environment variables of a run: plain ones in its config, secret ones in a file beside it.

A plain value is visible to everybody who can see the config. A secret one (`{secret: true}`, or `--env NAME`) is
taken from the submitter's environment and stored in RUN/secrets.json, mode 0600: it is in no config, journal, export
or log, and a run that was moved without that file asks for its secrets by name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.model.redaction import names_secret
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import write_file
from ray_jobs.config.sections import SecretVariable

if TYPE_CHECKING:
    from ray_jobs.config.run_config import RunConfig

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
OURS = re.compile(
    r"(?:STEERWAY|RAY|TORCHELASTIC)_.*|(?:LOCAL_|NODE_|GROUP_|ROLE_)?(?:RANK|WORLD_SIZE)|MASTER_(?:ADDR|PORT)|"
    r"CUDA_VISIBLE_DEVICES|DS_ACCELERATOR"
)
"""Variables for the identity and the devices of a rank, which only Ray and Steerway may set."""

OF_THE_INTERPRETER = re.compile(r"PYTHON.*|LD_.*|PATH|HOME|TMPDIR|VIRTUAL_ENV")
"""Variables that could keep a worker process from starting: set after its start, for the script's own processes."""


def check_variables(env: Mapping[str, "str | SecretVariable"]) -> None:
    """Raise `ValueError` for an invalid or reserved name, and for a secret in plain text."""
    for name, value in env.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if OURS.fullmatch(name):
            raise ValueError(f"{name} is reserved: Steerway and Ray set it for each rank")
        if isinstance(value, str) and names_secret(name):
            raise ValueError(
                f"{name} looks like a secret, and a config is stored and shown in plain text: write "
                f"`{name}: {{secret: true}}` and set it in the shell where you submit, or submit with --env {name}"
            )


def with_variables(config: "RunConfig", names: Iterable[str]) -> "RunConfig":
    """Return the config with these variables marked as secret. Raises `Invalid`."""
    env = dict(config.env) | {name: SecretVariable(secret=True) for name in names}
    try:
        check_variables(env)
    except ValueError as error:
        raise Invalid(f"--env: {error}") from None
    return config.model_copy(update={"env": env})


def keep_secrets(files: RunFiles, config: "RunConfig", environ: Mapping[str, str], given: Iterable[str] = ()) -> None:
    """Store the run's missing secrets from `environ`, and replace those in `given`. Raises `Invalid` for unset ones."""
    known, wanted, given = read_secrets(files), secret_names(config), list(given)
    if unknown := sorted(set(given) - set(wanted)):
        raise Invalid(
            f"run {files.run} has no secret variable {', '.join(unknown)}; it has {', '.join(wanted) or 'none'}"
        )
    missing = [name for name in wanted if name not in environ and (name in given or name not in known)]
    if missing:
        flags = " ".join(f"--env {name}" for name in missing)
        raise Invalid(
            f"run {files.run} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not set here: "
            f"set {'it' if len(missing) == 1 else 'them'} in this shell, then repeat the command with {flags}"
        )
    new = {name: environ[name] for name in wanted if name in given or name not in known}
    if new:
        write_file(files.secrets, json.dumps(known | new))


def secret_names(config: "RunConfig") -> list[str]:
    """Return the names of the run's secret variables, sorted."""
    return sorted(name for name, value in config.env.items() if not isinstance(value, str))


def read_secrets(files: RunFiles) -> dict[str, str]:
    """Return the run's secrets by name. Raises `Damaged` if the file is malformed."""
    try:
        content = json.loads(files.secrets.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise Damaged(f"{files.secrets} cannot be read as a run's secrets; remove it and submit with --env again")
    return content


def variables(config: "RunConfig", files: RunFiles) -> dict[str, str]:
    """Return the variables that a rank sets. Raises `Invalid`, naming the secrets that are missing."""
    known = read_secrets(files)
    if missing := [name for name in secret_names(config) if name not in known]:
        flags = " ".join(f"--env {name}" for name in missing)
        raise Invalid(
            f"run {files.run} lacks {', '.join(missing)}: `steer resume {files.run} {flags}` from a shell with them"
        )
    plain = {name: value for name, value in config.env.items() if isinstance(value, str)}
    return plain | {name: known[name] for name in secret_names(config)}


def first_variables(config: "RunConfig") -> dict[str, str]:
    """Return the plain variables that must be set when a rank's process starts.

    Libraries read some when they are imported (`HF_HOME`, `HF_HUB_OFFLINE`, `OMP_NUM_THREADS`), and a warm spare has
    imported everything before it knows its run. Ray shows a runtime environment to everybody who can see its jobs, so
    secrets are set later, from their file.
    """
    plain = {name: value for name, value in config.env.items() if isinstance(value, str)}
    return {name: value for name, value in plain.items() if not OF_THE_INTERPRETER.fullmatch(name)}
