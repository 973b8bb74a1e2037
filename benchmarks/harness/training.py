"""Training that benchmarks measure: the model and settings of `configs/gpt2-local.yaml`, on CPU ranks."""

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane.core.model.errors import NotFound
from ray_jobs.config.run_config import RunConfig, load

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

CONFIG = Path(__file__).parents[2] / "configs" / "gpt2-local.yaml"


def shipped_config() -> RunConfig:
    """Return the shipped config. Raises `NotFound` where only the packages are installed."""
    if not CONFIG.is_file():
        raise NotFound(f"the benchmarks train {CONFIG.name}, but there is no {CONFIG}; run them in a clone")
    return load(CONFIG)


def prepare_rank() -> None:
    """Set up a rank without a GPU as `ray_jobs.train` does, before torch and DeepSpeed are used."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from ray_jobs.process.cpu_setup import prepare_cpu_ranks

    torch.set_num_threads(1)
    prepare_cpu_ranks()


def arguments(config: RunConfig, output_dir: Path, max_steps: int) -> "TrainingArguments":
    """Return the config's settings for a training of `max_steps` steps, without evaluations."""
    from transformers import TrainingArguments

    settings = {name: value for name, value in config.training.items() if not name.startswith("eval_")}
    settings["max_steps"] = max_steps
    return TrainingArguments(
        output_dir=str(output_dir),
        deepspeed=copy.deepcopy(dict(config.deepspeed)) if config.deepspeed else None,
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **settings,  # type: ignore[arg-type]
    )


def fresh_model(config: RunConfig) -> Any:
    """Build a GPT-2 of the config's shape, with weights from its seed."""
    from transformers import set_seed

    from ray_jobs.workloads import gpt2

    assert config.model is not None
    assert config.data is not None
    set_seed(config.seed)
    return gpt2.fresh_model(config.model, config.data, config.data.vocab_size, config.seed)


def random_blocks(config: RunConfig, size: int) -> "list[dict[str, torch.Tensor]]":
    """Return random blocks of the config's size: a step costs the same as with text."""
    import torch

    assert config.data is not None
    generator = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(0, config.data.vocab_size, (size, config.data.block_size), generator=generator)
    return [{"input_ids": block, "labels": block} for block in ids]


def forget_trainer(trainer: "Trainer") -> None:
    """Release a trainer before the next one in this process: accelerate keeps its DeepSpeed settings in the class."""
    import gc

    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    trainer.callback_handler.callbacks.clear()
    gc.collect()
