"""What each worker runs, top to bottom.

Ray Train has set up torch.distributed by the time `main` is called. DeepSpeed and Transformers are imported here, in
the worker, and nowhere above it: on a machine without a GPU importing DeepSpeed can break Ray Train's controller.
"""

import logging
import os
import runpy
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from control_plane.core.errors import Invalid, Refused, RunEnded, SteerwayError
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE, make_folder
from ray_jobs import context, exit_reason
from ray_jobs.clean_log import CleanFormatter
from ray_jobs.config import RunConfig, ScriptWorkload, check_training_keys
from ray_jobs.environment import variables
from ray_jobs.script_signals import signals_in_a_thread
from ray_jobs.work_folder import enter_work_folder, written_over

log = logging.getLogger(__name__)

SPARES_AFTER_S = 1.0
"""From the first step to the start of the spares: what is loaded first is what trains."""

MAX_WARNINGS = 1000
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(loop_config: dict[str, Any]) -> None:
    """One rank's training. `loop_config` holds `root`, the run's folder, and `use_gpu`."""
    files, use_gpu = RunFiles(Path(loop_config["root"])), bool(loop_config["use_gpu"])
    rank = int(os.environ.get("RANK", "0"))
    _log_to_file(files, rank)
    exit_reason.begin(files, rank)
    started_at_s = time.time()
    if _is_closed(files):
        log.error("run %s is over: there is nothing to start for", files.run)
        return
    try:
        config = RunConfig.from_yaml(files.config.read_text(), str(files.config))
        os.environ.update(variables(config, files))
        _prepare_process(config, use_gpu)
        _watch_for_preemption(files)
        spares = _Once(lambda: _keep_spares(config))
        while not _trained_to_the_end(config, files, started_at_s, spares):
            started_at_s = time.time()
    except Refused as refusal:
        # Nothing that another start would change: the run ends here, and Ray Train is not asked to try again.
        log.error("%s", refusal.reason)
        _close(files, refusal)
    except SteerwayError as error:
        # The sentence says it all; a traceback of ours would bury it.
        log.error("%s", error.reason)
        _leave_behind(files, rank, error, error.reason)
        raise RuntimeError(redaction_of(files).text(error.reason)) from None
    except Exception as error:
        log.exception("rank %d failed", rank)
        # Ray tells it to processes that do not know what is secret here.
        said = f"{type(error).__name__}: {error}"
        _leave_behind(files, rank, error, said)
        if (cleaned := redaction_of(files).text(said)) != said:
            raise RuntimeError(cleaned).with_traceback(error.__traceback__) from None
        raise


def _leave_behind(files: RunFiles, rank: int, error: BaseException, said: str) -> None:
    run = context.current()
    step = run.trainings.failed_at if run is not None else None
    code = f"exit code {error.code}" if isinstance(error, ScriptExit) else exit_reason.signature_of(error)
    told = [line.strip() for line in redaction_of(files).text(said).splitlines() if line.strip()]
    exit_reason.note(files, rank, told[0][:500] if told else type(error).__name__, code, step)


class ScriptExit(RuntimeError):
    """The script ended by `sys.exit`, and not as one does that has come to its end."""

    def __init__(self, told: str, code: object) -> None:
        super().__init__(told)
        self.code = code if isinstance(code, int) else "with a text"

    def __reduce__(self) -> tuple[Any, ...]:
        return RuntimeError, self.args


class _Once:
    """Does it the first time that it is called."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do

    def __call__(self) -> None:
        do, self._do = self._do, None
        if do is not None:
            do()


def _trained_to_the_end(
    config: RunConfig, files: RunFiles, started_at_s: float, on_first_step: Callable[[], None]
) -> bool:
    """Train; False if the run was taken to another branch, which these processes are to train next."""
    from ray_jobs.rollback import LeaveForBranch, forget_training

    try:
        _train(config, files, started_at_s, on_first_step)
    except LeaveForBranch:
        context.enter(None)
    else:
        return True
    forget_training()  # here, where nothing refers to the trainer any more
    return False


def _is_closed(files: RunFiles) -> bool:
    """Whether the control server has given the run up; then Ray Train is not given another failure to try again for."""
    import asyncio

    from control_plane.ray_handle import RayHandle

    return asyncio.run(RayHandle(files).snapshot()).closed


def _close(files: RunFiles, refusal: Refused) -> None:
    """Every rank says so: it is recorded once."""
    import asyncio

    from control_plane.ray_handle import RayHandle

    if not isinstance(refusal, RunEnded):
        asyncio.run(RayHandle(files).close("failed", refusal.reason))


def _train(config: RunConfig, files: RunFiles, started_at_s: float, on_first_step: Callable[[], None]) -> None:
    from control_plane.ray_handle import RayHandle

    run = context.RunContext(
        files=files,
        connect=lambda: RayHandle(files),
        checkpoint_every_steps=config.checkpoint.every_steps,
        digest_every_steps=config.digest.every_steps,
        keeps_the_tail=config.data is not None and config.data.tail == "keep",
        ranks=config.scaling.ranks,
        retention=config.checkpoint.retention(),
        hang_after_s=config.recovery.hang_after_s,
        user_code_s=config.recovery.user_code_s,
        offload_pauses=config.pause.offload,
        started_at_s=started_at_s,
        on_first_step=on_first_step,
        limits=config.limits,
    )
    if isinstance(config.workload, ScriptWorkload):
        context.enter(run)
        work = enter_work_folder(files, Path(config.workload.path))
        _seed(config.seed)
        run_script(config.workload, run.trainings)
        for path in written_over(work, started_at_s):
            log.warning("the script has written over %s, which lies beside it and is not the run's own", path)
    else:
        enter_work_folder(files)
        _run_workload(config, run)


def _watch_for_preemption(files: RunFiles) -> None:
    import ray

    from control_plane.ray_handle import RayHandle
    from ray_jobs import preemption

    node = ray.get_runtime_context().get_node_id()
    preemption.watch(node, files.run, lambda: RayHandle(files), ray._private.state.state.get_draining_nodes)


def _keep_spares(config: RunConfig) -> None:
    """Called on every rank after the first step; one rank of the group asks for all nodes."""
    import ray.train

    from ray_jobs.spares import keep_warm

    group = ray.train.get_context()
    wanted = config.recovery.spares
    count = group.get_local_world_size() if wanted == "auto" else wanted
    if group.get_world_rank() == 0 and count:
        keep_warm(count, SPARES_AFTER_S)


def _prepare_process(config: RunConfig, use_gpu: bool) -> None:
    """Everything that must be set before torch and DeepSpeed are used."""
    if not use_gpu:
        # Not `use_cpu` and not ACCELERATE_USE_CPU: with either, accelerate leaves DeepSpeed out without a word.
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(max(1, int(config.scaling.cpus_per_rank)))
    from ray_jobs.cpu_ranks import prepare_cpu_ranks
    from ray_jobs.ddp_timeout import let_it_count

    prepare_cpu_ranks()
    let_it_count()


def _seed(seed: int) -> None:
    """Before a script runs: what it draws before it seeds itself, its first weights perhaps, is the same each time."""
    from transformers import set_seed

    set_seed(seed)


def run_script(workload: ScriptWorkload, trainings: context.Trainings) -> None:
    """The user's own script, as if it were started by hand on this rank.

    Raises `LeaveForBranch` when the run was taken to another branch, also if the script has caught that: what it did
    afterwards, and whether it failed in doing so, belongs to a training that is left.
    """
    from ray_jobs.rollback import LeaveForBranch

    try:
        _run_to_its_end(workload, trainings)
    except Exception:
        if not trainings.left:
            raise
        log.warning("the script caught what ends it for another branch, and failed then", exc_info=True)
    if trainings.left:
        raise LeaveForBranch


def _run_to_its_end(workload: ScriptWorkload, trainings: context.Trainings) -> None:
    path = Path(workload.path)
    sys.argv = [str(path), *workload.args]
    sys.path.insert(0, str(path.parent))
    try:
        with signals_in_a_thread():
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as leaving:
        # `sys.exit(main())`, click, typer and absl end a script so; Ray would take any of it for a failure.
        in_the_middle = trainings.broken_off
        if leaving.code in (None, 0) and not in_the_middle:
            return
        code = leaving.code or 0
        told = f"with exit code {code}" if isinstance(code, int) else f"saying: {code}"
        if in_the_middle:
            told += f", {in_the_middle}; to end a training early, set control.should_training_stop or `steer stop` it"
        raise ScriptExit(f"the script {path.name} ended {told}", leaving.code) from None


def _run_workload(config: RunConfig, run: context.RunContext) -> None:
    from dataclasses import replace

    from transformers import TrainingArguments, set_seed

    from ray_jobs.trainer import InteractiveTrainer
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
    trainer = InteractiveTrainer(
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
    make_folder(files.logs)
    (files.logs / f"rank-{rank}.log").touch(mode=FILE_MODE)
    handler = logging.FileHandler(files.logs / f"rank-{rank}.log")
    handler.setFormatter(CleanFormatter(files, LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "urllib3", "fsspec", "filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.filterwarnings("once")
    logging.getLogger("py.warnings").addFilter(ToldOnce())


class ToldOnce(logging.Filter):
    """Lets a message through the first time. PyTorch saves and restores Python's filters at each collective, and with
    them goes the memory of what was warned of `once`: a log of ZeRO 3 would be made of one sentence."""

    def __init__(self) -> None:
        super().__init__()
        self._told = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new. Beyond `MAX_WARNINGS` different ones nothing is remembered any more."""
        message = record.getMessage()
        is_new = message not in self._told
        if len(self._told) < MAX_WARNINGS:
            self._told.add(message)
        return is_new
