"""What the ranks of an elastic test run: trainings that save, and trainings that go on from it on another number."""

import ctypes
import gc
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from control_plane.storage.checkpoint.store import Manifest, SigningKey, commit, hash_shard, verify
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint.batch import plan_batch
from ray_jobs.checkpoint.convert import convert, universal_name
from ray_jobs.checkpoint.universal import (
    consolidated,
    digest,
    load_universal,
    plain_groups,
    universal_checkpoint_info,
)
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.hf.live import apply_batch_plan
from tests.ports import free_port

GLOBAL_BATCH, MICRO_BATCH, SAMPLES, SEED = 12, 3, 41, 11
STEPS_PER_EPOCH = SAMPLES // GLOBAL_BATCH
BLOCK_TOKENS, VOCABULARY = 16, 64
PR_SET_PDEATHSIG = 1
STEERED_AT = 2
STEERED_GROUP = {"lr": 4e-3, "betas": (0.8, 0.95), "eps": 1e-6}


class NumberedBlocks(torch.utils.data.Dataset):
    """Token blocks whose first two tokens are their number: what a model was given tells which samples they were."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.ids = torch.randint(0, VOCABULARY, (SAMPLES, BLOCK_TOKENS), generator=generator)
        self.ids[:, 0], self.ids[:, 1] = torch.arange(SAMPLES) // VOCABULARY, torch.arange(SAMPLES) % VOCABULARY

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class ElasticTrainer(Trainer):
    """Begins after `first_step` steps, from a universal checkpoint if there is one; keeps a diary."""

    folder = Path()
    first_step = 0
    checkpoint: Path | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> SampleOrder:
        self.order = SampleOrder(SAMPLES, SEED, GLOBAL_BATCH)
        return self.order

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)
        self.state.global_step = self.first_step
        self.diary: dict[str, Any] = {"samples": {}, "losses": {}, "loaded": None}
        epoch, step = divmod(self.first_step, STEPS_PER_EPOCH)
        return epoch, step * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.checkpoint is not None:
            load_universal(self.deepspeed, self.checkpoint)
            self.keep_rates()
            self.diary["loaded"] = self.seen(f"{self.checkpoint.name}.loaded.pt")
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # accelerate's `set_epoch` does not reach the sampler of several ranks when batches are skipped.
        self.order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs | {"resume_from_checkpoint": "the steps before first_step are skipped"})

    def _load_rng_state(self, checkpoint: Any) -> None:
        pass

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        numbers = (inputs["input_ids"][:, 0] * VOCABULARY + inputs["input_ids"][:, 1]).tolist()
        self.diary["samples"].setdefault(self.state.global_step + 1, []).append(numbers)
        return super().training_step(model, inputs, *args, **kwargs)

    def keep_rates(self) -> None:
        """The schedule is constant, at the rates that the optimizer has."""
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        scheduler.base_lrs = [float(group["lr"]) for group in self.live_groups()]

    def live_groups(self) -> list[dict[str, Any]]:
        engine: Any = self.deepspeed
        return list(engine.optimizer.param_groups)

    def seen(self, file: str) -> dict[str, Any]:
        """The consolidated state goes to a file, for a comparison of tensors; its digest is every rank's."""
        state = dict(consolidated(self.deepspeed))
        if dist.get_rank() == 0:
            torch.save(state, self.folder / file)
        return {"digest": digest(sorted(state.items())), "groups": plain_groups(self.live_groups())}


class SteerByHand(TrainerCallback):
    """Gives the last group (the only one of DeepSpeed's optimizer) other hyper-parameters than it began with."""

    def __init__(self, trainer: ElasticTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEERED_AT:
            self.trainer.live_groups()[-1].update(STEERED_GROUP)
            self.trainer.keep_rates()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.trainer.diary["losses"][state.global_step] = logs["loss"]


def deepspeed_config(stage: int, optimizer: str) -> dict[str, Any]:
    # So small that ZeRO 3 makes several sub-groups of each parameter group, and partitions most parameters.
    small = {"sub_group_size": 1500, "stage3_param_persistence_threshold": 20} if stage == 3 else {}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "overlap_comm": False, **small},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if optimizer == "deepspeed":
        adam = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}
        config["optimizer"] = {"type": "AdamW", "params": adam}
    return config


def make_trainer(spec: dict[str, Any], folder: Path) -> ElasticTrainer:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    set_seed(5)
    shape = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=BLOCK_TOKENS,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=spec["until"],
        per_device_train_batch_size=MICRO_BATCH,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        deepspeed=deepspeed_config(spec["stage"], spec["optimizer"]),
    )
    trainer = ElasticTrainer(model=GPT2LMHeadModel(shape), args=args, train_dataset=NumberedBlocks())
    trainer.folder = folder
    apply_batch_plan(trainer, plan_batch(GLOBAL_BATCH, MICRO_BATCH, dist.get_world_size()))
    trainer.add_callback(SteerByHand(trainer))
    return trainer


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One training; `spec`: run, key, stage, optimizer, name, until, and perhaps `from`, a converted checkpoint."""
    run, key = Path(spec["run"]), SigningKey.of_installation(Path(spec["key"]))
    folder = run / "seen"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    trainer = make_trainer(spec, folder)
    if spec.get("from"):
        trainer.checkpoint = run / "checkpoints" / universal_name(spec["from"])
        trainer.first_step = verify(trainer.checkpoint, key).step
    trainer.train()
    seen = trainer.diary | {"ended": trainer.seen(f"{spec['name']}.saved.pt")}
    seen["batch"] = [trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps]
    seen["engine_batch"] = _engine(trainer).train_batch_size()
    save(trainer, run / "checkpoints" / spec["name"], key)
    del trainer
    gc.collect()
    return seen


def save(trainer: ElasticTrainer, root: Path, key: SigningKey) -> None:
    """As a run saves: DeepSpeed's shards and the rank's progress, then, when all have, the manifest."""
    engine = _engine(trainer)
    client_state = universal_checkpoint_info(engine)
    engine._copy_recovery_script = lambda folder: None  # as `capture` has it: no scripts lie in a checkpoint
    engine.save_checkpoint(str(root), tag="state", save_latest=False, client_state=client_state)
    torch.save({"python": dist.get_rank()}, root / "state" / f"rank-{dist.get_rank()}-progress.pt")
    dist.barrier()
    if dist.get_rank() == 0:
        (root / "state" / "trainer_state.json").write_text("{}")
        shards = tuple(hash_shard(root, path, 0) for path in sorted((root / "state").iterdir()))
        step = trainer.state.global_step
        manifest = Manifest(
            checkpoint=root.name,
            run=root.parent.parent.name,
            generation=1,
            step=step,
            world_size=dist.get_world_size(),
            shards=shards,
            samples_consumed=step * GLOBAL_BATCH,
            global_batch_samples=GLOBAL_BATCH,
            knobs={"lr": [1e-2, STEERED_GROUP["lr"]]},
            settled=("0b5e",),
        )
        commit(root, manifest, key)
    dist.barrier()


def _engine(trainer: ElasticTrainer) -> Any:
    return trainer.deepspeed


def travel(rank: int, spec: dict[str, Any]) -> list[list[list[dict[str, Any]]]]:
    """All legs of a journey, each on its own number of real ranks: for each leg, training and rank what was seen.

    Run by one process, which forks the ranks: importing everything costs more than training. `spec`: `legs` of
    `ranks` and `trainings`, `rank_timeout_s`. What a training begins `from` is converted first.
    """
    dist.destroy_process_group()
    seen = []
    for leg in spec["legs"]:
        _fork(1, spec["rank_timeout_s"], _convert_each, leg["trainings"])
        answers = _fork(leg["ranks"], spec["rank_timeout_s"], _train_each, leg["trainings"])
        seen.append([[of_rank[at] for of_rank in answers] for at in range(len(leg["trainings"]))])
    dist.init_process_group("gloo")
    return seen


def _fork(ranks: int, timeout_s: float, function: Any, trainings: list[dict[str, Any]]) -> list[Any]:
    """Call a function on so many forked ranks; answers what each answered. Raises if one fails or hangs."""
    fork = multiprocessing.get_context("fork")
    environment = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(free_port())}
    pipes = [fork.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        fork.Process(target=_as_rank, args=(rank, environment, function, trainings, pipes[rank][1]))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for _, end in pipes:
        end.close()
    try:
        return [_received(rank, pipe, timeout_s) for rank, (pipe, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(1)
            process.kill()
            process.join()


def _received(rank: int, pipe: Any, timeout_s: float) -> Any:
    if not pipe.poll(timeout_s):
        raise TimeoutError(f"rank {rank} did not answer within {timeout_s} s")
    return pipe.recv()


def _as_rank(rank: int, environment: dict[str, str], function: Any, trainings: Any, pipe: Any) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever kills the parent means us, too
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    pipe.send(function(rank, trainings))


def _convert_each(rank: int, trainings: list[dict[str, Any]]) -> None:
    for one in trainings:
        if one.get("from"):
            convert(RunFiles(Path(one["run"])), one["from"], SigningKey.of_installation(Path(one["key"])))


def _train_each(rank: int, trainings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    dist.init_process_group("gloo")
    seen = [train(rank, one) for one in trainings]
    dist.barrier()
    return seen
