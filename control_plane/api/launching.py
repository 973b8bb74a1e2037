"""Messages that begin, continue and remove runs: bodies and answers of the gateway's launch routes.

A client sends the text of a config and the hash of a code bundle that it has uploaded; only the cluster writes a run's
folder. Every request has a uuid and is idempotent by it: a repeated one returns the answer of the first.
"""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID, uuid4

from pydantic import AfterValidator, Field, model_validator

from control_plane.config import Role
from control_plane.core.model.characters import OBEYED
from control_plane.core.model.commands import MAX_REASON_CHARS, Command
from control_plane.core.model.intent_base import Message
from control_plane.core.model.intents import First, Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.values import Placebo, RunId

MAX_CONFIG_CHARS = 128 * 1024
MAX_FILES = 16
MAX_OVERRIDES = 256
MAX_FORKS = 32
"""Runs that one request may start."""

MAX_SECRETS = 64
MAX_SECRET_CHARS = 16 * 1024
MAX_PRIORITY = 100

LAUNCH_WAIT_S = 180.0
"""How long a client waits for an answer of a launch route. Checking a config imports Transformers: seconds on an idle
machine, a minute on a busy one; a checkpoint of a fork is copied meanwhile."""

SERVICE_DEADLINE_S = 150.0
"""Limit of one launch on the cluster's side: the client that waits `LAUNCH_WAIT_S` receives the reason."""


def _plain(text: str) -> str:
    """Return a name without control characters. Raises `ValueError`: it is shown in messages and logs."""
    if OBEYED.search(text):
        raise ValueError("must not contain control characters or line ends")
    return text


def _inside(text: str) -> str:
    """Return a path inside a bundle. Raises `ValueError` for one that leads out of it."""
    path = PurePosixPath(_plain(text))
    if path.is_absolute() or ".." in path.parts or "\\" in text or not path.parts:
        raise ValueError("must be a relative path inside the bundle, with '/' and without '..'")
    return path.as_posix()


REQUEST_OF_JOB, RUN_OF_JOB = "steerway-request", "steerway-run"
"""Keys in a Ray job's metadata: uuid of the request that it was submitted for, and the run that it executes."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]
FileName = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(_plain)]
BundlePath = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(_inside)]
Text = Annotated[str, Field(max_length=MAX_CONFIG_CHARS)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY, strict=True)]
Overrides = Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=MAX_OVERRIDES)]
Secrets = Annotated[
    dict[Name, Annotated[str, Field(max_length=MAX_SECRET_CHARS)]], Field(max_length=MAX_SECRETS, repr=False)
]
"""Values of secret environment variables by name. They are stored in the run's folder, mode 0600, and nowhere else."""


class LaunchOptions(Message):
    """Options that every request has which hands a job to Ray.

    priority: a run of higher priority starts first.
    wait_for_nodes: accept a run that needs more than the cluster can have now; it waits in the queue.
    """

    uuid: UUID = Field(default_factory=uuid4)
    secrets: Secrets = {}
    priority: Priority = 0
    wait_for_nodes: bool = False
    client: Annotated[str, AfterValidator(_plain)] = Field(
        default="", max_length=64, description="the client's release of Steerway"
    )


class LaunchRequest(LaunchOptions):
    """Body of `POST /runs`: a config as its author wrote it, and its code.

    config: text of the YAML file; source: its name, for messages.
    files: texts of other files that the config names (a DeepSpeed JSON file), by the name that it uses.
    bundle: hash of the uploaded zip; script: the training script's path inside of it, in place of `workload.path`.
    run: the new run's id; made from the config's name if left out.
    """

    config: Text
    source: FileName = "config.yaml"
    files: Annotated[dict[FileName, Text], Field(max_length=MAX_FILES)] = {}
    overrides: Overrides = ()
    bundle: Sha256 | None = None
    script: BundlePath | None = None
    run: RunId | None = None
    env: Annotated[tuple[Name, ...], Field(max_length=MAX_SECRETS)] = ()


class ResumeRequest(LaunchOptions):
    """Body of `POST /runs/{run}/resume`: a new job for a run that has none, from its newest checkpoint.

    back: a rollback, or an adoption with a branch, to begin with; allowed for a finished run, too.
    trust: accept a run that this installation has not made: load its checkpoints and run its script.
    """

    back: Annotated[Rollback | AdoptCheckpoint, Field(discriminator="kind")] | None = None
    reason: str | None = Field(default=None, max_length=MAX_REASON_CHARS)
    trust: bool = False


class ForkRequest(LaunchOptions):
    """Body of `POST /runs/{run}/fork`: one new run per element of `firsts`, from a checkpoint of the run.

    firsts: the commands that each fork begins with.
    """

    checkpoint: Name
    overrides: Overrides = ()
    firsts: Annotated[tuple[tuple[First, ...], ...], Field(min_length=1, max_length=MAX_FORKS)] = ((),)
    trust: bool = False


class ReplayRequest(LaunchOptions):
    """Body of `POST /runs/{run}/replay`: a new run that repeats all steps and commands up to `until_step`.

    without: a command that is left out; later ones set the values that they had set.
    placebo: relative change of the learning rate in place of that command.
    """

    until_step: int | None = Field(default=None, ge=1, strict=True)
    trust: bool = False
    without: UUID | None = None
    placebo: Placebo | None = None

    @model_validator(mode="after")
    def _a_placebo_takes_a_place(self) -> "ReplayRequest":
        if self.placebo is not None and self.without is None:
            raise ValueError("'placebo' takes the place of a command: give the command as 'without'")
        return self


class LaunchedRun(Message):
    """One run that was begun or resumed. `job`: the Ray job's submission id; None while the run waits in the queue."""

    run: str
    job: str | None = None
    queued_because: str | None = None


class Launched(Message):
    """Answer of the launch routes. `notes`: sentences that the user should see, such as a differing release."""

    runs: tuple[LaunchedRun, ...]
    parent: str | None = None
    notes: tuple[str, ...] = ()


JobStatus = Literal["none", "queued", "pending", "running", "stopped", "succeeded", "failed", "unknown"]


class JobView(Message):
    """Answer of `GET /runs/{run}/job`: the newest Ray job of a run.

    status: `none` if Ray knows no job of this run, `queued` while the run waits for room, `unknown` while Ray does not
    answer, else the job's status in Ray.
    message: why it waits, or how it ended, as a sentence.
    """

    run: str
    job: str | None = None
    status: JobStatus = "none"
    message: str | None = None

    @property
    def is_alive(self) -> bool:
        """True while the job executes the run, or will, or may."""
        return self.status in ("queued", "pending", "running", "unknown")


class Submission(Message):
    """Record of who submitted a run, and with what: `submission.json` in the run's folder.

    via: `gateway`, or `ray-job` for a run whose job was not submitted by the gateway.
    uuid: of the request; a repeated request finds the run by it.
    """

    uuid: UUID
    owner: str = Field(max_length=200)
    role: Role
    submitted_at: str
    via: Literal["gateway", "ray-job"] = "gateway"
    priority: int = 0
    wait_for_nodes: bool = False
    bundle: Sha256 | None = None
    client: str = ""
    gateway: str = ""


class Requester(Message):
    """Owner of the token that a launch request came with. `runs`: globs of the runs in its scope; None: all."""

    id: str
    role: Role
    runs: tuple[str, ...] | None = None

    def sees(self, run: str) -> bool:
        """Return whether this run is in the token's scope."""
        return self.runs is None or any(fnmatchcase(run, glob) for glob in self.runs)


class JobRequest(Message):
    """Request that a run's Ray job carries out: `requests/<uuid>.json` in the run's folder.

    Written before the job is submitted. The command line holds only the uuid: other users of a machine can read it.
    resumes: the run exists and goes on; back: the rollback or adoption to begin with.
    """

    uuid: UUID
    author: str = Field(min_length=1, max_length=200)
    role: Role | None = None
    resumes: bool = False
    back: Command | None = None


Verb = Literal["launch", "resume", "fork", "replay"]
AnyLaunchRequest = LaunchRequest | ResumeRequest | ForkRequest | ReplayRequest
REQUESTS: dict[Verb, type[LaunchRequest] | type[ResumeRequest] | type[ForkRequest] | type[ReplayRequest]] = {
    "launch": LaunchRequest,
    "resume": ResumeRequest,
    "fork": ForkRequest,
    "replay": ReplayRequest,
}


class ServiceCall(Message):
    """Call of `ray_jobs.service`: one JSON object on its standard input. `request`: see `REQUESTS`."""

    verb: Verb
    run: str | None = None
    request: dict[str, Any] = Field(repr=False)
    by: Requester


class ServiceProblem(Message):
    """Why the service refused: the members of a `SteerwayError`."""

    slug: str
    reason: str
    status: int
    detail: dict[str, Any] = {}


class ServiceAnswer(Message):
    """Answer of `ray_jobs.service`: one JSON line on its standard output, with one of the two members."""

    launched: Launched | None = None
    problem: ServiceProblem | None = None


class LaunchPort(Protocol):
    """Starts runs: what the gateway needs of the training side, which it does not import."""

    async def launch(self, request: LaunchRequest, by: Requester) -> Launched:
        """Make a run's folder and hand its job to Ray or to the queue. Raises `Refused`, `Unavailable`."""
        ...

    async def resume(self, run: str, request: ResumeRequest, by: Requester) -> Launched:
        """Hand a new job of an existing run to Ray. Raises `Refused`, `Damaged`, `Unavailable`."""
        ...

    async def fork(self, run: str, request: ForkRequest, by: Requester) -> Launched:
        """Start runs from a checkpoint of `run`. Raises `Refused`, `Damaged`, `Unavailable`."""
        ...

    async def replay(self, run: str, request: ReplayRequest, by: Requester) -> Launched:
        """Start a run that repeats `run`. Raises `Refused`, `Damaged`, `Unavailable`."""
        ...
