"""Submission of runs as Ray jobs, and resumption of runs.

    python -m ray_jobs.submit configs/gpt2-local.yaml [key=value ...] [--run ID] [--json]
    python -m ray_jobs.submit --resume RUN [--json]       resume a run, on a new cluster too

The config is validated and resolved before anything is started; the run's folder is made; the job is submitted to Ray's
Jobs API with the run's id as its submission id.
"""

import argparse
import getpass
import importlib.util
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from pydantic import ValidationError

from control_plane.api.launching import REQUEST_OF_JOB, RUN_OF_JOB, JobRequest
from control_plane.config import Settings, settings
from control_plane.core.model.characters import one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, SteerwayError, Unavailable
from control_plane.core.model.intents import Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.state import RunState, fold
from control_plane.core.rules.admission import check_limits, check_text
from control_plane.core.rules.branch_rules import check_rollback
from control_plane.core.rules.checkpoint_rules import check_adoption
from control_plane.programs import program
from control_plane.shipped import find_config
from control_plane.storage.checkpoint.transfer import adoptable
from control_plane.storage.direct_jobs import run_of_job
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles, check_run_id, find_run, job_name, job_number
from control_plane.storage.ownership import sign_config
from control_plane.storage.private import FOLDER_MODE, make_folder, replace_file, write_file
from ray_jobs.checkpoint.batch import possible_sizes
from ray_jobs.config.bundled_paths import check_code
from ray_jobs.config.environment import keep_secrets, with_variables
from ray_jobs.config.own_config import check_own, own_config, trust
from ray_jobs.config.run_config import RunConfig, load
from ray_jobs.config.sections import ScriptWorkload
from ray_jobs.config.training_keys import check_training_keys


def new_run_id(name: str, uuid: UUID | None = None) -> str:
    """Return a run id: the config's name, the day, and digits of the uuid of the request, or of a random one."""
    digits = (uuid or uuid4()).hex[-6:]
    return check_run_id(f"{name[: 64 - len('-20260101-000000')]}-{datetime.now(UTC):%Y%m%d}-{digits}")


def prepare(config: RunConfig, runs_dir: Path, run: str) -> RunFiles:
    """Make the run's folder with its resolved config. Raises `Conflict` if the run exists already."""
    files = RunFiles(runs_dir / check_run_id(run))
    try:
        make_folder(files.root)
        files.logs.mkdir(mode=FOLDER_MODE, exist_ok=False)
    except FileExistsError:
        raise Conflict(f"run {run!r} exists already; choose another id") from None
    write_file(files.config, config.to_yaml())
    sign_config(files)
    return files


def author() -> str:
    """Return the author of commands from this machine: the name of its user."""
    return getpass.getuser()


def check(config: RunConfig) -> None:
    """Validate the config before it is submitted. Raises `Invalid`."""
    _check_training(config)
    _check_scaling(config)


def _check_training(config: RunConfig) -> None:
    """Check the training arguments: takes a few seconds, and saves an error in a worker's log a minute later."""
    if importlib.util.find_spec("transformers") is not None:
        check_training_keys(config)


def _check_scaling(config: RunConfig) -> None:
    """Raise `Invalid` unless every size within the bounds divides the global batch: Ray Train may choose any."""
    least, most = config.scaling.bounds
    if least == most or isinstance(config.workload, ScriptWorkload):
        return
    micro = int(config.training.get("per_device_train_batch_size", DEFAULT_MICRO_BATCH))
    batch = micro * int(config.training.get("gradient_accumulation_steps", 1)) * config.scaling.ranks
    possible = possible_sizes(batch, least, most)
    if len(possible) < most - least + 1:
        raise Invalid(
            f"{config.name}: a global batch of {batch} samples cannot be divided evenly among every number of ranks "
            f"from {least} to {most}; possible numbers: {', '.join(map(str, possible)) or 'none'}"
        )


def submit(files: RunFiles, where: Settings, request: JobRequest | None = None) -> str:
    """Submit the run to Ray's Jobs API and return the job's submission id.

    `request`: what the job is to do; by default, to begin the run for the user of this machine.

    Raises `Unavailable` if Ray does not answer, `Conflict` if the run's job is still active, `Refused` if this
    installation has not signed the run's config.
    """
    request = request or JobRequest(uuid=uuid4(), author=author())
    client = connect(where)
    write_request(files, request)
    name = _answered(where, lambda: free_job_id(client, files.run, lambda: is_closed(files)))
    return submit_job(client, files, where, request.uuid, name)


def connect(where: Settings) -> Any:
    """Return a client of Ray's Jobs API. Raises `Unavailable` if Ray does not answer."""
    os.environ.update(ray_environment(where))  # Ray reads it when it is imported
    from ray.job_submission import JobSubmissionClient

    return _answered(where, lambda: JobSubmissionClient(where.dashboard_url))


def write_request(files: RunFiles, request: JobRequest) -> None:
    """Write what a job is to do to the run's folder, where the job reads it. Raises `Unavailable` if the disk fails."""
    path = files.request(request.uuid)
    try:
        make_folder(path.parent)
        replace_file(path, request.model_dump_json())
    except OSError as error:
        raise Unavailable(f"{path} could not be written: {error.strerror or error}") from None


def submit_job(client: Any, files: RunFiles, where: Settings, request: UUID, name: str) -> str:
    """Submit a job of this name that does what the written request says, and return its name.

    The job's metadata hold the request's uuid, by which a repeated submission finds it. Raises like `submit`.
    """
    config = own_config(files)
    check_code(config, files, where.home)
    environment = where.environment() | worker_environment(config.recovery.start_timeout_s)
    return str(
        _answered(
            where,
            lambda: client.submit_job(
                entrypoint=command_line(files, request),
                submission_id=name,
                runtime_env={"env_vars": environment},
                metadata={REQUEST_OF_JOB: str(request), RUN_OF_JOB: files.run},
            ),
        )
    )


def all_jobs(client: Any, where: Settings) -> list[Any]:
    """Return every job of Ray. Raises `Unavailable` if Ray does not answer."""
    return list(_answered(where, client.list_jobs))


def jobs_of(client: Any, where: Settings, run: str) -> dict[int, Any]:
    """Return Ray's jobs of a run by number, oldest first. Raises `Unavailable` if Ray does not answer."""
    listed = all_jobs(client, where)
    numbered = {job_number(run, job.submission_id or ""): job for job in listed}
    # A job that the gateway did not submit comes before all of its own.
    if (direct := next((job for job in listed if _executes(job, where, run)), None)) is not None:
        numbered[0] = direct
    return {number: numbered[number] for number in sorted(one for one in numbered if one is not None)}


def _executes(job: Any, where: Settings, run: str) -> bool:
    """Return whether a job that the gateway did not submit executes this run: a RayJob's, or a bare driver."""
    if job.submission_id:
        return run_of_job(where.home, job.submission_id) == run
    return f"ray_jobs.launch {where.runs_dir / run} " in f"{job.entrypoint or ''} "


Answer = TypeVar("Answer")


def _answered(where: Settings, ask: Callable[[], Answer]) -> Answer:
    from ray.exceptions import RayError

    try:
        return ask()
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise Unavailable(
            f"cannot submit the job to a Ray cluster at {where.dashboard_url}: {(str(error).splitlines() or [''])[0]}; "
            "start a cluster with `steer up`"
        ) from None


def command_line(files: RunFiles, request: UUID) -> str:
    """Return the shell command of the Ray job. It holds nothing of config or commands: other users see it."""
    driver = shlex.join(program("ray_jobs.launch", str(files.root), "--request", str(request)))
    log = shlex.join(program("ray_jobs.driver.clean_log", str(files.root)))
    return shlex.join(["bash", "-c", f"umask 077; set -o pipefail; {driver} 2>&1 | {log}"])


JOB_ENDS_WITHIN_S = 60.0
LOOK_EVERY_S = 0.5

DEFAULT_MICRO_BATCH = 8
"""Default of Transformers."""


def is_closed(files: RunFiles) -> bool:
    """Return whether the run is closed, by its journal."""
    return fold(writer.read(files.journal)).closed is not None


def free_job_id(
    client: Any, run: str, is_closed: Callable[[], bool], sleep: Callable[[float], None] = time.sleep
) -> str:
    """Return the run's id for its first job here, then `<run>-r2`, ... Raises `Conflict` if one of them is active.

    The job of a closed run lives a moment longer than the run: this waits for its end.
    """
    waited_s = 0.0
    while True:
        jobs = {job_number(run, job.submission_id or ""): job for job in client.list_jobs()}
        numbers = [number for number in jobs if number is not None]
        active = [jobs[number] for number in numbers if not jobs[number].status.is_terminal()]
        if not active:
            return job_name(run, max(numbers, default=0) + 1)
        name = f"Ray job {active[0].submission_id} ({active[0].status.value.lower()})"
        if not is_closed():
            raise Conflict(f"run {run} is still active as {name}; stop it with `steer stop {run}`")
        if waited_s >= JOB_ENDS_WITHIN_S:
            raise Conflict(f"run {run} is over, but its {name} has not ended within {waited_s:.0f} s; try again")
        if waited_s == 0.0:
            print(f"run {run} is over; waiting for the end of its {name}", file=sys.stderr)
        sleep(LOOK_EVERY_S)
        waited_s += LOOK_EVERY_S


def ray_environment(where: Settings) -> dict[str, str]:
    """Return the environment for clients of the Ray that `steer up` has started: above all, the path of its token."""
    try:
        recorded = json.loads(where.cluster_file.read_text())["ray_environment"]
    except (OSError, ValueError, KeyError):
        return {}  # another Ray, or none: connecting to it will show
    return {str(name): str(value) for name, value in recorded.items()}


def worker_environment(start_timeout_s: float) -> dict[str, str]:
    """Return the environment of every process of the job.

    `start_timeout_s`: how long Ray Train waits for the resources of all ranks before it starts with fewer.
    """
    return {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        # How often Ray Train polls its workers; by default every 2 s.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        # One process less at every start of the ranks: `preemption` handles preempted nodes.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # It asks workers, which may be dead, to shut down their process group, and waits for them 30 s by default.
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1",
        # Fallback for the ranks' own watchdogs, for a worker that does not even answer Ray.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{start_timeout_s:g}",
    }


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Errors are printed to stderr."""
    parser = argparse.ArgumentParser(prog="ray_jobs.submit", description="Submit a run to Ray.")
    parser.add_argument("config", nargs="?", help="a run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--run", help="the run's id; made from the config's name if left out")
    parser.add_argument("--resume", metavar="RUN", help="resume a run that was stopped, failed or lost its cluster")
    parser.add_argument(
        "--back", metavar="COMMAND", help="with --resume: first run this rollback or adoption, given as JSON"
    )
    parser.add_argument(
        "--trust", action="store_true", help="with --resume: trust a run that this installation did not make"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="secret variable, read from this shell"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    given = parser.parse_args(arguments)
    try:
        where = settings()
        if given.resume:
            job = resume(where, given.resume, given.trust, given.back, given.env)
            return _tell(job, where.runs_dir / given.resume, given.json, "resumed")
        if given.config is None:
            raise Invalid("give a run's YAML file, or --resume RUN")
        config = with_variables(load(find_config(given.config), given.overrides), given.env)
        check(config)
        files = prepare(config, where.runs_dir, given.run or new_run_id(config.name))
        try:
            keep_secrets(files, config, os.environ)
            job = submit(files, where)
        except SteerwayError:
            shutil.rmtree(files.root, ignore_errors=True)  # a run that was not submitted leaves no folder
            raise
    except SteerwayError as error:
        print(one_line(f"steer: {error.reason}"), file=sys.stderr)
        return error.exit_code
    return _tell(job, files.root, given.json, "submitted")


def resume(where: Settings, run: str, given_trust: bool, back: str | None = None, names: Sequence[str] = ()) -> str:
    """Resume a run from its newest checkpoint and return the job's submission id. Needs only the run's folder.

    `names`: secret variables whose values are read from this shell again.
    With `back` (a rollback or an adoption, as JSON) it resumes from another checkpoint, even if it has finished.
    Raises `NotFound` if there is no such run, `Conflict` if it is active or has finished, `Damaged` if its journal
    does not verify, `Refused` for a run that this installation did not make, without `given_trust`, and the errors of
    `check_rollback` and `check_adoption`.
    """
    files = find_run(where.runs_dir, run)
    command = _command(back) if back is not None else None
    check_resumable(files, command, given_trust)
    keep_secrets(files, own_config(files), os.environ, names)
    return submit(files, where, JobRequest(uuid=uuid4(), author=author(), resumes=True, back=command))


def check_resumable(files: RunFiles, back: Command | None, given_trust: bool) -> RunState:
    """Return the state of a run that may be resumed, and sign it if it is trusted. Raises like `resume`."""
    if not given_trust:
        check_own(files)
    state = fold(writer.read(files.journal))
    if back is not None:
        _check_back(files, state, back)
    elif state.closed is not None and state.closed.ending == "finished":
        raise Conflict(f"run {files.run} has finished at step {state.step}: there is nothing left to resume")
    if given_trust:
        trust(files)
    return state


def _command(text: str) -> Command:
    try:
        return Command.model_validate_json(text)
    except ValidationError as error:
        raise Invalid(f"--back takes a rollback or an adoption as JSON: {error.errors()[0]['msg']}") from None


def _check_back(files: RunFiles, state: RunState, back: Command) -> None:
    """Check the rollback or adoption before the job is submitted: an error in the job would only be in its log."""
    check_text(back)
    match back.intent:
        case Rollback():
            check_rollback(state, back.intent)
        case AdoptCheckpoint(branch=str()):
            check_adoption(state, back.intent)
            adoptable(files, back.intent)
        case _:
            raise Invalid(f"a run resumes by a rollback, or an adoption with a branch, not '{back.describe()}'")
    check_limits(state, back, {})


def _tell(job: str, root: Path, as_json: bool, done: str) -> int:
    result = {"run": root.name, "job": job, "run_dir": str(root)}
    print(json.dumps(result) if as_json else f"{done} run {root.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
