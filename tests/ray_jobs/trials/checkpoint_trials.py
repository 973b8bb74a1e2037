"""What the ranks of a checkpoint test run: small DeepSpeed trainings that are saved, spoilt, loaded and compared."""

import errno
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from control_plane.storage.checkpoint.store import ShardFile, list_checkpoints, verify
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint import overlap
from ray_jobs.checkpoint import save as checkpoint_io
from ray_jobs.checkpoint.capture import STATE, capture, copied, random_digest, state_digest
from ray_jobs.checkpoint.host_memory import Copy
from ray_jobs.checkpoint.universal import universal_checkpoint_info
from ray_jobs.checkpoint.writer import CheckpointWriter
from ray_jobs.hf.live import live
from ray_jobs.process.collectives import Collectives
from ray_jobs.rank.live_training import LiveTraining
from tests.ray_jobs.support.checkpoint_key import KEY, STEPS
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, deepspeed_config

SAVE_AT = 2
DRAIN_S = 60.0
COPY_S = 0.2
"""Time of each slow copy: more than that of a step."""

ROOM_BYTES = 1000
"""What still fits onto the full disk."""


class Saving(TrainerCallback):
    """Calls `at_step[step](self)` at the end of a step, and keeps what it answers."""

    def __init__(self, trainer: Trainer, root: Path, at_step: dict[int, Any], ranks_wait_s: float) -> None:
        self.trainer, self.files, self.at_step = trainer, RunFiles(root), at_step
        self.collectives = Collectives()
        rank, world_size = self.collectives.rank, self.collectives.world_size
        self.writer = CheckpointWriter(self.files, rank, world_size, KEY, ranks_wait_s)
        self.seen: dict[str, Any] = {}

    @property
    def engine(self) -> Any:
        return self.trainer.deepspeed

    @cached_property
    def training(self) -> LiveTraining:
        """Asked for in the training, when the engine exists."""
        return live(self.trainer)

    def about(self) -> dict[str, Any]:
        return {"generation": 1, "step": self.trainer.state.global_step, "samples_consumed": 0}

    def begin(self) -> str:
        return checkpoint_io.begin_save(self.training, self.files, self.collectives, self.writer, self.about())

    def ended(self) -> Any:
        assert self.writer.drain(DRAIN_S)
        (finished,) = self.writer.finished()
        return finished

    def digest(self) -> str:
        return state_digest(capture(self.training))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.at_step:
            self.seen |= self.at_step[state.global_step](self)


def train(root: Path, stage: int | None, at_step: dict[int, Any], ranks_wait_s: float = DRAIN_S) -> dict[str, Any]:
    """One training of four steps."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    if stage is None:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # the training before this one has set it
    set_seed(5)
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    args = TrainingArguments(
        output_dir=str(root / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=stage is None,
        deepspeed=deepspeed_config(stage, "hf") if stage is not None else None,
    )
    trainer = Trainer(model=GPT2LMHeadModel(shape), args=args, train_dataset=Blocks(64))
    saving = Saving(trainer, root, at_step, ranks_wait_s)
    trainer.add_callback(saving)
    trainer.train()
    seen = saving.seen | {"step": trainer.state.global_step}
    trainer.callback_handler.callbacks.clear()
    del trainer
    gc.collect()
    return seen


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two loaded files differ, in kind, in shape or in any bit."""
    if isinstance(theirs, torch.Tensor):
        same = isinstance(ours, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return [] if same else [where]
    if isinstance(theirs, dict):
        if not isinstance(ours, dict) or list(ours) != list(theirs):
            return [f"{where}: keys"]
        return [found for key in theirs for found in differences(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(theirs, list | tuple):
        if type(ours) is not type(theirs) or len(ours) != len(theirs):
            return [f"{where}: length"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{where}/{index}")]
    if hasattr(theirs, "__dict__") and not callable(theirs):
        return [] if type(ours) is type(theirs) and vars(ours) == vars(theirs) else [where]
    return [] if ours == theirs else [where]


def spoil(saving: Saving) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Overwrite every live number that a checkpoint holds; answers them with what they were."""
    live = [tensor for state in capture(saving.training).values() for tensor in tensors_in(state)]
    before = [(tensor, tensor.detach().clone()) for tensor in live]
    with torch.no_grad():
        for tensor, _ in before:
            tensor.fill_(7)
    return before


def save_and_compare(saving: Saving) -> dict[str, Any]:
    """Stock and ours at the same step; ours while the live state is being spoilt; then ours is loaded back."""
    stock, rank = saving.files.root / "stock", saving.collectives.rank
    digests = [saving.digest(), saving.digest()]
    random = random_digest(capture(saving.training))
    saving.engine.save_checkpoint(
        str(stock), tag=STATE, save_latest=False, client_state=universal_checkpoint_info(saving.engine)
    )
    theirs_before = saving.engine.checkpoint_engine
    name = saving.begin()
    before = spoil(saving)
    ended = saving.ended()
    spoilt = saving.digest()
    saving.collectives.barrier()
    root = saving.files.checkpoints / name
    manifest = verify(root, KEY)
    saving.engine.load_checkpoint(str(root), tag=STATE, load_module_strict=True)
    state = manifest.ranks[rank]
    seen = {
        "reason": ended.reason,
        "committed": ended.committed is not None,
        "digests": digests,
        "restored": saving.digest(),
        "random": random,
        "spoilt": spoilt,
        "told": [state.state_sha256, state.random_sha256],
        "same_engine": saving.engine.checkpoint_engine is theirs_before,
        "files": sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()),
        "stock_files": sorted(path.name for path in (stock / STATE).iterdir()),
        "differences": [
            f"{path.name}{found}"
            for path in sorted((stock / STATE).iterdir())
            for found in differences(load(root / STATE / path.name), load(path))
        ],
        "sizes": [(root / STATE / path.name).stat().st_size / path.stat().st_size for path in stock.rglob("*.pt")],
    }
    with torch.no_grad():
        for tensor, was in before:
            if "cuda" in str(tensor.device) or tensor.numel():
                tensor.copy_(was)
    return seen


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def all_that_ends_well(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """ZeRO 0 to 3, no DeepSpeed, and failures, one after the other: importing everything costs more than training."""
    root = Path(spec["root"])
    at_step = {SAVE_AT: save_and_compare, SAVE_AT + 1: lambda saving: {"a_step_later": saving.digest()}}
    seen = {str(stage): train(root / f"zero{stage}", stage, at_step) for stage in range(4)}
    return seen | {"failures": failures(rank, root), "plain": train(root / "plain", None, {SAVE_AT: save_plainly})}


class Overlapped:
    """A save whose copy takes longer than a step, beside the next one; `held`: the update waits for it."""

    def __init__(self, held: bool) -> None:
        self.held, self.seen = held, dict[str, Any]()

    def begin(self, saving: Saving) -> dict[str, Any]:
        training, writer = saving.training, saving.writer
        if self.held:
            training.partitions.torch_optimizer.register_step_pre_hook(lambda *_: writer.wait_for_copy())
        digest, began_s = saving.digest(), time.monotonic()
        about = (training, saving.files, saving.collectives, writer, saving.about())
        name = checkpoint_io.begin_save(*about, overlaps=True)
        return {"name": name, "digest": digest, "begun_s": time.monotonic() - began_s}

    def end(self, saving: Saving) -> dict[str, Any]:
        ended, rank = saving.ended(), saving.collectives.rank
        saving.collectives.barrier()
        seen = {"reason": ended.reason, "seconds": ended.seconds, "a_step_later": saving.digest()}
        if (saving.files.checkpoints / saving.seen["name"]).exists():
            saved = verify(saving.files.checkpoints / saving.seen["name"], KEY)
            seen["saved"] = next((state.state_sha256 for state in saved.ranks if state.rank == rank), None)
        return seen


def overlapping(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """ZeRO 0 to 3 and no DeepSpeed, each with a copy that ends in the middle of the next step."""
    root, make = Path(spec["root"]), Copy.make

    def slowly(copy: Copy) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(COPY_S)
        make(copy)

    overlap.WORTH_BYTES, Copy.make = 0, slowly  # type: ignore[method-assign]
    seen = {}
    for stage, held in [*((stage, True) for stage in (0, 1, 2, 3, None)), (2, False)]:
        save = Overlapped(held)
        at_step = {SAVE_AT: save.begin, SAVE_AT + 1: save.end}
        seen[f"{stage} {'held' if held else 'free'}"] = train(root / f"{stage}-{held}", stage, at_step)
    return seen


def save_plainly(saving: Saving) -> dict[str, Any]:
    """A trainer without DeepSpeed: rank 0 has everything but the other ranks' progress."""
    states = copied(capture(saving.training))
    saved = checkpoint_io.save_now(saving.training, saving.files, saving.collectives, saving.writer, saving.about())
    return {"files": sorted(states), "saved": getattr(saved, "checkpoint", saved)}


class NoMemory:
    """Buffers of which there are none left."""

    def take_back(self) -> None:
        raise MemoryError("no more host memory")


def failures(rank: int, root: Path) -> dict[str, Any]:
    """A full disk and a lack of memory on rank 1, then a save that goes well; training goes on through all of it."""
    write = ShardFile.write

    def full(self: ShardFile, data: Any) -> int:
        if len(data) < ROOM_BYTES:
            return write(self, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin_on_a_full_disk(saving: Saving) -> dict[str, Any]:
        if rank == 1:
            ShardFile.write = full  # type: ignore[method-assign]
        return {"name": saving.begin()}

    def hear_of_it(saving: Saving) -> dict[str, Any]:
        ended = saving.ended()
        ShardFile.write = write  # type: ignore[method-assign]
        saving.collectives.barrier()
        left = sorted(path.name for path in saving.files.checkpoints.iterdir())
        buffers, seen = saving.writer.buffers, ""
        if rank == 1:
            saving.writer.buffers = NoMemory()  # type: ignore[assignment]
        try:
            saving.begin()
        except RuntimeError as error:
            seen = str(error)
        saving.writer.buffers = buffers
        return {"reason": ended.reason, "left": left, "not_begun": seen}

    def save_well(saving: Saving) -> dict[str, Any]:
        args = (saving.training, saving.files, saving.collectives, saving.writer, saving.about())
        saved = checkpoint_io.save_now(*args)
        return {
            "saved": getattr(saved, "checkpoint", saved),
            "busy": checkpoint_io.busy_anywhere(saving.collectives, saving.writer),
            "listed": [manifest.checkpoint for manifest in list_checkpoints(saving.files.checkpoints, KEY)],
        }

    at_step = {1: begin_on_a_full_disk, 2: hear_of_it, 3: save_well}
    return train(root / "failures", 2, at_step)


def killed(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 is killed in the middle of its shards; rank 0 writes down what it heard of it."""
    write = ShardFile.write

    def killing(self: ShardFile, data: Any) -> int:
        write(self, data)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def save(saving: Saving) -> dict[str, Any]:
        if rank == 1:
            ShardFile.write = killing  # type: ignore[method-assign]
        saving.begin()
        if rank == 1:
            time.sleep(DRAIN_S)
        ended = saving.ended()
        (Path(spec["root"]) / "heard.json").write_text(json.dumps([ended.committed, ended.reason]))
        return {}

    return train(Path(spec["root"]), 2, {SAVE_AT: save}, ranks_wait_s=1.0)
