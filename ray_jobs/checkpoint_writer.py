"""The background writer of checkpoints: one per rank, a thread for each save, and no collectives in it.

Each rank writes its shards from a copy of its state and says so in a signed report beside them. Rank 0 waits for every
report, takes the reports away, and writes the manifest. So a crash leaves, at any moment, either a checkpoint with
everything that its manifest names, or a folder without a manifest, which is none. If any rank could not write its part,
rank 0 removes the folder and tells why. Training goes on in every case.

Not covered: a folder that the ranks do not share. Rank 0 then hears of no other rank, and gives up after a while.
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
from uuid import UUID

import torch
from pydantic import ValidationError

from control_plane.core.errors import SteerwayError
from control_plane.core.records import CheckpointCommitted
from control_plane.storage.checkpoints import Manifest, RankState, Shard, ShardFile, SigningKey, commit, discard
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE
from ray_jobs.capture import FileStates, random_digest, state_digest
from ray_jobs.complaints import told, without_secrets
from ray_jobs.host_memory import HostBuffers

log = logging.getLogger(__name__)

RANKS_WAIT_S = 600.0
"""How long rank 0, its own part written, waits for the others: as long as ranks wait for each other elsewhere."""

LOOK_EVERY_S = 0.05
"""Pause between two looks for the other ranks' reports."""

NICENESS = 10
"""Of the writing thread, on Linux: where cores are scarce, the training's threads go first."""

REPORT = re.compile(r"rank-([0-9]+)\.(done|failed)\.json")
PACKAGES = ("torch", "deepspeed", "transformers")


@dataclass(frozen=True, slots=True)
class Finished:
    """A save that has ended, as one rank knows it: only rank 0 knows of the commit, and of other ranks' failures.

    `seconds` by phase: `write` (with hashing and fsync), `digest`, and on rank 0 `ranks` (the wait for them), `commit`.
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
    """One save on its way."""

    name: str
    states: FileStates
    about: dict[str, Any]
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
    """Writes one rank's part of one checkpoint at a time. `buffers` holds the copies that it writes from."""

    def __init__(
        self, files: RunFiles, rank: int, world_size: int, key: SigningKey, ranks_wait_s: float = RANKS_WAIT_S
    ) -> None:
        self._files, self._rank, self._world_size, self._key = files, rank, world_size, key
        self._ranks_wait_s = ranks_wait_s
        self.buffers = HostBuffers()
        self._changed = threading.Condition()
        self._busy: str | None = None
        self._finished: list[Finished] = []

    @property
    def busy(self) -> str | None:
        """The checkpoint that is being written, or None."""
        with self._changed:
            return self._busy

    def start(self, name: str, states: FileStates, about: dict[str, Any]) -> None:
        """Begin to write `states`, which nobody else may change any more; returns at once.

        `about` holds the manifest's generation, step and whatever else it says about this save. The folder exists.
        Raises `RuntimeError` if another checkpoint is being written.
        """
        with self._changed:
            if self._busy is not None:
                raise RuntimeError(f"checkpoint {self._busy} is still being written")
            self._busy = name
        save = _Save(name, states, about)
        try:
            threading.Thread(target=self._write, args=(save, True), name=f"checkpoint-{name}", daemon=True).start()
        except RuntimeError:
            # The other ranks have begun and count on this one.
            log.warning("no thread for checkpoint %s: training waits for it", name)
            self._write(save, False)

    def finished(self) -> list[Finished]:
        """What has ended since this was last asked."""
        with self._changed:
            ended, self._finished = self._finished, []
        return ended

    def take(self, name: str) -> Finished | None:
        """The end of one save, which `finished` then does not tell any more; None if it has not ended."""
        with self._changed:
            found = next((ended for ended in self._finished if ended.name == name), None)
            self._finished = [ended for ended in self._finished if ended is not found]
        return found

    def drain(self, wait_s: float) -> bool:
        """Wait until nothing is being written any more; False if that took longer than `wait_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy is None, wait_s)

    def _write(self, save: _Save, in_background: bool) -> None:
        if in_background:
            _step_back()
        committed: CheckpointCommitted | None = None
        reason: str | None = None
        try:
            if self._rank == 0:
                committed = self._lead(save)
            else:
                self._follow(save)
        except Exception as error:
            reason = _told(error)
            log.error("no checkpoint %s, as far as rank %d knows: %s", save.name, self._rank, reason)
        save.states = {}
        ended = Finished(save.name, committed, reason, save.about, save.seconds, save.size_bytes)
        with self._changed:
            self._finished.append(ended)
            self._busy = None
            self._changed.notify_all()

    def _lead(self, save: _Save) -> CheckpointCommitted:
        """Rank 0: its own part, then everyone's. Raises, after the folder was removed, if there is no checkpoint."""
        root = self._files.checkpoints / save.name
        parts: dict[int, Manifest | str] = {}
        try:
            parts[0] = self._part(root, save)
        except Exception as error:
            parts[0] = _told(error)
        try:
            with save.timed("ranks"):
                self._gather(root, parts)
            with save.timed("commit"):
                return self._commit(root, save, parts)
        except Exception:
            _removed(root)
            raise

    def _follow(self, save: _Save) -> None:
        """Any other rank: its own part, and a report of it, good or bad."""
        root = self._files.checkpoints / save.name
        try:
            part = self._part(root, save)
            _report(root, self._rank, "done", self._key.sign(part).text())
        except Exception as error:
            _report_failure(root, self._rank, _told(error))
            raise

    def _part(self, root: Path, save: _Save) -> Manifest:
        """Write this rank's shards. Raises, with no shard left, if one cannot be written."""
        shards: list[Shard] = []
        try:
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
        """Wait for every rank's report, good or bad: only then does nobody write into the folder any more."""
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
                late = f"is not heard of after {self._ranks_wait_s:g} s"
                parts.update(dict.fromkeys(missing, late))
                return
            time.sleep(LOOK_EVERY_S)

    def _read_report(self, path: Path, rank: int, done: bool) -> Manifest | str:
        try:
            text = path.read_bytes()
            if not done:
                return text.decode(errors="replace") or "could not write its part, nor why"
            part = Manifest.model_validate_json(text)
            self._key.check(part, path)
        except (OSError, ValidationError, SteerwayError) as error:
            return f"its report cannot be used: {_told(error)}"
        if part.checkpoint != path.parent.name or [state.rank for state in part.ranks] != [rank]:
            return f"its report is not about its part of {path.parent.name}"
        return part

    def _commit(self, root: Path, save: _Save, parts: dict[int, Manifest | str]) -> CheckpointCommitted:
        problems = [f"rank {rank}: {part}" for rank, part in sorted(parts.items()) if isinstance(part, str)]
        if problems:
            raise RuntimeError("; ".join(problems))
        whole = [part for _, part in sorted(parts.items()) if isinstance(part, Manifest)]
        shards = tuple(shard for part in whole for shard in part.shards)
        manifest = self._manifest(save, shards, tuple(state for part in whole for state in part.ranks))
        # Before the manifest: from then on the checkpoint holds nothing that it does not name.
        for rank in range(1, self._world_size):
            (root / f"rank-{rank}.done.json").unlink()
        digest = commit(root, manifest, self._key)
        save.size_bytes = manifest.size_bytes
        return CheckpointCommitted(
            checkpoint=save.name,
            step=manifest.step,
            generation=manifest.generation,
            path=str(root.relative_to(self._files.root)),
            label=manifest.label,
            pinned=manifest.pinned,
            size_bytes=manifest.size_bytes,
            world_size=manifest.world_size,
            metrics=manifest.metrics,
            manifest_sha256=digest,
            branch=manifest.branch,
            training=manifest.training,
            decided_here=tuple(UUID(uuid) for uuid in manifest.decided_here),
        )


def _write_shard(root: Path, path: str, state: Any, rank: int) -> Shard:
    with ShardFile(root, path, rank) as file:
        if isinstance(state, bytes | str):
            file.write(state.encode() if isinstance(state, str) else state)
        else:
            _pickle(state, file)
    return file.shard


def _pickle(state: Any, file: ShardFile) -> None:
    """`torch.save`, which complains about its own unfinished archive where a write has failed: tell the first cause."""
    try:
        torch.save(state, file)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _report(root: Path, rank: int, kind: str, content: bytes) -> None:
    """Durable, whole, and under its name in one move: the same way as a shard."""
    with ShardFile(root, f"rank-{rank}.{kind}.json", rank) as file:
        file.write(content)


def _report_failure(root: Path, rank: int, reason: str) -> None:
    """The bare name needs no room for content on a full disk. Without any report rank 0 waits its whole time."""
    try:
        _report(root, rank, "failed", reason.encode())
    except OSError as error:
        log.warning("rank %d cannot write why there is no checkpoint: %s", rank, error)
        with suppress(OSError):
            (root / f"rank-{rank}.failed.json").touch(mode=FILE_MODE)


def _unseen(root: Path, parts: dict[int, Manifest | str]) -> bool:
    """Whether a shard that was reported is not, or not wholly, in sight from here: network file systems lag."""
    for part in parts.values():
        for shard in part.shards if isinstance(part, Manifest) else ():
            try:
                if (root / shard.path).stat().st_size != shard.size_bytes:
                    return True
            except FileNotFoundError:
                return True
    return False


def _removed(root: Path) -> None:
    try:
        discard(root.parent, root.name)
    except SteerwayError as error:
        log.warning("what is left of a save: %s", error.reason)


def _step_back() -> None:
    """On Linux a thread has a niceness of its own; elsewhere it would be the whole process's."""
    if os.uname().sysname == "Linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _told(error: Exception) -> str:
    return without_secrets(error.reason) if isinstance(error, SteerwayError) else told(error)
