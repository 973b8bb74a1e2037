"""Driver of a run, the entry point of its Ray job: starts Ray Train's worker group; one start is one generation.

    python -m ray_jobs.launch RUN_FOLDER [--request UUID]
    python -m ray_jobs.launch CONFIG [key=value ...] [--run ID]     begins a run itself, see `driver.direct_job`

It creates the run's control actor, starts the worker group, waits, and closes the run. Ray Train restarts a failed
group for as long as the control server lets the trainers start (see `core.recovery`). The driver imports neither
DeepSpeed nor the workload.
"""

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import ray
from pydantic import ValidationError
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from control_plane.actor.cluster_state import ClusterReader
from control_plane.actor.control_actor import retire
from control_plane.actor.remote import RayHandle
from control_plane.api.launching import JobRequest
from control_plane.api.versions import release
from control_plane.core.model.characters import last_line
from control_plane.core.model.errors import Damaged, Refused, SteerwayError, Unavailable
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import Ending
from control_plane.core.model.redaction import Redaction
from control_plane.core.rules.branch_rules import go_on_with
from control_plane.core.rules.capacity import ACCELERATOR, ClusterState, Demand, spread_that_is_not_had
from control_plane.storage.file_systems import assess, file_system_of
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from control_plane.storage.proof import StorageProof, write_proof
from control_plane.storage.regular import read_regular
from ray_jobs.config.demand import demand_of, uses_gpus
from ray_jobs.config.own_config import own_config
from ray_jobs.config.run_config import RunConfig as RunSettings
from ray_jobs.driver.back_off import StartCancelled
from ray_jobs.driver.direct_job import become_driver
from ray_jobs.driver.failure_reporter import FailureReporter, FastShutdown
from ray_jobs.driver.process_group import RanksTorchConfig
from ray_jobs.driver.rank_environment import check_environment, rank_environment
from ray_jobs.driver.ray_internals import without_datasets
from ray_jobs.driver.silent_nodes import SilentNodes
from ray_jobs.driver.warm_spares import WarmControllerHelper
from ray_jobs.monitor.nccl import collective_timeout_s

log = logging.getLogger("steerway.driver")

END_GRACE_S = 1.0
"""Delay before the control server is retired, so that clients that follow the run receive its end from it."""


class RanksTrainer(TorchTrainer):
    """Ray Train's TorchTrainer with `FastShutdown` as its first callback, and without its datasets callback.

    Ranks read their own data; the callback would make an actor for datasets, and import its libraries, at every start,
    while ranks are being restored.
    """

    def _create_default_callbacks(self) -> list[Any]:
        defaults: list[Any] = cast(Any, super())._create_default_callbacks()
        return [FastShutdown(), *without_datasets(defaults)]


def main(root: Path, asked: UUID | None = None) -> int:
    """Run the job and return the exit status: 0 if the training finished or was stopped, 1 if it failed.

    `asked` names the request in the run's folder that this job was submitted for: to begin the run, or to resume it
    after its driver or its cluster was lost, perhaps with a rollback, or an adoption whose branch is then trained.
    """
    files = RunFiles(root)
    request = _read_request(files, asked) if asked is not None else None
    settings = own_config(files)
    ray.init(ignore_reinit_error=True, log_to_driver=True, logging_level=logging.WARNING)
    handle = RayHandle(files, retry_for_s=60.0)
    try:
        asyncio.run(_open(handle, request))
    except Refused:
        if asyncio.run(handle.snapshot()).closed:
            retire(files)  # it was only started for this request
        raise
    ending, reason = _fit(files, settings)
    status, reason = asyncio.run(_close(handle, ending, reason))
    log.info("run %s: %s%s", files.run, status, f": {reason}" if reason else "")
    time.sleep(END_GRACE_S)
    retire(files)
    return 0 if "failed" not in (ending, status) else 1


def _read_request(files: RunFiles, uuid: UUID) -> JobRequest:
    """Return what this job is to do. Raises `Damaged` if its file cannot be read."""
    try:
        return JobRequest.model_validate_json(read_regular(files.request(uuid)))
    except (OSError, ValidationError) as error:
        raise Damaged(f"{files.request(uuid)} cannot be read ({type(error).__name__})") from None


async def _open(handle: RayHandle, request: JobRequest | None) -> None:
    if request is None or not request.resumes:
        await handle.snapshot()
        return
    back = request.back
    if back is not None and isinstance(back.intent, AdoptCheckpoint):
        await handle.submit(back)  # first: if it is refused, the run is left as it was
        back = go_on_with(back)
    await handle.resume(request.author, back is not None)
    if back is None:
        return
    try:
        await handle.submit(back)
    except Refused as refusal:
        await handle.close("failed", f"the run could not be resumed from that checkpoint: {refusal.reason}")
        raise


def scaling_of(demand: Demand, settings: RunSettings) -> ScalingConfig:
    """Return Ray Train's part of the demand: its placement group asks for all ranks at once, also of the autoscaler."""
    least, most = demand.count, demand.most
    strategy = demand.placement.upper()
    return ScalingConfig(
        num_workers=(least, most) if least < most else most,
        use_gpu="GPU" in demand.per_rank,
        placement_strategy=f"STRICT_{strategy}" if demand.strict else strategy,
        resources_per_worker={
            name: amount for name, amount in demand.per_rank.items() if not name.startswith(ACCELERATOR)
        },
        accelerator_type=settings.scaling.accelerator_type,
        label_selector=dict(demand.labels) or None,
    )


def read_cluster() -> ClusterState:
    """Return the cluster's nodes and groups; none if Ray does not report them: that stops no run."""
    try:
        return ClusterReader().read()
    except Unavailable as error:
        log.warning("%s", error.reason)
        return ClusterState((), ())


def _fit(files: RunFiles, settings: RunSettings) -> tuple[Ending, str | None]:
    from ray_jobs import train

    try:
        proof = _proof_of_storage(files)
    except SteerwayError as error:
        return "failed", error.reason
    cluster = read_cluster()
    gpu = uses_gpus(settings, cluster.nodes, cluster.groups)
    demand = demand_of(settings, gpu)
    if note := spread_that_is_not_had(demand, cluster.nodes, cluster.groups):
        log.warning("%s", note)
    elastic = settings.scaling.bounds[0] < settings.scaling.bounds[1]
    environment = rank_environment(settings, files, "cuda" if gpu else "cpu")
    try:
        check_environment(environment, files)
    except Refused as refusal:
        return "failed", refusal.reason
    # Ray's annotations name other classes than those that it accepts.
    callbacks: list[Any] = [FailureReporter(str(files.root)), WarmControllerHelper(), SilentNodes(elastic)]
    run_config_of_ray: Any = RunConfig(
        name=f"{files.run}-{time.time_ns():x}",
        storage_path=str(files.root / "ray_train"),
        # Whether to restart is the control server's decision: it knows whether there was any progress.
        failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1, max_preemption_failures=-1),
        callbacks=callbacks,
        worker_runtime_env=environment,
    )
    trainer = RanksTrainer(
        train.main,
        train_loop_config={"root": str(files.root), "use_gpu": gpu, "release": release(), "proof": proof.model_dump()},
        scaling_config=scaling_of(demand, settings),
        run_config=run_config_of_ray,
        torch_config=RanksTorchConfig(
            backend="nccl" if gpu else "gloo", timeout_s=collective_timeout_s(settings.recovery.user_code_s)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        if isinstance(getattr(error, "controller_failure", None), StartCancelled):
            return "stopped", None  # the run is closed already, with its own ending
        log.exception("the worker group failed")
        return "failed", _first_cause(error, redaction_of(files))
    return "finished", None


def _proof_of_storage(files: RunFiles) -> StorageProof:
    """Write a nonce for the ranks to find, at each start of theirs. Raises `Refused` for unsafe storage."""
    level, reason = assess(file_system_of(files.root), machines=1)
    if level == "failed":
        raise Refused(f"runs cannot be stored in {files.root.parent}: {reason}")
    return write_proof(files.root, files.signing_key)


def _first_cause(error: BaseException, redaction: Redaction) -> str:
    """Return the first worker's error message, without Ray's exceptions around it."""
    failures = getattr(error, "worker_failures", None)
    where, cause = type(error).__name__, error
    if failures:
        rank, cause = sorted(failures.items())[0]
        where = f"rank {rank}"
    return f"{where}: {last_line(redaction.text(str(cause))) or 'the error has no message'}"


async def _close(handle: RayHandle, ending: Ending, reason: str | None) -> tuple[str, str | None]:
    await handle.close(ending, reason)
    snapshot = await handle.snapshot()
    return snapshot.status, snapshot.reason


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(prog="ray_jobs.launch")
    parser.add_argument("root", metavar="RUN_FOLDER|CONFIG", help="a run's folder; or a config, to begin a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--run", help="the new run's id; a run of this id is resumed")
    parser.add_argument("--request", type=UUID)
    given = parser.parse_args()
    try:
        if not Path(given.root).is_dir():
            become_driver(given.root, given.overrides, given.run)
        sys.exit(main(Path(given.root), given.request))
    except SteerwayError as error:
        log.error("%s", error.reason)
        sys.exit(1)
