"""What each worker runs, top to bottom.

Ray Train has set up torch.distributed by the time `main` is called. DeepSpeed and Transformers are imported here, in
the worker, and nowhere above it: on a machine without a GPU importing DeepSpeed can break Ray Train's controller.
"""

import logging
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

from control_plane.core.errors import Invalid, SteerwayError
from control_plane.storage.layout import RunFiles
from ray_jobs import context
from ray_jobs.config import RunConfig, ScriptWorkload, check_training_keys

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(loop_config: dict[str, Any]) -> None:
    """One rank's training. `loop_config` holds `root`, the run's folder, and `use_gpu`."""
    files, use_gpu = RunFiles(Path(loop_config["root"])), bool(loop_config["use_gpu"])
    rank = int(os.environ.get("RANK", "0"))
    _log_to_file(files, rank)
    try:
        _train(files, use_gpu)
    except SteerwayError as error:
        # The sentence says it all; a traceback of ours would bury it.
        log.error("%s", error.reason)
        raise RuntimeError(error.reason) from None
    except Exception:
        log.exception("rank %d failed", rank)
        raise


def _train(files: RunFiles, use_gpu: bool) -> None:
    config = RunConfig.from_yaml(files.config.read_text(), str(files.config))
    _prepare_process(config, use_gpu)
    from control_plane.ray_handle import RayHandle

    run = context.RunContext(
        files=files,
        connect=lambda: RayHandle(files),
        checkpoint_every_steps=config.checkpoint.every_steps,
    )
    if isinstance(config.workload, ScriptWorkload):
        context.enter(run)
        _run_script(config.workload)
    else:
        _run_workload(config, run)


def _prepare_process(config: RunConfig, use_gpu: bool) -> None:
    """Everything that must be set before torch and DeepSpeed are used."""
    if not use_gpu:
        # Not `use_cpu` and not ACCELERATE_USE_CPU: with either, accelerate leaves DeepSpeed out without a word.
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(max(1, int(config.scaling.cpus_per_rank)))
    from ray_jobs.cpu_ranks import prepare_cpu_ranks

    prepare_cpu_ranks()


def _run_script(workload: ScriptWorkload) -> None:
    """The user's own script, as if it were started by hand on this rank."""
    path = Path(workload.path)
    sys.argv = [str(path), *workload.args]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _run_workload(config: RunConfig, run: context.RunContext) -> None:
    from dataclasses import replace

    from transformers import TrainingArguments, set_seed

    from ray_jobs.trainer import OrderedTrainer
    from ray_jobs.workloads import build

    check_training_keys(config)
    set_seed(config.seed)
    workload = build(config)
    context.enter(replace(run, facts=workload.facts))
    log.info("%s", workload.facts)
    try:
        args = TrainingArguments(
            output_dir=str(run.files.root / "trainer"),
            deepspeed=_plain(config.deepspeed),
            seed=config.seed,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            **dict(config.training),  # type: ignore[arg-type]
        )
    except (TypeError, ValueError) as error:
        raise Invalid(f"{config.name}: the settings under 'training' do not go together: {error}") from None
    trainer = OrderedTrainer(
        model=workload.model,
        args=args,
        train_dataset=workload.train_dataset,
        eval_dataset=workload.eval_dataset,
    )
    trainer.train()


def _plain(deepspeed: Any) -> dict[str, Any] | None:
    """A copy: Transformers fills in the `auto` values in place."""
    import copy

    return copy.deepcopy(dict(deepspeed)) if deepspeed is not None else None


def _log_to_file(files: RunFiles, rank: int) -> None:
    files.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(files.logs / f"rank-{rank}.log")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "urllib3", "fsspec", "filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.filterwarnings("once")
