"""Ledger of launch requests: which runs a request makes, and its answer, so that a repeated request is the same one.

<home>/launching/request.<uuid>.json   a request's record, written before anything else of it
                 request.<uuid>.lock   held by the process that carries it out
                 run.<run>.lock        held by a process that submits a job of this run
                 <run>/                a new run's folder until it is complete; then it is moved to <home>/runs

A process that dies leaves a record without an answer: the repeated request makes the same runs.
Not covered: file systems without `flock`.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from control_plane.api.launching import Launched, Verb
from control_plane.core.model.errors import Conflict, Damaged, Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.storage.failpoints import reach
from control_plane.storage.layout import RunFiles
from control_plane.storage.locks import lock_file
from control_plane.storage.private import make_folder, replace_file, sync_names
from control_plane.storage.regular import read_regular

FOLDER = "launching"
LOCK_WAIT_S = 120.0
LOOK_EVERY_S = 0.1
KEEP_S = 7 * 24 * 3600.0
"""Nobody repeats a request after a week; what it has left is removed then."""


class LaunchRecord(Message):
    """Record of one request. `sha256`: digest of what was asked, without secrets; `runs`: ids of the runs it makes."""

    uuid: UUID
    verb: Verb
    sha256: str
    runs: tuple[str, ...] = ()
    answer: Launched | None = None


class LaunchLedger:
    """Ledger of the launch requests of an installation."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER

    @contextmanager
    def request(self, uuid: UUID, verb: Verb, sha256: str) -> Iterator["LedgerEntry"]:
        """Hold a request until it is answered. Raises `Conflict` if the uuid is another request's."""
        make_folder(self._folder)
        self._remove_old()
        with self.lock(f"request.{uuid}"):
            record = self._read(uuid) or LaunchRecord(uuid=uuid, verb=verb, sha256=sha256)
            if (record.verb, record.sha256) != (verb, sha256):
                raise Conflict(f"uuid {uuid} is already another request's; choose a new one")
            yield LedgerEntry(self._folder, record)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock between processes. Raises `Unavailable` if another holds it for too long."""
        otherwise = f"another request holds {name}; repeat this one with the same uuid"
        with lock_file(self._folder / f"{name}.lock", LOCK_WAIT_S, LOOK_EVERY_S, otherwise):
            yield

    def _read(self, uuid: UUID) -> LaunchRecord | None:
        path = _path(self._folder, uuid)
        try:
            return LaunchRecord.model_validate_json(read_regular(path))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise Damaged(f"{path} cannot be read ({type(error).__name__}); repeat with a new uuid") from None

    def _remove_old(self) -> None:
        before = time.time() - KEEP_S
        for path in self._folder.iterdir():
            try:
                if path.lstat().st_mtime < before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError:
                continue  # another process removes it


class LedgerEntry:
    """One request's record, held by its lock."""

    def __init__(self, folder: Path, record: LaunchRecord) -> None:
        self._folder, self.record = folder, record

    def begin(self, runs: tuple[str, ...]) -> tuple[str, ...]:
        """Record the ids of the runs that this request makes, and return them: those of the first try."""
        if not self.record.runs:
            self._write(self.record.model_copy(update={"runs": runs}))
        reach("launch", "after_record")
        return self.record.runs

    def answer(self, launched: Launched) -> Launched:
        """Record the answer."""
        self._write(self.record.model_copy(update={"answer": launched}))
        reach("launch", "after_answer")
        return launched

    def stage(self, run: str) -> RunFiles:
        """Return an empty folder in which a new run is made, without what an earlier try has left."""
        files = self.folder(run)
        shutil.rmtree(files.root, ignore_errors=True)
        make_folder(files.root)
        return files

    def folder(self, run: str) -> RunFiles:
        """Return the files of a new run until it has its place among the runs."""
        return RunFiles(self._folder / run)

    def _write(self, record: LaunchRecord) -> None:
        path = _path(self._folder, record.uuid)
        try:
            replace_file(path, record.model_dump_json())
            sync_names(self._folder)
        except OSError as error:
            raise Unavailable(f"{path} could not be written: {error.strerror or error}") from None
        self.record = record


def _path(folder: Path, uuid: UUID) -> Path:
    return folder / f"request.{uuid}.json"
