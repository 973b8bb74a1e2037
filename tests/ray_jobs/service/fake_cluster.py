"""Ray's Jobs API in memory, and a launch service over it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from ray.job_submission import JobDetails, JobStatus, JobType

from control_plane.api.launching import Launched, Requester, ServiceCall, Verb
from control_plane.config import Role, Settings
from control_plane.core.rules.capacity import ClusterState, Node
from ray_jobs.service.launches import LaunchService

SCRIPT_CONFIG = "name: mine\nseed: 1\nworkload: {kind: script, path: train.py}\n"


@dataclass
class FakeCluster:
    """Jobs by name. `refuses` and `loses`: the next submission is not taken, or taken without an answer."""

    jobs: dict[str, JobDetails] = field(default_factory=dict)
    entrypoints: list[str] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    refuses: int = 0
    loses: int = 0
    cpus: float = 64.0

    def list_jobs(self) -> list[JobDetails]:
        """Every job."""
        return list(self.jobs.values())

    def submit_job(
        self, *, entrypoint: str, submission_id: str, metadata: dict[str, str], runtime_env: dict[str, Any]
    ) -> str:
        """Take a job, or not."""
        if self.refuses:
            self.refuses -= 1
            raise RuntimeError("Request failed with status code 500: no agent")
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.entrypoints.append(entrypoint)
        self.environments.append(runtime_env)
        self.put(submission_id, JobStatus.RUNNING, metadata)
        if self.loses:
            self.loses -= 1
            raise ConnectionError("connection reset")
        return submission_id

    def read(self) -> ClusterState:
        """One large node, on which nothing runs."""
        return ClusterState((Node("a", {"CPU": self.cpus}, {"CPU": self.cpus}, {}),), ())

    def put(self, name: str, status: JobStatus, metadata: dict[str, str] | None = None) -> None:
        """Know a job."""
        self.jobs[name] = JobDetails(
            type=JobType.SUBMISSION, submission_id=name, status=status, entrypoint="x", metadata=metadata
        )


@dataclass
class Desk:
    """A launch service of an installation, whose cluster is `cluster`."""

    home: Path
    cluster: FakeCluster = field(default_factory=FakeCluster)

    def call(
        self,
        verb: Verb,
        request: dict[str, Any],
        run: str | None = None,
        role: Role = "operator",
        uuid: UUID | None = None,
        runs: tuple[str, ...] | None = None,
    ) -> Launched:
        """Carry out one request, as a new process of the service would."""
        asked = request | {"uuid": str(uuid or uuid4())}
        by = Requester(id=f"ann-{role}", role=role, runs=runs)
        service = LaunchService(Settings(home=self.home), self.cluster, self.cluster.read)
        return service.handle(ServiceCall(verb=verb, run=run, request=asked, by=by))

    def runs(self) -> list[str]:
        """The runs that exist."""
        folder = self.home / "runs"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def leftovers(self) -> list[str]:
        """Folders of runs that were not completed."""
        return sorted(path.name for path in (self.home / "launching").iterdir() if path.is_dir())
