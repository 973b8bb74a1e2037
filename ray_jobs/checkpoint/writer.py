"""Asynchronous checkpoint writer: one per rank, a background thread for each save, without collectives.

Each rank writes its shards from a copy of its state and a signed report beside them. Rank 0 waits for every report,
removes the reports, and commits the manifest. So a crash leaves, at any moment, either a checkpoint with everything
that its manifest names, or a folder without a manifest, which is not a checkpoint. If any rank could not write its
part, rank 0 removes the folder and reports why. Training continues in every case.

Not covered: a folder that the ranks do not share. Rank 0 then finds no report of another rank and times out.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CheckpointCommitted
from control_plane.storage.checkpoint.store import Manifest, RankState, Shard, ShardFile, SigningKey, commit, discard
from control_plane.storage.checkpoint.unrecorded import committed
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE
from ray_jobs.checkpoint.capture import FileStates, random_digest, state_digest
from ray_jobs.checkpoint.host_memory import HostBuffers
from ray_jobs.checkpoint.overlap import BackgroundCopy
from ray_jobs.process.error_text import error_text, without_secrets

log = logging.getLogger(__name__)

RANKS_WAIT_S = 600.0
"""Timeout of rank 0, its own part written, for the others' reports: as long as ranks wait for each other elsewhere."""

LOOK_EVERY_S = 0.05
"""Interval at which rank 0 polls for the other ranks' reports."""

NICENESS = 10
"""Of the writing thread, on Linux: where cores are scarce, the training's threads go first."""

REPORT = re.compile(r"rank-([0-9]+)\.(done|failed)\.json")
PACKAGES = ("torch", "deepspeed", "transformers")


@dataclass(frozen=True, slots=True)
class Finished:
    """Result of a save on one rank: only rank 0 knows of the commit, and of other ranks' failures.

    `seconds` by phase: `copy` and `waited` (by the update that followed), if the state was copied in the background;
    `write` (with hashing and fsync), `digest`, and on rank 0 `ranks` (the wait for them), `commit`.
    `size_bytes` is the whole checkpoint's on rank 0 if it was committed, else what this rank wrote.
    """

    name: str
    committed: CheckpointCommitted | None
    reason: str | None
    about: dict[str, Any]
    seconds: dict[str, float]
    size_bytes: int


@dataclass(slots=True)
class _Save:
    """A save in progress."""

    name: str
    states: FileStates
    about: dict[str, Any]
    copy: BackgroundCopy | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    size_bytes: int = 0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = time.monotonic() - began_s


class CheckpointWriter:
    """Writer of one rank's part of one checkpoint at a time. `buffers` holds the copies that it writes from."""

    def __init__(
        self, files: RunFiles, rank: int, world_size: int, key: SigningKey, ranks_wait_s: float = RANKS_WAIT_S
    ) -> None:
        self._files, self._rank, self._world_size, self._key = files, rank, world_size, key
        self._ranks_wait_s = ranks_wait_s
        self.buffers = HostBuffers()
        self._changed = threading.Condition()
        self._busy: str | None = None
        self._copy: BackgroundCopy | None = None
        self._finished: list[Finished] = []

    @property
    def busy(self) -> str | None:
        """Name of the checkpoint that is being written, or None."""
        with self._changed:
            return self._busy

    def start(self, name: str, states: FileStates, about: dict[str, Any], copy: BackgroundCopy | None = None) -> None:
        """Start writing `states` in the background and return at once. The caller must not change them any more.

        They are complete when `copy` has ended, if one is given: until then `wait_for_copy` keeps its source as it is.
        `about` holds the manifest's generation, step and other fields about this save. The folder must exist.
        Raises `RuntimeError` if another checkpoint is being written.
        """
        with self._changed:
            if self._busy is not None:
                raise RuntimeError(f"checkpoint {self._busy} is still being written")
            self._busy = name
        save = _Save(name, states, about, copy)
        self._copy = copy
        try:
            threading.Thread(target=self._write, args=(save, True), name=f"checkpoint-{name}", daemon=True).start()
        except RuntimeError:
            # The other ranks have begun and need this one's part.
            log.warning("cannot start a thread for checkpoint %s: training waits while it is written", name)
            self._write(save, False)

    def wait_for_copy(self) -> None:
        """Wait until the live state may be changed. Called by the training's thread, before anything changes it."""
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.wait()

    def finished(self) -> list[Finished]:
        """Return the saves that have ended since the last call."""
        with self._changed:
            ended, self._finished = self._finished, []
        return ended

    def take(self, name: str) -> Finished | None:
        """Remove and return the result of one save, so that `finished` does not return it; None if it has not ended."""
        with self._changed:
            result = next((ended for ended in self._finished if ended.name == name), None)
            self._finished = [ended for ended in self._finished if ended is not result]
        return result

    def drain(self, wait_s: float) -> bool:
        """Wait until no save is in progress; return False if that takes longer than `wait_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy is None, wait_s)

    def _write(self, save: _Save, in_background: bool) -> None:
        if in_background:
            _lower_priority()
        committed: CheckpointCommitted | None = None
        reason: str | None = None
        try:
            if self._rank == 0:
                committed = self._lead(save)
            else:
                self._follow(save)
        except Exception as error:
            reason = _reason(error)
            log.error("checkpoint %s failed on rank %d: %s", save.name, self._rank, reason)
        save.states = {}
        if save.copy is not None:
            save.seconds["waited"] = save.copy.waited_s
        ended = Finished(save.name, committed, reason, save.about, save.seconds, save.size_bytes)
        with self._changed:
            self._finished.append(ended)
            self._busy = None
            self._changed.notify_all()

    def _lead(self, save: _Save) -> CheckpointCommitted:
        """Write rank 0's part, wait for the others', and commit. If that fails, removes the folder and raises."""
        root = self._files.checkpoints / save.name
        parts: dict[int, Manifest | str] = {}
        try:
            parts[0] = self._part(root, save)
        except Exception as error:
            parts[0] = _reason(error)
        try:
            with save.timed("ranks"):
                self._gather(root, parts)
            with save.timed("commit"):
                return self._commit(root, save, parts)
        except Exception:
            _discard(root)
            raise

    def _follow(self, save: _Save) -> None:
        """Write the part of a rank other than 0, and a report of its success or failure."""
        root = self._files.checkpoints / save.name
        try:
            part = self._part(root, save)
            _report(root, self._rank, "done", self._key.sign(part).text())
        except Exception as error:
            _report_failure(root, self._rank, _reason(error))
            raise

    def _part(self, root: Path, save: _Save) -> Manifest:
        """Write this rank's shards. Raises, with no shard left, if one cannot be written."""
        shards: list[Shard] = []
        try:
            if save.copy is not None:
                save.copy.finish()
                save.seconds["copy"] = save.copy.copy_s
            with save.timed("write"):
                for path, state in save.states.items():
                    shards.append(_write_shard(root, path, state, self._rank))
                    save.size_bytes += shards[-1].size_bytes
        except Exception:
            for shard in shards:  # the disk may be full, and the report needs room
                (root / shard.path).unlink(missing_ok=True)
            raise
        with save.timed("digest"):
            state = RankState(
                rank=self._rank, state_sha256=state_digest(save.states), random_sha256=random_digest(save.states)
            )
        return self._manifest(save, tuple(shards), (state,))

    def _manifest(self, save: _Save, shards: tuple[Shard, ...], ranks: tuple[RankState, ...]) -> Manifest:
        return Manifest(
            checkpoint=save.name,
            run=self._files.run,
            world_size=self._world_size,
            shards=shards,
            ranks=ranks,
            versions=_versions(),
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **save.about,
        )

    def _gather(self, root: Path, parts: dict[int, Manifest | str]) -> None:
        """Wait for every rank's report of success or failure: after it, that rank writes no more into the folder."""
        deadline_s = time.monotonic() + self._ranks_wait_s
        while True:
            # Listing the folder, rather than asking for names, makes a network file system look again.
            for name in os.listdir(root):
                report = REPORT.fullmatch(name)
                if report and int(report[1]) not in parts:
                    parts[int(report[1])] = self._read_report(root / name, int(report[1]), report[2] == "done")
            missing = sorted(set(range(self._world_size)) - parts.keys())
            if not missing and not _unseen(root, parts):
                return
            if time.monotonic() > deadline_s:
                parts.update(dict.fromkeys(missing, f"did not report within {self._ranks_wait_s:g} s"))
                return
            time.sleep(LOOK_EVERY_S)

    def _read_report(self, path: Path, rank: int, done: bool) -> Manifest | str:
        try:
            text = path.read_bytes()
            if not done:
                return text.decode(errors="replace") or "could not write its part, and no reason was recorded"
            part = Manifest.model_validate_json(text)
            self._key.check(part, path)
        except (OSError, ValidationError, SteerwayError) as error:
            return f"its report is invalid: {_reason(error)}"
        if part.checkpoint != path.parent.name or [state.rank for state in part.ranks] != [rank]:
            return f"its report is for another checkpoint or rank than rank {rank} of {path.parent.name}"
        return part

    def _commit(self, root: Path, save: _Save, parts: dict[int, Manifest | str]) -> CheckpointCommitted:
        reasons = [f"rank {rank}: {part}" for rank, part in sorted(parts.items()) if isinstance(part, str)]
        if reasons:
            raise RuntimeError("; ".join(reasons))
        whole = [part for _, part in sorted(parts.items()) if isinstance(part, Manifest)]
        shards = tuple(shard for part in whole for shard in part.shards)
        manifest = self._manifest(save, shards, tuple(state for part in whole for state in part.ranks))
        # Before the manifest: a committed checkpoint holds only files that its manifest names.
        for rank in range(1, self._world_size):
            (root / f"rank-{rank}.done.json").unlink()
        digest = commit(root, manifest, self._key)
        save.size_bytes = manifest.size_bytes
        return committed(manifest, digest)


def _write_shard(root: Path, path: str, state: Any, rank: int) -> Shard:
    with ShardFile(root, path, rank) as file:
        if isinstance(state, bytes | str):
            file.write(state.encode() if isinstance(state, str) else state)
        else:
            _pickle(state, file)
    return file.shard


def _pickle(state: Any, file: ShardFile) -> None:
    """Run `torch.save` and raise the first cause of a failure: a failed write makes it complain about its archive."""
    try:
        torch.save(state, file)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _report(root: Path, rank: int, kind: str, content: bytes) -> None:
    """Write a report durably and atomically, as a shard is written."""
    with ShardFile(root, f"rank-{rank}.{kind}.json", rank) as file:
        file.write(content)


def _report_failure(root: Path, rank: int, reason: str) -> None:
    """Report a failure, with an empty file if the disk is full. Without any report rank 0 waits until its timeout."""
    try:
        _report(root, rank, "failed", reason.encode())
    except OSError as error:
        log.warning("rank %d cannot write the reason for the failed checkpoint: %s", rank, error)
        with suppress(OSError):
            (root / f"rank-{rank}.failed.json").touch(mode=FILE_MODE)


def _unseen(root: Path, parts: dict[int, Manifest | str]) -> bool:
    """Return whether a reported shard is not yet visible here in its full size: network file systems lag."""
    for part in parts.values():
        for shard in part.shards if isinstance(part, Manifest) else ():
            try:
                if (root / shard.path).stat().st_size != shard.size_bytes:
                    return True
            except FileNotFoundError:
                return True
    return False


def _discard(root: Path) -> None:
    try:
        discard(root.parent, root.name)
    except SteerwayError as error:
        log.warning("cannot remove the files of a failed save: %s", error.reason)


def _lower_priority() -> None:
    """Raise this thread's niceness. On Linux only: elsewhere it would be the whole process's."""
    if os.uname().sysname == "Linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _reason(error: Exception) -> str:
    return without_secrets(error.reason) if isinstance(error, SteerwayError) else error_text(error)
