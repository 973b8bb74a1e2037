"""A config becomes a Ray job.

    python -m ray_jobs.submit configs/gpt2-local.yaml [key=value ...] [--run ID] [--json]

The config is checked and resolved before anything is started; the run's folder is made; the job is handed to Ray's
Jobs API with the run's id as its submission id.
"""

import argparse
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from control_plane.config import Settings, settings
from control_plane.core.errors import Conflict, SteerwayError, Unavailable
from control_plane.storage.layout import RUN_ID, RunFiles, check_run_id
from ray_jobs.config import RunConfig, check_training_keys, load


def new_run_id(name: str) -> str:
    """The config's name, the day, and enough chance to be unique."""
    stem = name[: 64 - len("-20260101-000000")]
    run = f"{stem}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    assert RUN_ID.fullmatch(run), run
    return run


def prepare(config: RunConfig, runs_dir: Path, run: str) -> RunFiles:
    """Make the run's folder with its resolved config. Raises `Conflict` if there is such a run already."""
    files = RunFiles(runs_dir / check_run_id(run))
    try:
        files.logs.mkdir(parents=True, exist_ok=False)
    except FileExistsError:
        raise Conflict(f"there is a run {run!r} already; choose another id") from None
    files.config.write_text(config.to_yaml())
    return files


def _check_training(config: RunConfig) -> None:
    """A few seconds here, where the mistake was made, instead of a minute later in a worker's log."""
    if importlib.util.find_spec("transformers") is not None:
        check_training_keys(config)


def submit(files: RunFiles, where: Settings) -> str:
    """Hand the run to Ray's Jobs API; answers the job's submission id. Raises `Unavailable` if no Ray answers."""
    os.environ.update(ray_environment(where))  # Ray reads it when it is imported
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    entrypoint = shlex.join([sys.executable, "-m", "ray_jobs.launch", str(files.root)])
    log_file = shlex.quote(str(files.logs / "driver.log"))
    try:
        client = JobSubmissionClient(where.dashboard_url)
        return str(
            client.submit_job(
                entrypoint=f"bash -c {shlex.quote(f'set -o pipefail; {entrypoint} 2>&1 | tee -a {log_file}')}",
                submission_id=files.run,
                runtime_env={"env_vars": where.environment() | worker_environment()},
            )
        )
    except (ConnectionError, RuntimeError, RayError) as error:
        raise Unavailable(
            f"no Ray cluster took the job at {where.dashboard_url}: {str(error).splitlines()[0]}; "
            "start one with `steer up`"
        ) from None


def ray_environment(where: Settings) -> dict[str, str]:
    """What `steer up` wrote down for whoever talks to its Ray: above all, where Ray's own token lies."""
    try:
        recorded = json.loads(where.cluster_file.read_text())["ray_environment"]
    except (OSError, ValueError, KeyError):
        return {}  # another Ray, or none: the connection will tell
    return {str(name): str(value) for name, value in recorded.items()}


def worker_environment() -> dict[str, str]:
    """What every process of the job finds in its environment."""
    return {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    }


def main(arguments: Sequence[str]) -> int:
    """The command line. Errors are a sentence on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="ray_jobs.submit", description="Submit a run to Ray.")
    parser.add_argument("config", help="a run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--run", help="the run's id; made from the config's name if left out")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    given = parser.parse_args(arguments)
    try:
        where = settings()
        config = load(given.config, given.overrides)
        _check_training(config)
        files = prepare(config, where.runs_dir, given.run or new_run_id(config.name))
        try:
            job = submit(files, where)
        except SteerwayError:
            shutil.rmtree(files.root, ignore_errors=True)  # a run that was never taken is not a run
            raise
    except SteerwayError as error:
        print(f"steer: {error.reason}", file=sys.stderr)
        return error.exit_code
    told = {"run": files.run, "job": job, "run_dir": str(files.root)}
    print(json.dumps(told) if given.json else f"submitted run {files.run}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
