"""Directory layout of a run's files, and the syntax of run ids.

<home>/runs/<run>/config.yaml      the resolved configuration, written before anything else
                  config.yaml.sig  this installation's signature of the config: see `ownership`
                  secrets.json     the values of its secret environment variables, if it has any
                  submission.json  who submitted it, and with what: see `api.launching.Submission`
                  requests/        what each of its Ray jobs is to do: see `api.launching.JobRequest`
                  code.zip, code/  the code bundle that it was submitted with, and its unpacked files
                  journal/         one segment per term
                  metrics.sqlite   measurements
                  checkpoints/     one folder per checkpoint; it exists when its manifest does
                  origin.json      parent and checkpoint of a fork, a replay
                  data/            shards of live sources: SOURCE/SHA256.EXTENSION
                  digests/         parts of each rank's state digests
                  work/            working directory of the ranks: a script's outputs
                  agent/           ledger.jsonl: what the run's agent has spent on its model
                  logs/            driver.log, rank-0.log, rank-1.log, agent.log, ...
"""

import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from control_plane.core.model import values
from control_plane.core.model.errors import Invalid, NotFound

STATE = "state"
"""Subfolder of a checkpoint for what the trainers save; DeepSpeed calls it a tag."""

IMPORTED = "imported.json"
"""Manifest of the export that a run was imported from."""

RUN_ID = re.compile(values.RUN_ID)
"""A run id is used as a folder, an actor's name and a part of URLs, and must be safe in all of them."""


def check_run_id(run: str) -> str:
    """Return the id. Raises `Invalid` if it is malformed."""
    if not RUN_ID.fullmatch(run):
        raise Invalid(
            f"{run[:80]!r} is not a valid run id: use 1 to 64 of a-z, 0-9, '-' and '_', starting with a letter or digit"
        )
    return run


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of one run's files under its folder `root`."""

    root: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.root.name

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def config_signature(self) -> Path:
        """This installation's signature of the configuration; a run from elsewhere has none, or another one."""
        return self.root / "config.yaml.sig"

    @property
    def secrets(self) -> Path:
        """The values of the run's secret environment variables; mode 0600. Most runs have none."""
        return self.root / "secrets.json"

    @property
    def submission(self) -> Path:
        """The record of who submitted the run; runs of earlier releases have none."""
        return self.root / "submission.json"

    def request(self, uuid: UUID) -> Path:
        """Return the file that says what the Ray job of this request is to do."""
        return self.root / "requests" / f"{uuid}.json"

    @property
    def bundle(self) -> Path:
        """The code bundle (zip) that the run was submitted with; a script in a shared folder has none."""
        return self.root / "code.zip"

    @property
    def code(self) -> Path:
        """The folder of the unpacked code bundle."""
        return self.root / "code"

    @property
    def origin(self) -> Path:
        """The origin of a run that has a parent; others have no such file."""
        return self.root / "origin.json"

    @property
    def journal(self) -> Path:
        """The folder of the journal's segments."""
        return self.root / "journal"

    @property
    def metrics(self) -> Path:
        """The SQLite database of measurements."""
        return self.root / "metrics.sqlite"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.root / "checkpoints"

    @property
    def data(self) -> Path:
        """One folder per live source, with its shards."""
        return self.root / "data"

    @property
    def digests(self) -> Path:
        """One file per rank and generation: see `digest_files`."""
        return self.root / "digests"

    @property
    def logs(self) -> Path:
        """The folder of the logs of the driver and the ranks."""
        return self.root / "logs"

    @property
    def agent_ledger(self) -> Path:
        """The ledger of the run's agent, see `control_plane.agent.ledger`."""
        return self.root / "agent" / "ledger.jsonl"

    @property
    def agent_log(self) -> Path:
        """The log of the run's agent."""
        return self.logs / "agent.log"

    def generator(self, name: str) -> Path:
        """The folder of one generator of records: its memory, and the ledger of what a model has cost."""
        return self.root / "generators" / name

    def generator_log(self, name: str) -> Path:
        """The log of one generator."""
        return self.logs / f"generator-{name}.log"

    @property
    def work(self) -> Path:
        """The working directory of the ranks, with the script's outputs."""
        return self.root / "work"

    def exit_reason(self, rank: int) -> Path:
        """Return the file where a rank that terminates itself writes its exit reason."""
        return self.logs / f"rank-{rank}.died.json"

    def crash(self, rank: int) -> Path:
        """Return the file where Python's faulthandler writes the signal and stack that ended a rank."""
        return self.logs / f"rank-{rank}.crash"

    @property
    def signing_key(self) -> Path:
        """The installation's signing key, shared by all its runs."""
        return self.root.parent.parent / "checkpoint-key"


def job_name(run: str, number: int) -> str:
    """Return the submission id of a run's Ray job: the run's id for the first, `<run>-r2` for the next, ..."""
    return run if number == 1 else f"{run}-r{number}"


def job_number(run: str, job: str) -> int | None:
    """Return the number of a run's job, from 1 (the inverse of `job_name`); None if it is not one of this run's."""
    match = re.fullmatch(re.escape(run) + r"(?:-r([0-9]+))?", job)
    return None if match is None else int(match[1] or 1)


def find_run(runs_dir: Path, run: str) -> RunFiles:
    """Return the files of a run. Raises `Invalid` for a malformed id, `NotFound` if there is no such run."""
    files = RunFiles(runs_dir / check_run_id(run))
    if not files.config.is_file():
        raise NotFound(f"there is no run {run!r}")
    return files


def list_runs(runs_dir: Path) -> list[RunFiles]:
    """Return every run, by id."""
    if not runs_dir.is_dir():
        return []
    runs = (RunFiles(path) for path in sorted(runs_dir.iterdir()) if RUN_ID.fullmatch(path.name))
    return [files for files in runs if files.config.is_file()]
