"""Files of the start queue: one entry for each run that waits for its start, or whose job is at Ray.

    <home>/queue/<run>.json     an entry: who, how much, since when; and the job, once it was handed over
                 .lock          held by the process that decides on starts

An entry is written before the job that it names is submitted, and removed when that job has ended. A gateway that dies
leaves entries, from which the next one goes on.
Not covered: file systems without `flock`; two gateways of one home on two machines.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from uuid import UUID

from pydantic import Field, ValidationError

from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.core.rules.capacity import Demand
from control_plane.storage.layout import RUN_ID, check_run_id
from control_plane.storage.locks import lock_file
from control_plane.storage.private import make_folder, replace_file
from control_plane.storage.regular import read_regular

FOLDER = "queue"
LOCK_WAIT_S = 60.0
LOOK_EVERY_S = 0.05
SUFFIX = ".json"

log = logging.getLogger(__name__)


class QueueEntry(Message):
    """One run in the start queue, or at Ray. `request`: of the launch request, by which its job is found at Ray.

    state: queued, for the `reason`; starting, while `job` is being submitted, or if that was interrupted; handed_over.
    not_before_s: after a submission that failed, when it is tried again.
    """

    run: str
    request: UUID
    owner: str
    priority: int = 0
    since_s: float = Field(description="Unix time of the submission")
    demand: Demand
    state: Literal["queued", "starting", "handed_over"] = "queued"
    job: str | None = None
    reason: str | None = None
    not_before_s: float = 0.0

    @property
    def is_queued(self) -> bool:
        """True while the run waits for its start."""
        return self.state != "handed_over"


class QueueFolder:
    """Entries of one home."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Hold the lock under which starts are decided and entries change. Raises `Unavailable` if it stays taken."""
        otherwise = f"the start queue is busy for {LOCK_WAIT_S:.0f} s; repeat with the same uuid"
        with lock_file(self._folder / ".lock", LOCK_WAIT_S, LOOK_EVERY_S, otherwise):
            yield

    def entries(self) -> list[QueueEntry]:
        """Return every entry; one that cannot be read is left out."""
        try:
            names = sorted(path.name for path in self._folder.iterdir() if path.name.endswith(SUFFIX))
        except FileNotFoundError:
            return []
        runs = (name.removesuffix(SUFFIX) for name in names)
        return [entry for run in runs if RUN_ID.fullmatch(run) and (entry := self.entry(run)) is not None]

    def entry(self, run: str) -> QueueEntry | None:
        """Return a run's entry, or None."""
        try:
            entry = QueueEntry.model_validate_json(read_regular(self._path(run)))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the queue entry of run %s cannot be read (%s)", run, type(error).__name__)
            return None
        return entry if entry.run == run else None

    def write(self, entry: QueueEntry) -> QueueEntry:
        """Write an entry durably. Raises `Unavailable` if the disk fails."""
        try:
            make_folder(self._folder)
            replace_file(self._path(entry.run), entry.model_dump_json())
        except OSError as error:
            raise Unavailable(f"the queue entry of run {entry.run} cannot be written: {error.strerror}") from None
        return entry

    def remove(self, run: str) -> None:
        """Remove a run's entry, if it has one."""
        self._path(run).unlink(missing_ok=True)

    def _path(self, run: str) -> Path:
        return self._folder / f"{check_run_id(run)}{SUFFIX}"
