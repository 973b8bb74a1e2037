"""Training function of each worker: prepares the process, then runs the script or the built-in workload.

Ray Train has set up torch.distributed by the time `main` is called. DeepSpeed and Transformers are only imported here,
in the worker: on a machine without a GPU importing DeepSpeed can break Ray Train's controller.
"""

import logging
import os
import runpy
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from control_plane.api.versions import check_release
from control_plane.core.model.errors import Invalid, Refused, RunEnded, SteerwayError
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE, make_folder
from control_plane.storage.proof import check_proof, proof_of
from ray_jobs.config.bundled_paths import located
from ray_jobs.config.environment import variables
from ray_jobs.config.run_config import RunConfig, ScriptWorkload
from ray_jobs.config.training_keys import check_training_keys
from ray_jobs.driver.clean_log import CleanFormatter
from ray_jobs.monitor import exit_reason
from ray_jobs.process import context
from ray_jobs.process.script_signals import signals_in_a_thread
from ray_jobs.process.work_folder import enter_work_folder, overwritten_files

log = logging.getLogger(__name__)

SPARES_AFTER_S = 1.0
"""Delay from the first step to the start of the spares, which must not slow down the training's own start."""

MAX_WARNINGS = 1000
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(loop_config: dict[str, Any]) -> None:
    """Train on one rank.

    `loop_config` holds `root`, the run's folder, `use_gpu`, `release` of the driver, and `proof` of the storage.
    """
    files, use_gpu = RunFiles(Path(loop_config["root"])), bool(loop_config["use_gpu"])
    rank = int(os.environ.get("RANK", "0"))
    _check_storage(files, loop_config.get("proof"), rank)
    _log_to_file(files, rank)
    exit_reason.begin(files, rank)
    started_at_s = time.time()
    try:
        check_release(files.run, socket.gethostname(), str(loop_config.get("release", "")))
        if _is_closed(files):
            log.error("run %s is closed: its training is not started", files.run)
            return
        config = located(RunConfig.from_yaml(files.config.read_text(), str(files.config)), files)
        os.environ.update(variables(config, files))
        _prepare_process(config, use_gpu)
        _watch_for_preemption(files)
        spares = _Once(lambda: _keep_spares(config))
        while not _trained_to_the_end(config, files, started_at_s, spares):
            started_at_s = time.time()
    except Refused as refusal:
        # A restart would not help: the run is closed, and this rank returns so that Ray Train does not restart it.
        log.error("%s", refusal.reason)
        _write_exit_reason(files, rank, refusal, refusal.reason)
        _close(files, refusal)
    except SteerwayError as error:
        # The message suffices; a traceback of Steerway's code would bury it.
        log.error("%s", error.reason)
        _write_exit_reason(files, rank, error, error.reason)
        raise RuntimeError(redaction_of(files).text(error.reason)) from None
    except Exception as error:
        log.exception("rank %d failed", rank)
        # Ray passes it on to processes that do not know this one's secrets.
        message = f"{type(error).__name__}: {error}"
        _write_exit_reason(files, rank, error, message)
        if (cleaned := redaction_of(files).text(message)) != message:
            raise RuntimeError(cleaned).with_traceback(error.__traceback__) from None
        raise


def _check_storage(files: RunFiles, proof: object, rank: int) -> None:
    """Check that this node sees the run's folder and key as the driver does; else close the run, and raise the reason.

    Before anything else: on another disk, even this rank's log would be written where nobody looks for it. The other
    ranks are restarted at once by the exception, and then find the run closed.
    """
    try:
        if proof is not None:
            check_proof(proof_of(proof), files.root, files.signing_key)
    except Refused as refusal:
        reason = f"rank {rank}: {refusal.reason}"
        log.error("%s", reason)
        _close(files, Refused(reason))
        raise RuntimeError(reason) from None


def _write_exit_reason(files: RunFiles, rank: int, error: BaseException, message: str) -> None:
    run = context.current()
    step = run.trainings.failed_at if run is not None else None
    code = f"exit code {error.code}" if isinstance(error, ScriptExit) else exit_reason.signature_of(error)
    lines = [line.strip() for line in redaction_of(files).text(message).splitlines() if line.strip()]
    exit_reason.write(files, rank, lines[0][:500] if lines else type(error).__name__, code, step)


class ScriptExit(RuntimeError):
    """The script ended early, or unsuccessfully, by `sys.exit`."""

    def __init__(self, message: str, code: object) -> None:
        super().__init__(message)
        self.code = code if isinstance(code, int) else "with a text"

    def __reduce__(self) -> tuple[Any, ...]:
        return RuntimeError, self.args


class _Once:
    """Callable that calls a function the first time only."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do

    def __call__(self) -> None:
        do, self._do = self._do, None
        if do is not None:
            do()


def _trained_to_the_end(
    config: RunConfig, files: RunFiles, started_at_s: float, on_first_step: Callable[[], None]
) -> bool:
    """Train; return False if a rollback took the run to another branch, which these processes train next."""
    from ray_jobs.steering.rollback import LeaveForBranch, forget_training

    try:
        _train(config, files, started_at_s, on_first_step)
    except LeaveForBranch:
        context.enter(None)
    else:
        return True
    forget_training()  # here nothing refers to the trainer any more
    return False


def _is_closed(files: RunFiles) -> bool:
    """Return whether the control server has closed the run; then the rank returns, so that Ray Train does not retry."""
    import asyncio

    from control_plane.actor.remote import RayHandle

    return asyncio.run(RayHandle(files).snapshot()).closed


def _close(files: RunFiles, refusal: Refused) -> None:
    """Close the run as failed. Idempotent: every rank does it."""
    import asyncio

    from control_plane.actor.remote import RayHandle

    if not isinstance(refusal, RunEnded):
        asyncio.run(RayHandle(files).close("failed", refusal.reason))


def _train(config: RunConfig, files: RunFiles, started_at_s: float, on_first_step: Callable[[], None]) -> None:
    from control_plane.actor.remote import RayHandle

    run = context.RunContext(
        files=files,
        connect=lambda: RayHandle(files),
        checkpoint_every_steps=config.checkpoint.every_steps,
        overlaps_copies=config.checkpoint.overlap,
        digest_every_steps=config.digest.every_steps,
        keeps_the_tail=config.data is not None and config.data.tail == "keep",
        ranks=config.scaling.ranks,
        spreads=config.scaling.placement == "spread",
        retention=config.checkpoint.retention(),
        hang_after_s=config.recovery.hang_after_s,
        user_code_s=config.recovery.user_code_s,
        offload_pauses=config.pause.offload,
        started_at_s=started_at_s,
        on_first_step=on_first_step,
        limits=config.limits,
        health=config.health if config.health.enabled else None,
        sources=config.sources,
        seed=config.seed,
        temperature=config.mixture.temperature,
        weights_schedule=config.mixture.planned(),
    )
    if isinstance(config.workload, ScriptWorkload):
        context.enter(run)
        work = enter_work_folder(files, Path(config.workload.path))
        _seed(config.seed)
        run_script(config.workload, run.trainings)
        for path in overwritten_files(work, started_at_s):
            log.warning("the script has overwritten %s in its own folder, %s", path, _whose_folder(config))
    else:
        enter_work_folder(files)
        _run_workload(config, run)


def _whose_folder(config: RunConfig) -> str:
    if config.bundle is None:
        return "which all runs of the script share"
    return "RUN/code: `steer resume` puts its files back as they were submitted, and keeps this one beside it"


def _watch_for_preemption(files: RunFiles) -> None:
    import ray

    from control_plane.actor.remote import RayHandle
    from ray_jobs.driver import preemption, ray_internals

    node = ray.get_runtime_context().get_node_id()
    preemption.watch(node, files.run, lambda: RayHandle(files), ray_internals.draining_nodes)


def _keep_spares(config: RunConfig) -> None:
    """Request warm spares for all nodes, from rank 0. Called on every rank after the first step."""
    import ray.train

    from ray_jobs.driver.warm_spares import keep_warm

    group = ray.train.get_context()
    wanted = config.recovery.spares
    count = group.get_local_world_size() if wanted == "auto" else wanted
    if group.get_world_rank() == 0 and count:
        keep_warm(count, SPARES_AFTER_S)


def _prepare_process(config: RunConfig, use_gpu: bool) -> None:
    """Set up the process before torch and DeepSpeed are used."""
    if not use_gpu:
        # Not `use_cpu` and not ACCELERATE_USE_CPU: with either, accelerate silently disables DeepSpeed.
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(max(1, int(config.scaling.cpus_per_rank)))
    from ray_jobs.process.cpu_setup import prepare_cpu_ranks
    from ray_jobs.process.ddp_timeout import apply_script_timeout

    prepare_cpu_ranks()
    apply_script_timeout()


def _seed(seed: int) -> None:
    """Seed the random generators before a script runs: it may draw numbers, such as weights, before it seeds itself."""
    from transformers import set_seed

    set_seed(seed)


def run_script(workload: ScriptWorkload, trainings: context.Trainings) -> None:
    """Run the user's own script as if it were started by hand on this rank.

    Raises `LeaveForBranch` if a rollback took the run to another branch, even if the script has caught that exception:
    what it did afterwards, and whether that failed, does not count.
    """
    from ray_jobs.steering.rollback import LeaveForBranch

    try:
        _run_to_its_end(workload, trainings)
    except Exception:
        if not trainings.left:
            raise
        log.warning("the script caught the exception that ends it for a rollback, and then failed", exc_info=True)
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
        # `sys.exit(main())`, click, typer and absl end a script with it; Ray would take it for a failure in any case.
        in_the_middle = trainings.broken_off
        if leaving.code in (None, 0) and not in_the_middle:
            return
        code = leaving.code or 0
        how = f"with exit code {code}" if isinstance(code, int) else f"with the message: {code}"
        if in_the_middle:
            how += f", {in_the_middle}; to end a training early, set control.should_training_stop or use `steer stop`"
        raise ScriptExit(f"the script {path.name} ended {how}", leaving.code) from None


def _run_workload(config: RunConfig, run: context.RunContext) -> None:
    from dataclasses import replace

    from transformers import TrainingArguments, set_seed

    from ray_jobs.hf.trainer import InteractiveTrainer
    from ray_jobs.workloads import build

    check_training_keys(config)
    set_seed(config.seed)
    workload = build(config, run.files.data)
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
        raise Invalid(f"{config.name}: TrainingArguments rejects the settings under 'training': {error}") from None
    trainer = InteractiveTrainer(
        model=workload.model,
        args=args,
        train_dataset=workload.train_dataset,
        eval_dataset=workload.eval_dataset,
    )
    trainer.train()


def _plain(deepspeed: Any) -> dict[str, Any] | None:
    """Return a deep copy: Transformers replaces `auto` values in place."""
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
    logging.getLogger("py.warnings").addFilter(DropRepeated())


class DropRepeated(logging.Filter):
    """Log filter that drops repeated warnings.

    PyTorch saves and restores Python's warning filters at each collective, which resets `once`: the same warning would
    fill a log of ZeRO 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new. Remembers up to `MAX_WARNINGS` messages."""
        message = record.getMessage()
        is_new = message not in self._seen
        if len(self._seen) < MAX_WARNINGS:
            self._seen.add(message)
        return is_new
