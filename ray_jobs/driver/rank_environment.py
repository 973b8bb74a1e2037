"""Ray's runtime environment of a run's ranks: its variables, code bundle, packages and modules.

Only ranks get the user's code and packages, with their warm spares and whatever a script starts with Ray. The driver
and the control server keep the cluster's own Python: a package that breaks pydantic breaks the script, not its run.

The bundle is used where it was unpacked, in RUN/code, and not as Ray's `working_dir`: that would come first on the path
of each process, where a user's module named as one of Ray's or Steerway's libraries keeps it from starting, and be
copied into the memory of the head. `warm_spares.preload` adds the folder when everything of ours is imported.
"""

import logging
import os
from pathlib import Path
from typing import Any

from control_plane.core.model.errors import Refused
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from ray_jobs.config.bundled_paths import located
from ray_jobs.config.environment import first_variables
from ray_jobs.config.run_config import RunConfig
from ray_jobs.config.runtime_env import is_local
from ray_jobs.driver.warm_spares import CODE, worker_environment

log = logging.getLogger(__name__)

MAX_REASON_CHARS = 1000


def rank_environment(config: RunConfig, files: RunFiles, accelerator: str) -> dict[str, Any]:
    """Return the runtime environment of the ranks; `accelerator`: see `warm_spares.worker_environment`."""
    there = located(config, files)
    ours = worker_environment(accelerator, config.recovery.user_code_s)
    environment: dict[str, Any] = {"env_vars": first_variables(config) | ours}
    folders = [str(files.code)] if config.bundle is not None else []
    folders += [str(Path(module).parent) for module in there.runtime_env.py_modules if is_local(module)]
    if folders:
        environment["env_vars"][CODE] = os.pathsep.join(dict.fromkeys(folders))
    if remote := [module for module in there.runtime_env.py_modules if not is_local(module)]:
        environment["py_modules"] = remote
    if there.runtime_env.pip:
        environment["pip"] = list(there.runtime_env.pip)
    return environment


def check_environment(environment: dict[str, Any], files: RunFiles) -> None:
    """Build the environment once, before the ranks: an error in it would be taken for a failure of theirs.

    Raises `Refused` with pip's own words.
    """
    import ray
    from ray.exceptions import RuntimeEnvSetupError

    if "pip" not in environment and "py_modules" not in environment:
        return
    log.info("building the environment of the ranks: pip %s", environment.get("pip", []))
    built = ray.remote(_nothing).options(num_cpus=0, runtime_env=environment)
    try:
        ray.get(built.remote())
    except RuntimeEnvSetupError as error:
        reason = reason_of(redaction_of(files).text(str(error)))
        raise Refused(f"the environment of the ranks (runtime_env) cannot be built: {reason}") from None


def reason_of(message: str) -> str:
    """Return the lines of Ray's message that say why: pip's errors, or its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    return " ".join(dict.fromkeys(errors))[:MAX_REASON_CHARS]


def _nothing() -> None:
    return None
