"""Training of both arms of the recovery benchmark: model, data and settings of `configs/gpt2-local.yaml`."""

import copy
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments, set_seed

from benchmarks.harness.training import shipped_config
from benchmarks.recovery.diary import LOADED, STEP, DiaryPen
from ray_jobs.workloads import build

MAX_STEPS = 200_000
"""More than any benchmark needs: a run is ended by `stop`, or with its cluster."""


class StepDiary(TrainerCallback):
    """Callback that records the end of every step in the diary, before all other callbacks."""

    def __init__(self, pen: DiaryPen) -> None:
        self._pen = pen
        self._stepped = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the first step: everything is built and restored by now."""
        if not self._stepped:
            self._stepped = True
            self._pen.write(LOADED, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the end of a step."""
        self._pen.write(STEP, state.global_step)


def build_trainer(trainer_class: Any, pen: DiaryPen, output_dir: Path, **settings: Any) -> Any:
    """Build a `trainer_class` with model, data and arguments of the shipped config, which `settings` override."""
    config = shipped_config()
    set_seed(config.seed)
    workload = build(config)
    arguments = {**config.training, "max_steps": MAX_STEPS, "save_strategy": "no", **settings}
    args = TrainingArguments(
        output_dir=str(output_dir),
        deepspeed=copy.deepcopy(dict(config.deepspeed)) if config.deepspeed else None,
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    trainer = trainer_class(
        model=workload.model,
        args=args,
        train_dataset=workload.train_dataset,
        eval_dataset=workload.eval_dataset,
    )
    trainer.add_callback(StepDiary(pen))
    return trainer
