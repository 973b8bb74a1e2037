"""Launches: begin, resume, fork and replay runs. Whatever cannot work is refused before a folder or a job is made.

Order of the durable steps: the request's record, a run's folder (made aside, then renamed), the Ray job, the answer.
A process that dies between two of them leaves what the repeated request finds and completes: the same runs, one job
each.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from control_plane.api.launching import (
    REQUESTS,
    AnyLaunchRequest,
    ForkRequest,
    JobRequest,
    Launched,
    LaunchedRun,
    LaunchRequest,
    ReplayRequest,
    Requester,
    ResumeRequest,
    ServiceCall,
    Submission,
)
from control_plane.api.versions import release, release_notes
from control_plane.config import Settings
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotAllowed, SteerwayError, Unavailable
from control_plane.core.model.intents import Rollback
from control_plane.core.model.state import RunState, fold
from control_plane.core.rules.capacity import ClusterState
from control_plane.runs.queue_files import QueueEntry
from control_plane.runs.usage import owner_of
from control_plane.storage.code.unpacked import inherit_code, unpack_bundle
from control_plane.storage.failpoints import reach
from control_plane.storage.in_use import reading
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles, check_run_id, find_run
from control_plane.storage.ownership import sign_config
from control_plane.storage.private import FOLDER_MODE, make_folder, replace_file, sync_names
from control_plane.storage.regular import read_regular
from ray_jobs.config.bundled_paths import check_code, check_sources
from ray_jobs.config.config_files import SentFiles
from ray_jobs.config.environment import keep_secrets, with_variables
from ray_jobs.config.own_config import own_config
from ray_jobs.config.run_config import RunConfig, parse, with_overrides
from ray_jobs.config.sections import ScriptWorkload
from ray_jobs.driver.fork_and_replay import Fill, forked_from, read_run, recorded_checkpoint, replay_of, replayed_config
from ray_jobs.service.ledger import LaunchLedger, LedgerEntry
from ray_jobs.service.ray_submissions import RaySubmissions, submitted_job
from ray_jobs.service.settings_limits import check_first, check_initial_values, check_overrides
from ray_jobs.service.starts import NotTaken, Room, Starts, entry_of
from ray_jobs.submit import (
    check,
    check_resumable,
    connect,
    free_job_id,
    is_closed,
    jobs_of,
    new_run_id,
    write_request,
)


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that a request makes. `uuid`: of its submission; `fill` writes what it has beside its config."""

    run: str
    uuid: UUID
    config: RunConfig
    fill: Fill


class LaunchService:
    """Carries out one request at a time, for the owner of the token that it came with."""

    def __init__(
        self, where: Settings, client: Any = None, read_cluster: Callable[[], ClusterState] | None = None
    ) -> None:
        """Prepare the service. `client` replaces the client of Ray's Jobs API in tests, `read_cluster` the cluster."""
        self._where, self._client = where, client
        self._ledger = LaunchLedger(where.home)
        self._starts = Starts(where, RaySubmissions(where, self._connect), read_cluster)

    def handle(self, call: ServiceCall) -> Launched:
        """Carry out a request, or return the answer of its first try. Raises `SteerwayError`."""
        request = REQUESTS[call.verb].model_validate(call.request)
        with self._ledger.request(request.uuid, call.verb, _digest(call, request)) as entry:
            if entry.record.answer is not None:
                return entry.record.answer
            match request:
                case LaunchRequest():
                    launched = self._launch(entry, request, call.by)
                case ResumeRequest():
                    launched = self._resume(entry, _named(call), request, call.by)
                case ForkRequest():
                    launched = self._fork(entry, _named(call), request, call.by)
                case ReplayRequest():
                    launched = self._replay(entry, _named(call), request, call.by)
            notes = (*launched.notes, *release_notes(request.client))
            return entry.answer(launched.model_copy(update={"notes": notes}))

    def _launch(self, entry: LedgerEntry, request: LaunchRequest, by: Requester) -> Launched:
        config = with_variables(_parsed(request), request.env)
        check(config)
        check_initial_values(config)
        room = self._starts.check(config, by.id, request.wait_for_nodes)
        run = check_run_id(request.run) if request.run else new_run_id(config.name, request.uuid)
        new = NewRun(run, request.uuid, config, lambda files: self._unpack(files, config))
        return Launched(runs=self._begin(entry, [new], request, by, room), notes=room.notes)

    def _fork(self, entry: LedgerEntry, parent: str, request: ForkRequest, by: Requester) -> Launched:
        source, state, before = read_run(self._where, parent, request.trust)
        committed = recorded_checkpoint(state, request.checkpoint)
        config = with_overrides(before, request.overrides, SentFiles({}, has_bundle=before.bundle is not None))
        if config != before:
            _check_script(config)
            check(config)
        check_overrides(before, config, by)
        room = self._starts.check(config, by.id, request.wait_for_nodes)
        new = []
        for number, first in enumerate(request.firsts):
            uuid = uuid5(request.uuid, f"fork-{number}")
            intent = Rollback(checkpoint=request.checkpoint, first=first)
            command = Command(uuid=uuid, author=by.id, role=by.role, intent=intent)
            check_first(config, command)
            fill = forked_from(source, committed, command, before, state)
            new.append(NewRun(new_run_id(config.name, uuid), uuid, config, fill))
        return Launched(runs=self._begin(entry, new, request, by, room, source), parent=parent, notes=room.notes)

    def _replay(self, entry: LedgerEntry, source: str, request: ReplayRequest, by: Requester) -> Launched:
        files, state, config = read_run(self._where, source, request.trust)
        config = replayed_config(config)
        fill = replay_of(files, state, request.until_step, request.without, request.placebo)
        room = self._starts.check(config, by.id, request.wait_for_nodes)
        new = NewRun(new_run_id(config.name, request.uuid), request.uuid, config, fill)
        return Launched(runs=self._begin(entry, [new], request, by, room, files), parent=source, notes=room.notes)

    def _resume(self, entry: LedgerEntry, run: str, request: ResumeRequest, by: Requester) -> Launched:
        files = find_run(self._where.runs_dir, run)
        with self._ledger.lock(f"run.{run}"), reading(files):
            back = None
            if request.back is not None:
                back = Command(
                    uuid=request.uuid, author=by.id, role=by.role, intent=request.back, reason=request.reason
                )
            client = self._connect()
            jobs = jobs_of(client, self._where, run)
            if (job := submitted_job(jobs, request.uuid)) is not None:
                return Launched(runs=(LaunchedRun(run=run, job=job),))
            _check_not_active(fold(writer.read(files.journal)), jobs)
            check_resumable(files, back, request.trust)
            config, owner = own_config(files), owner_of(files) or by.id
            if back is not None:
                check_first(config, back)
            room = self._starts.check(config, owner, request.wait_for_nodes)
            start = entry_of(run, request.uuid, owner, request.priority, room.demand)
            self._starts.check_not_queued(start)
            keep_secrets(files, config, request.secrets, request.secrets)
            entry.begin((run,))
            write_request(files, JobRequest(uuid=request.uuid, author=by.id, role=by.role, resumes=True, back=back))
            free_job_id(client, run, lambda: is_closed(files))  # the job of a closed run may not have ended yet
            try:
                return Launched(runs=(self._starts.start_or_queue(start),), notes=room.notes)
            except NotTaken as error:
                raise error.reason from None

    def _begin(
        self,
        entry: LedgerEntry,
        new: Sequence[NewRun],
        request: AnyLaunchRequest,
        by: Requester,
        room: Room,
        parent: RunFiles | None = None,
    ) -> tuple[LaunchedRun, ...]:
        """Make the folders of new runs and submit their jobs. Nothing stays of runs that Ray has not taken."""
        runs = entry.record.runs or tuple(one.run for one in new)
        new = [NewRun(run, one.uuid, one.config, one.fill) for run, one in zip(runs, new, strict=True)]
        for one in new:
            if not by.sees(one.run):
                raise NotAllowed(
                    f"this token is for the runs {', '.join(by.runs or ())} only, and the new run would be {one.run}: "
                    "choose another name for it",
                    role=by.role,
                )
            if _uuid_of(self._final(one.run)) not in (None, one.uuid):
                raise Conflict(f"run {one.run!r} exists already; choose another id")
        self._connect()  # Ray answers, or nothing is made
        entry.begin(runs)
        staged = [one for one in new if _uuid_of(self._final(one.run)) is None]
        for one in staged:
            self._stage(entry, one, request, by, parent)
        for one in staged:
            self._publish(entry, one)
        starts = [entry_of(one.run, one.uuid, by.id, request.priority, room.demand) for one in new]
        return tuple(self._first_start(entry, start) for start in starts)

    def _final(self, run: str) -> RunFiles:
        return RunFiles(self._where.runs_dir / run)

    def _stage(
        self, entry: LedgerEntry, new: NewRun, request: AnyLaunchRequest, by: Requester, parent: RunFiles | None
    ) -> None:
        """Make a new run's folder aside, with everything that its job needs."""
        files = entry.stage(new.run)
        try:
            files.logs.mkdir(mode=FOLDER_MODE)
            replace_file(files.config, new.config.to_yaml())
            sign_config(files)
            if parent is not None and parent.secrets.exists():
                replace_file(files.secrets, read_regular(parent.secrets).decode())
            keep_secrets(files, new.config, request.secrets, request.secrets)
            if parent is not None and new.config.bundle is not None:
                inherit_code(parent, new.config.bundle, files)
            new.fill(files)
            check_code(new.config, files, self._where.home)
            check_sources(new.config, files)
            write_request(files, JobRequest(uuid=new.uuid, author=by.id, role=by.role))
            replace_file(files.submission, submission_of(new.uuid, request, by).model_dump_json())
        except OSError as error:
            raise Unavailable(f"the folder of run {new.run} cannot be made: {error.strerror or error}") from None
        except SteerwayError:
            shutil.rmtree(files.root, ignore_errors=True)
            raise
        reach("launch", "after_folder")

    def _publish(self, entry: LedgerEntry, new: NewRun) -> None:
        """Give a complete folder its place among the runs."""
        final = self._final(new.run)
        try:
            make_folder(final.root.parent)
            os.rename(entry.folder(new.run).root, final.root)
            sync_names(final.root.parent)
        except OSError as error:
            raise Conflict(f"run {new.run!r} cannot be made: {error.strerror or error}") from None
        reach("launch", "after_rename")

    def _first_start(self, entry: LedgerEntry, start: QueueEntry) -> LaunchedRun:
        """Hand a new run to Ray or to the queue; a run whose job Ray has certainly not taken is removed."""
        try:
            return self._starts.start_or_queue(start)
        except NotTaken as error:
            os.rename(self._final(start.run).root, entry.stage(start.run).root)
            shutil.rmtree(entry.folder(start.run).root, ignore_errors=True)
            raise error.reason from None

    def _connect(self) -> Any:
        return self._client or connect(self._where)

    def _unpack(self, files: RunFiles, config: RunConfig) -> None:
        """Give a new run the code bundle that its config names."""
        if config.bundle is not None:
            unpack_bundle(self._where.home, config.bundle, files)


def submission_of(uuid: UUID, request: AnyLaunchRequest, by: Requester) -> Submission:
    """Return the record of who submits a run, and with what."""
    return Submission(
        uuid=uuid,
        owner=by.id,
        role=by.role,
        submitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        priority=request.priority,
        wait_for_nodes=request.wait_for_nodes,
        bundle=request.bundle if isinstance(request, LaunchRequest) else None,
        client=request.client,
        gateway=release(),
    )


def _named(call: ServiceCall) -> str:
    if call.run is None:
        raise Invalid(f"the call '{call.verb}' names no run")
    return call.run


def _digest(call: ServiceCall, request: AnyLaunchRequest) -> str:
    """Return the digest of what was asked, and by whom; without secrets, which a repeated request may lack."""
    asked = request.model_dump_json(exclude={"secrets", "client", "uuid"})
    return hashlib.sha256(f"{call.verb} {call.run} {call.by.id} {asked}".encode()).hexdigest()


def _parsed(request: LaunchRequest) -> RunConfig:
    if request.script is not None and request.bundle is None:
        raise Invalid(f"the script {request.script} is a path inside a code bundle, and no bundle is named")
    files = SentFiles(request.files, has_bundle=request.bundle is not None)
    return parse(request.config, request.source, request.overrides, files, request.bundle, request.script)


def _check_script(config: RunConfig) -> None:
    """Raise `Invalid` if the script is not there; a code bundle is looked at once it is unpacked."""
    if (
        config.bundle is None
        and isinstance(config.workload, ScriptWorkload)
        and not Path(config.workload.path).is_file()
    ):
        raise Invalid(f"{config.name}: workload.path is {config.workload.path}, but there is no such file.")


def _uuid_of(files: RunFiles) -> UUID | str | None:
    """Return the uuid by which a run was submitted, None if there is no such folder, '' if nobody knows."""
    try:
        return Submission.model_validate_json(read_regular(files.submission)).uuid
    except (OSError, ValueError):
        return "" if files.root.exists() else None


def _check_not_active(state: RunState, jobs: dict[int, Any]) -> None:
    """Raise `Conflict` if the run has a job, with what to do instead. The job of a closed run is about to end."""
    active = next((job for job in jobs.values() if not job.status.is_terminal()), None)
    if active is None or state.closed is not None:
        return
    if state.paused:
        raise Conflict(
            f"run {state.run} is paused at step {state.step}, not ended: release the pause with the command 'resume' "
            f"(steer resume {state.run})"
        )
    raise Conflict(
        f"run {state.run} is active as Ray job {active.submission_id} ({active.status.value.lower()}): there is "
        "nothing to resume. To take it to another checkpoint, send the command 'rollback'"
    )
