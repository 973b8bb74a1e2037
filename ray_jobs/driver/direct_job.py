"""Run whose Ray job was not submitted by the gateway: the entrypoint of a KubeRay RayJob, or of `ray symmetric-run`.

    python -m ray_jobs.launch CONFIG [key=value ...] [--run ID]

It makes the same folder and records as the gateway does, with `ray-job` as the author and owner, and then becomes the
driver. A gateway of the same home lists and steers the run. It needs no token: whoever runs it runs code on the
cluster already. With `--run ID` of a run that exists, it resumes that run: so a job that is started again continues.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from control_plane import config_text
from control_plane.api.launching import JobRequest, Submission
from control_plane.api.versions import release
from control_plane.config import Settings, settings
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.state import fold
from control_plane.shipped import find_config
from control_plane.storage.code.packing import Bundle, packed
from control_plane.storage.code.unpacked import unpack_bundle
from control_plane.storage.code.uploads import BundleUploads
from control_plane.storage.direct_jobs import write_job
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles, check_run_id
from control_plane.storage.private import check_home, make_folder, replace_file
from ray_jobs.config.bundled_paths import check_code, check_sources
from ray_jobs.config.config_files import FilesBeside, SentFiles
from ray_jobs.config.environment import keep_secrets
from ray_jobs.config.own_config import own_config
from ray_jobs.config.run_config import RunConfig, load, parse
from ray_jobs.config.sections import ScriptWorkload
from ray_jobs.submit import (
    check,
    check_resumable,
    command_line,
    new_run_id,
    prepare,
    worker_environment,
    write_request,
)

AUTHOR = "ray-job"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable with a Ray job's configuration, set by Ray for the drivers of its jobs and read by `ray.init`."""

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _BesideAndBundled:
    """Files that a config names: their texts beside it, their paths inside of the bundle. A `ConfigFiles`."""

    beside: FilesBeside
    sent: SentFiles

    def text(self, name: str, source: str) -> str:
        """See `ConfigFiles.text`."""
        return self.beside.text(name, source)

    def place(self, path: str, key: str) -> str:
        """See `ConfigFiles.place`."""
        return self.sent.place(path, key)


def begin(
    where: Settings, config: str, overrides: Sequence[str], run: str | None = None
) -> tuple[RunFiles, JobRequest]:
    """Make the run's folder, or find that of a run to resume; return it with what the driver is to do.

    Raises `SteerwayError`; then nothing of a new run stays.
    """
    make_folder(where.home)
    check_home(where.home)
    if run is not None and RunFiles(where.runs_dir / check_run_id(run)).config.is_file():
        return _resume(RunFiles(where.runs_dir / run))
    with ExitStack() as stack:
        resolved, bundle = _resolve(where, Path(find_config(config)), overrides, stack)
        check(resolved)
        files = prepare(resolved, where.runs_dir, run or new_run_id(resolved.name))
        try:
            if bundle is not None:
                _keep(where, bundle)
                unpack_bundle(where.home, bundle.sha256, files)
                check_code(resolved, files, where.home)
            check_sources(resolved, files)
            keep_secrets(files, resolved, os.environ)
            request = JobRequest(uuid=uuid4(), author=AUTHOR)
            write_request(files, request)
            replace_file(files.submission, _submission(request, resolved).model_dump_json())
            _record_job(files)
        except SteerwayError:
            shutil.rmtree(files.root, ignore_errors=True)
            raise
        return files, request


def _resume(files: RunFiles) -> tuple[RunFiles, JobRequest]:
    began = files.journal.is_dir()
    if began:
        check_resumable(files, None, given_trust=False)
        keep_secrets(files, own_config(files), os.environ)
    request = JobRequest(uuid=uuid4(), author=AUTHOR, resumes=began)
    write_request(files, request)
    _record_job(files)
    return files, request


def _record_job(files: RunFiles) -> None:
    """Record which Ray job executes the run, so that the gateway finds it; `ray symmetric-run` has no Ray job."""
    if (job := ray_job(os.environ)) is not None:
        write_job(files.root.parent.parent, job, files.run)


def has_finished(where: Settings, run: str | None) -> bool:
    """Return whether this run has finished, so that nothing is left to do."""
    journal = RunFiles(where.runs_dir / run).journal if run else None
    if journal is None or not journal.is_dir():
        return False
    closed = fold(writer.read(journal)).closed
    return closed is not None and closed.ending == "finished"


def _resolve(
    where: Settings, path: Path, overrides: Sequence[str], stack: ExitStack
) -> tuple[RunConfig, Bundle | None]:
    """Return the config, and the bundle of its script's folder: the folder on this node does not outlive the job."""
    config = load(path, overrides)
    if not isinstance(config.workload, ScriptWorkload):
        return config, None
    script = Path(config.workload.path)
    bundle = stack.enter_context(packed(script.parent, max_bytes=where.bundle_max_bytes))
    beside = FilesBeside(path.expanduser().absolute().parent)
    files = _BesideAndBundled(beside, SentFiles({}, has_bundle=True))
    text = config_text.read_text(path.expanduser(), str(path))
    return parse(text, str(path), overrides, files, bundle.sha256, script.name), bundle


def _keep(where: Settings, bundle: Bundle) -> None:
    """Put the bundle where uploaded ones are, by the same checks."""
    uploads = BundleUploads(where.home, where.bundle_max_bytes)
    if uploads.received(bundle.sha256).complete:
        return
    piece = uploads.open_piece(bundle.sha256, 0, bundle.size_bytes)
    try:
        with bundle.path.open("rb") as file:
            while data := file.read(READ_BYTES):
                piece.write(data)
        piece.settle()
        uploads.complete(bundle.sha256)
    finally:
        piece.close()


def _submission(request: JobRequest, config: RunConfig) -> Submission:
    return Submission(
        uuid=request.uuid,
        owner=AUTHOR,
        role="operator",
        submitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        via="ray-job",
        bundle=config.bundle,
        client=release(),
    )


def ray_job(environ: Mapping[str, str]) -> str | None:
    """Return the submission id of the Ray job that this process is the driver of, or None if it is of none."""
    metadata = _job_config(environ).get("metadata")
    job = metadata.get("job_submission_id") if isinstance(metadata, dict) else None
    return job if isinstance(job, str) else None


def _job_config(environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(environ.get(JOB_CONFIG) or "{}")
    except ValueError:
        config = {}
    return config if isinstance(config, dict) else {}


def driver_environment(where: Settings, config: RunConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the driver's environment: what the gateway gives to a job, beside what this job has already."""
    ours = where.environment() | worker_environment(config.recovery.start_timeout_s)
    job = _job_config(environ)
    runtime_env = dict(job.get("runtime_env") or {})
    runtime_env["env_vars"] = dict(runtime_env.get("env_vars") or {}) | ours
    return dict(environ) | ours | {JOB_CONFIG: json.dumps(job | {"runtime_env": runtime_env})}


def become_driver(config: str, overrides: Sequence[str], run: str | None) -> NoReturn:
    """Begin or resume the run, and replace this process by its driver, whose exit code is the job's."""
    where = settings()
    if has_finished(where, run):
        print(f"run {run} has finished already: nothing is left to do", flush=True)
        sys.exit(0)
    files, request = begin(where, config, overrides, run)
    print(f"run {files.run} of {where.home}: steer it through any gateway of this home", flush=True)
    environment = driver_environment(where, own_config(files), os.environ)
    os.execvpe("bash", ["bash", "-c", command_line(files, request.uuid)], environment)
