"""Process that has a generator's function called on the cluster: one JSON request in, one JSON line out.

    python -P -m ray_jobs.service.generate < REQUEST.json

It runs beside the gateway and executes no code of the run: that is a Ray task on the run's cluster, with the runtime
environment of the run's ranks and no CPU of its own, so that it starts while ranks hold them all. What the task may do
is what the training script may do. Its answer comes back as text.
"""

import json
import logging
import os
import sys
from typing import Any

from control_plane.config import settings
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.storage.layout import find_run
from ray_jobs.config.own_config import own_config
from ray_jobs.submit import ray_environment

MAX_REASON_CHARS = 300


def main() -> int:
    """Answer one request, and return the exit status: 0 if it was answered, with an error, too."""
    try:
        request = json.loads(sys.stdin.buffer.read())
        answer = ask(request)
    except SteerwayError as error:
        answer = json.dumps({"error": error.reason})
    except Exception as error:
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]})
    print(answer, flush=True)
    return 0


def ask(request: dict[str, Any]) -> str:
    """Have a task answer the request, and return its answer: a JSON object in one line.

    Raises `Unavailable` without an answer within `limit_s`, `Refused` if this installation has not signed the run.
    """
    where = settings()
    os.environ.update(ray_environment(where))  # Ray reads it when it is imported
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    from ray_jobs.driver.rank_environment import rank_environment
    from ray_jobs.driver.ray_internals import setup_hook_variable
    from ray_jobs.service.generating import generated

    files = find_run(where.runs_dir, str(request["run"]))
    config = own_config(files)
    try:
        ray.init(address=where.ray_address, namespace="steerway", logging_level=logging.WARNING, log_to_driver=False)
        environment = rank_environment(config, files, "cpu")
        environment["env_vars"].pop(setup_hook_variable())  # it imports what only ranks need
        task = ray.remote(generated).options(num_cpus=0, max_retries=0, runtime_env=environment)
        running = task.remote(str(files.root), json.dumps(request))
        try:
            return str(ray.get(running, timeout=float(request["limit_s"])))
        except GetTimeoutError:
            ray.cancel(running, force=True)
            raise Unavailable(f"the function did not answer within {request['limit_s']:g} s, and was ended") from None
    except (ConnectionError, RayError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise Unavailable(f"the cluster did not run the function: {reason[:MAX_REASON_CHARS]}") from None


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.exit(main())
