"""Training script of the stock arm of the recovery benchmark, written by the documentation of its libraries.

    stock_recovery.py FOLDER RAY_ADDRESS RANKS SAVE_EVERY_STEPS

Ray Train's TorchTrainer, the Hugging Face Trainer and DeepSpeed, all with their defaults: every rank reports its own
shards of a checkpoint, Ray Train merges them, restarts a failed group as often as it must, and the new group goes on
from the checkpoint that was reported last. One thing is given to it that no document names: without
`prepare_cpu_ranks` accelerate takes every rank without a GPU for the only one.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from benchmarks.recovery.diary import BEGUN, DiaryPen

KEPT_CHECKPOINTS = 3
"""As many as a run of Steerway keeps by default."""


class FailureRecorder(UserCallback):
    """Ray Train callback that records when the controller has detected failed workers."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / "detected.jsonl"

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Append a line for a failure."""
        reasons = {rank: str(error).splitlines()[0][:200] for rank, error in worker_exceptions.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"at_s": time.time(), "reasons": reasons}) + "\n")


def report_callback() -> Any:
    """Return a callback that reports every rank's part of a checkpoint as soon as it is saved."""
    from transformers import TrainerCallback

    class ReportShards(TrainerCallback):
        """Callback for an `output_dir` of each rank's own, which holds the rank's part only."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Collective. Report the saved part to Ray Train."""
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            ray.train.report(
                {"step": state.global_step},
                checkpoint=Checkpoint.from_directory(folder),
                delete_local_checkpoint_after_upload=True,
            )

    return ReportShards()


def train(given: dict[str, Any]) -> None:
    """Train on one rank. `given` holds `folder`, for the diaries, and `save_steps`."""
    context = ray.train.get_context()
    pen = DiaryPen(Path(given["folder"]), context.get_world_rank())
    pen.write(BEGUN)
    from benchmarks.harness.training import prepare_rank

    prepare_rank()
    from transformers import Trainer

    from benchmarks.recovery.training import build_trainer

    with tempfile.TemporaryDirectory(prefix="rank-", dir=given["folder"]) as own:
        trainer = build_trainer(
            Trainer, pen, Path(own), save_strategy="steps", save_steps=given["save_steps"], save_on_each_node=True
        )
        trainer.add_callback(report_callback())
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as restored:
                trainer.train(resume_from_checkpoint=restored)


def main(folder: Path, address: str, ranks: int, save_steps: int) -> None:
    """Run the driver until it is ended."""
    ray.init(address=address)
    # Ray's annotation names another class than the one that it accepts.
    callbacks: list[Any] = [FailureRecorder(str(folder))]
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": str(folder), "save_steps": save_steps},
        scaling_config=ScalingConfig(num_workers=ranks, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="stock",
            storage_path=str(folder / "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=callbacks,
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    # Ray's workers must be able to import the module of the functions that they get.
    from benchmarks.scripts import stock_recovery

    stock_recovery.main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
