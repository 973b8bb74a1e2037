"""Snapshot of the live training state: this rank's checkpoint files, their copy in host memory, and their digest.

DeepSpeed itself decides the contents: its `save_checkpoint` runs as always, into a checkpoint engine that only records
references to live tensors. The copy to host memory is the one thing that a training step has to wait for.
"""

import hashlib
import io
import json
import logging
import math
import os
import pickle
import re
import struct
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy
import torch
import torch.distributed as dist

from control_plane.core.model.records import Readback
from control_plane.storage.layout import STATE
from ray_jobs.checkpoint import loop_state
from ray_jobs.checkpoint.host_memory import Copy, HostBuffers, laid_out, make_copies
from ray_jobs.checkpoint.universal import universal_checkpoint_info
from ray_jobs.process import deepspeed_internals
from ray_jobs.process.deepspeed_internals import shape_of
from ray_jobs.process.plain_values import plain
from ray_jobs.rank.live_training import LiveTraining

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

log = logging.getLogger(__name__)

_told: set[str] = set()

FileStates = dict[str, Any]
"""Files of one rank, by path relative to the checkpoint's folder: an object for `torch.save`, bytes, or text."""

TRAINER_STATE = f"{STATE}/trainer_state.json"
RANDOM = "random"
"""The key of the random generators in a rank's progress."""

NOT_STATE = frozenset({"ds_config", "ds_version", "log_history"})
"""Keys left out of digests: configuration, a version, and the log history with its times and speeds."""

RANK_IN_NAME = re.compile(r"(zero_pp_rank_|rank-)\d+")
NOWHERE = "checkpoint"
"""DeepSpeed wants a folder to save to; nothing is written there."""


def capture(training: LiveTraining) -> FileStates:
    """Collective. Return this rank's files, as references to live tensors; nothing is written.

    Raises: `RuntimeError` if the optimizer's state is offloaded to NVMe, where it cannot be copied.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    if training.engine is not None:
        states = _captured_from(training.engine)
    elif rank == 0:
        states = {f"{STATE}/model.pt": _plain_state(training)}
    else:
        states = {}
    states[progress_path(rank)] = loop_state.captured(training)
    if rank == 0:
        states[TRAINER_STATE] = _trainer_state(training.loop.state())
    return states


def _trainer_state(state: Readback) -> str:
    """Return the Trainer's state as Transformers writes it; logged values that are no JSON are left out."""
    left_out: set[str] = set()
    text = json.dumps(plain(state, left_out), indent=2, sort_keys=True) + "\n"
    for name in sorted(left_out - _told):
        log.warning(
            "%s is logged, or kept in the Trainer's state, and is no number or text: no checkpoint has it", name
        )
    _told.update(left_out)
    return text


def progress_path(rank: int) -> str:
    """Return the path of a rank's loop state in a checkpoint."""
    return f"{STATE}/rank-{rank}-progress.pt"


def model_shapes(model: torch.nn.Module) -> tuple[str, int]:
    """Return SHA-256 over names and full shapes of the model's parameters (equal on all ranks), and their number."""
    shapes = [(name, tuple(shape_of(parameter))) for name, parameter in model.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest(), sum(math.prod(shape) for _, shape in shapes)


def _plain_state(training: LiveTraining) -> dict[str, Any]:
    return {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "lr_scheduler": training.schedule.state_dict(),
    }


def _captured_from(engine: "DeepSpeedEngine") -> FileStates:
    if engine.zero_nvme_offload_optimizer():
        raise RuntimeError("the optimizer is offloaded to NVMe: its state cannot be copied while training goes on")
    notes: _Notes
    with deepspeed_internals.saving_into(engine, _Notes) as notes:
        engine.save_checkpoint(
            NOWHERE,
            tag=STATE,
            client_state=universal_checkpoint_info(engine),
            save_latest=False,
            exclude_frozen_parameters=False,
        )
    return notes.states


class _Notes:
    """Checkpoint engine for DeepSpeed that records what it is given and writes nothing."""

    def __init__(self, engine: "CheckpointEngine") -> None:
        self._engine = engine
        self.states: FileStates = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def create(self, info: object) -> None:
        """Prepare nothing."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make no folder."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Record one file."""
        self.states[os.path.relpath(path, NOWHERE)] = state_dict

    def commit(self, info: object) -> bool:
        """Commit nothing."""
        return True

    def is_decoupled(self) -> bool:
        """Return False, so that `save_checkpoint` ends where it always does."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Return False: DeepSpeed need not clone tensors, for the copy leaves out storage that no tensor covers."""
        return False


def copied(states: FileStates, reuse: HostBuffers | None = None) -> FileStates:
    """Return a copy of the files, tensors in host memory (pinned, if they come from a GPU).

    Tensors that share memory share it in the copy. Buffers in `reuse` are overwritten: readers of the copy before
    must have finished.
    """
    out, copies = copy_of(states, reuse if reuse is not None else HostBuffers())
    make_copies(copies)
    return out


def copy_of(states: FileStates, buffers: HostBuffers) -> tuple[FileStates, list[Copy]]:
    """Return what `copied` does, with the copies of tensors' bytes still to be made."""
    buffers.take_back()
    out: FileStates = {}
    copies: list[Copy] = []
    for path, state in states.items():
        if isinstance(state, bytes | str):
            out[path] = state
        else:
            skeleton, tensors = _taken_apart(state)
            laid, to_make = laid_out(tensors, buffers)
            out[path] = _put_together(skeleton, laid)
            copies += to_make
    buffers.forget_unused()
    return out, copies


class _Skeleton(pickle.Pickler):
    """Pickler that sets tensors aside: it visits exactly the objects that `torch.save` would visit."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._seen: dict[int, int] = {}

    def persistent_id(self, value: object) -> int | None:
        """Return a tensor's index in the list."""
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._seen[id(value)]


class _Filled(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, place: int) -> torch.Tensor:
        return self._tensors[place]


def _taken_apart(state: object) -> tuple[io.BytesIO, list[torch.Tensor]]:
    file = io.BytesIO()
    pickler = _Skeleton(file)
    pickler.dump(state)
    file.seek(0)
    return file, pickler.tensors


def _put_together(skeleton: io.BytesIO, tensors: list[torch.Tensor]) -> Any:
    return _Filled(skeleton, tensors).load()


def state_digest(states: FileStates) -> str:
    """Return SHA-256 of one rank's training state: all but random generators, configuration and log history.

    Equal states give equal digests, whatever the order in which their dictionaries were filled, the device that they
    are on, the process, and the rank in the files' names. Any other bit or number gives another.
    """
    return _digest(
        (_neutral(path), _without_random(path, _read(path, state))) for path, state in sorted(states.items())
    )


def random_digest(states: FileStates) -> str:
    """Return SHA-256 of one rank's random generators."""
    return _digest(
        (_neutral(path), state.get(RANDOM))
        for path, state in sorted(states.items())
        if isinstance(state, dict) and _is_progress(path)
    )


def _is_progress(path: str) -> bool:
    return _neutral(path) == _neutral(progress_path(0))


def _neutral(path: str) -> str:
    return RANK_IN_NAME.sub(r"\1", path)


def _read(path: str, state: object) -> object:
    return json.loads(str(state)) if path == TRAINER_STATE else state


def _without_random(path: str, state: object) -> object:
    if not isinstance(state, dict) or not _is_progress(path):
        return state
    return {key: part for key, part in state.items() if key not in (RANDOM, loop_state.CALLBACKS, loop_state.HEALTH)}


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for block in canonical(part):
            digest.update(block)
    return digest.hexdigest()


def canonical(value: object) -> Iterator[Any]:
    """Yield the value in canonical bytes: its type, its size where it has one, its content."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"T{plain.dtype}{tuple(plain.shape)}".encode()
        yield plain.reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, numpy.ndarray) and value.dtype.hasobject:
        yield from canonical(value.tolist())  # its bytes are addresses
    elif isinstance(value, numpy.ndarray | numpy.generic):
        yield f"A{value.dtype.str}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, float):
        yield b"F" + struct.pack(">d", value)
    elif isinstance(value, bytes | bytearray):
        yield b"B%d:" % len(value) + bytes(value)
    elif isinstance(value, Enum | type | torch.dtype):
        yield f"N{value};".encode()
    elif value is None or isinstance(value, bool | int | str):
        text = repr(value).encode()
        yield b"V%d:" % len(text) + text
    elif isinstance(value, torch.device):
        yield b"D"
    else:
        yield from _canonical_container(value)


def _canonical_container(value: object) -> Iterator[Any]:
    if isinstance(value, dict):
        entries = sorted((b"".join(canonical(key)), part) for key, part in value.items() if key not in NOT_STATE)
        yield b"M%d:" % len(entries)
        for key, part in entries:
            yield key
            yield from canonical(part)
    elif isinstance(value, list | tuple):
        yield b"L%d:" % len(value)
        for part in value:
            yield from canonical(part)
    elif isinstance(value, set | frozenset):
        yield b"S%d:" % len(value)
        yield from sorted(b"".join(canonical(part)) for part in value)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"N{value.__module__}.{value.__qualname__};".encode()
    else:
        yield from _canonical_object(value)


def _canonical_object(value: object) -> Iterator[Any]:
    """Yield an object in canonical bytes by its `__reduce_ex__`: constructor, arguments, state, items."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):  # a global of its module
        yield f"N{type(value).__module__}.{reduced};".encode()
        return
    make, arguments, *rest = reduced
    state, items, pairs = (*rest, None, None, None)[:3]
    yield b"O"
    yield from canonical((make, arguments, state, list(items or ()), dict(pairs or ())))
