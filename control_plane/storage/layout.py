"""Where a run keeps its files, and which names a run may have.

<home>/runs/<run>/config.yaml      the resolved configuration, written before anything else
                  config.yaml.sig  that this installation made or trusts the config: see `ownership`
                  secrets.json     the values of its secret environment variables, if it has any
                  journal/         one segment per term
                  metrics.sqlite   measurements
                  checkpoints/     one folder per checkpoint; it exists when its manifest does
                  origin.json      how it begins, if it has a parent: a fork, a replay
                  digests/         what each rank's digests of its live state were made of
                  work/            where the ranks work: what a script writes
                  logs/            driver.log, rank-0.log, rank-1.log, ...
"""

import re
from dataclasses import dataclass
from pathlib import Path

from control_plane.core.model import intents
from control_plane.core.model.errors import Invalid, NotFound

STATE = "state"
"""A checkpoint's subfolder for what the trainers save; DeepSpeed calls it a tag."""

IMPORTED = "imported.json"
"""Beside a journal that came from an export: what the export said of itself."""

RUN_ID = re.compile(intents.RUN_ID)
"""A run's id becomes a folder, an actor's name and a part of URLs; so it is harmless in all of them."""


def check_run_id(run: str) -> str:
    """The id itself. Raises `Invalid` if it is not one."""
    if not RUN_ID.fullmatch(run):
        raise Invalid(
            f"{run[:80]!r} is not a run id: 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or a digit"
        )
    return run


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one run under its folder `root`."""

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
    def origin(self) -> Path:
        """How a run begins that has a parent; others have none."""
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
    def digests(self) -> Path:
        """One file per rank and generation: see `digest_files`."""
        return self.root / "digests"

    @property
    def logs(self) -> Path:
        """What the driver and the ranks printed."""
        return self.root / "logs"

    @property
    def work(self) -> Path:
        """Where the ranks work: what a script writes under a relative path lies here."""
        return self.root / "work"

    def last_words(self, rank: int) -> Path:
        """Where a rank that ends itself writes why, for whoever finds it dead."""
        return self.logs / f"rank-{rank}.died.json"

    def crash(self, rank: int) -> Path:
        """Where Python's fault handler writes which signal ended a rank, and in which line."""
        return self.logs / f"rank-{rank}.crash"

    @property
    def signing_key(self) -> Path:
        """The installation's key for checkpoints: one for all its runs."""
        return self.root.parent.parent / "checkpoint-key"


def job_name(run: str, number: int) -> str:
    """The submission id of a run's Ray job: the run's own id for the first, `<run>-r2` when it is resumed, ..."""
    return run if number == 1 else f"{run}-r{number}"


def job_number(run: str, job: str) -> int | None:
    """The inverse of `job_name`: from 1; None if the job is not one of this run's."""
    found = re.fullmatch(re.escape(run) + r"(?:-r([0-9]+))?", job)
    return None if found is None else int(found[1] or 1)


def find_run(runs_dir: Path, run: str) -> RunFiles:
    """The files of a run. Raises `Invalid` for a malformed id, `NotFound` if there is no such run."""
    files = RunFiles(runs_dir / check_run_id(run))
    if not files.config.is_file():
        raise NotFound(f"there is no run {run!r}")
    return files


def list_runs(runs_dir: Path) -> list[RunFiles]:
    """Every run, by id."""
    if not runs_dir.is_dir():
        return []
    found = (RunFiles(path) for path in sorted(runs_dir.iterdir()) if RUN_ID.fullmatch(path.name))
    return [files for files in found if files.config.is_file()]
