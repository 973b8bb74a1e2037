"""Rank of the torn-saves benchmark: a real DeepSpeed engine saves, with a snapshot of the folder at each operation.

A process that dies loses nothing that it has written, so a crash leaves the content of the disk at that time. Both
ranks take a lock for each file operation and copy the whole folder before it: each copy is exactly what a crash of the
whole job between two file operations would leave.
"""

import builtins
import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from control_plane.storage.checkpoint.store import MANIFEST, Manifest, Shard, SigningKey, commit, hash_shard
from control_plane.storage.layout import STATE

PROTOCOLS = ("stock", "steerway")
OUTCOMES = ("new", "old", "torn", "none")
OLD, NEW = "step-1", "step-2"
RUN, WORLD_SIZE = "torn", 2
SLOW_S = 0.005
"""Delay of each file operation of the slow rank; in turns it is the last rank, the first one, or none."""

OPERATIONS = ("open", "write", "fsync", "rename", "mkdir", "unlink")

Files = dict[str, bytes]
"""Content of a folder, by relative path."""


def save_rounds(rank: int, spec: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Save in every protocol `spec["rounds"]` times. Returns the counts of `OUTCOMES` for each protocol."""
    folder, engine = Path(spec["folder"]), _trained(rank)
    counts: dict[str, Counter[str]] = {protocol: Counter() for protocol in PROTOCOLS}
    for number in range(spec["rounds"]):
        for protocol in PROTOCOLS:
            saves = folder / f"{protocol}-{number}"
            _save(protocol, engine, saves, OLD, rank)
            watch = FolderSnapshots(saves, SLOW_S if rank == (1, 0, -1)[number % 3] else 0.0)
            gather(None)
            with watch.armed():
                _save(protocol, engine, saves, NEW, rank)
            gather(None)
            complete = read_folder(saves / NEW)
            gather(None)
            counts[protocol].update(_outcome(protocol, moment, complete, saves) for moment in watch.moments)
    return {protocol: dict(counter) for protocol, counter in counts.items()}


@dataclass(frozen=True)
class RestartedRank:
    """Rank and world size of a restarted rank, which is all that `examine` uses of its collectives."""

    rank: int
    world_size: int = WORLD_SIZE


class FolderSnapshots:
    """Snapshots of a folder before each file operation of this process."""

    def __init__(self, folder: Path, slow_s: float) -> None:
        self.moments = list[Files]()
        self._folder, self._slow_s, self._busy = folder, slow_s, False
        self._lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)

    @contextmanager
    def moment(self) -> Iterator[None]:
        """Lock out the other rank, take a snapshot, and run the operation."""
        if self._busy:
            yield
            return
        self._busy = True
        time.sleep(self._slow_s)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self.moments.append(read_folder(self._folder))
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._busy = False

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Take snapshots of all file operations in the context."""
        import torch

        real = {name: getattr(os, name) for name in OPERATIONS}
        real_open, real_save = builtins.open, torch.save

        def watched_open(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
            if not set(mode) & set("wxa"):
                return real_open(file, mode, *args, **named)
            with self.moment():
                return WatchedFile(real_open(file, mode, *args, **named), self)

        def watched_save(state: Any, file: Any, *args: Any, **named: Any) -> None:
            # Given a path, torch writes in C++, without hooks; given a file, it writes the same.
            with watched_open(file, "wb") as opened:
                real_save(state, opened, *args, **named)

        for name, operation in real.items():
            setattr(os, name, self._watched(operation))
        builtins.open = watched_open
        torch.save = watched_save  # type: ignore[assignment]
        try:
            yield
        finally:
            builtins.open, torch.save = real_open, real_save
            for name, operation in real.items():
                setattr(os, name, operation)

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **named: Any) -> Any:
            with self.moment():
                return real(*args, **named)

        return operation


class WatchedFile:
    """File with a snapshot before each write, which is flushed."""

    def __init__(self, file: Any, watch: FolderSnapshots) -> None:
        self._file, self._watch = file, watch

    def write(self, data: Any) -> int:
        """Take a snapshot, write and flush."""
        with self._watch.moment():
            written = int(self._file.write(data))
            self._file.flush()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_folder(folder: Path) -> Files:
    """Return the content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gather(value: Any) -> list[Any]:
    """Collective. Return the values of all ranks, in rank order."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _save(protocol: str, engine: Any, saves: Path, name: str, rank: int) -> None:
    if protocol == "stock":
        engine.save_checkpoint(str(saves), tag=name)
        return
    root = saves / name
    engine._copy_recovery_script = lambda folder: None  # as saves of runs have it: no scripts lie in a checkpoint
    engine.save_checkpoint(str(root), tag=STATE, save_latest=False)
    paths = sorted(path for path in (root / STATE).rglob("*") if path.is_file())
    own = [hash_shard(root, path, rank) for path in paths if _writer(path) == rank]
    shards = [Shard.model_validate(shard) for part in gather([one.model_dump() for one in own]) for shard in part]
    if rank == 0:
        manifest = Manifest(
            checkpoint=name,
            run=RUN,
            generation=1,
            step=1,
            world_size=WORLD_SIZE,
            shards=tuple(shards),
            samples_consumed=1,
        )
        commit(root, manifest, _key(saves))
    gather(None)


def _writer(path: Path) -> int:
    """Return the rank that writes a file: rank 0 unless its name has another."""
    return int("zero_pp_rank_1_" in path.name)


def _key(saves: Path) -> SigningKey:
    return SigningKey.of_installation(saves.with_name("key"))


def _outcome(protocol: str, moment: Files, complete: Files, saves: Path) -> str:
    """Return the outcome of a restart from a snapshot: one of `OUTCOMES`."""
    name = moment.get("latest", b"").decode().strip() if protocol == "stock" else _verified(moment, saves)
    if name != NEW:
        return "old" if name == OLD else "none"
    there = {path.removeprefix(f"{NEW}/"): data for path, data in moment.items() if path.startswith(f"{NEW}/")}
    return "new" if there == complete else "torn"


def _verified(moment: Files, saves: Path) -> str | None:
    """Return the checkpoint that `resume_plan` chooses, or a rejected one with a manifest, which must not exist."""
    from ray_jobs.checkpoint.resume_plan import examine

    remains = saves.with_name(f"{saves.name}-remains-{os.getpid()}")
    for path, data in moment.items():
        (remains / path).parent.mkdir(parents=True, exist_ok=True)
        (remains / path).write_bytes(data)
    try:
        for name in (NEW, OLD):
            ranks = (cast(Any, RestartedRank(rank)) for rank in range(WORLD_SIZE))
            parts = [examine(remains / name, _key(saves), rank, RUN, "") for rank in ranks]
            if all(isinstance(part, Manifest) for part in parts) or (remains / name / MANIFEST).exists():
                return name
        return None
    finally:
        shutil.rmtree(remains)


def _trained(rank: int) -> Any:
    """Return an engine with a small model, whose files are quickly copied, and real optimizer states."""
    import deepspeed
    import torch

    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.backward(engine(torch.ones(1, 8) * (rank + 1)).sum())
    engine.step()
    return engine
