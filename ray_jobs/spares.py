"""Warm spares: worker processes that have imported everything, kept idle on every node for the next start.

A fresh rank spends most of its start-up on imports: seconds on a large machine, tens of seconds on a small one. Ray
keeps idle worker processes, and hands one out to an actor with the same runtime environment; it can be asked to start
some ahead of need (the raylet's `PrestartWorkers`). What a spare imports is said by a hook in that environment. All of
this is an optimisation: where it fails, a start takes its time, and the log says so.
"""

import importlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, cast

log = logging.getLogger(__name__)

HOOK = "ray_jobs.spares.preload"
"""Run by Ray at the start of a worker process whose environment names it."""

PRELOADED = (
    "torch",
    "deepspeed",
    # Imported when an engine is built; drags in all of PyTorch's compiler.
    "deepspeed.runtime.zero.muon.original_muon",
    "accelerate",
    "transformers.trainer",
    "transformers.integrations.deepspeed",
    "transformers.models.gpt2.modeling_gpt2",
    "ray.train.torch",
    "ray.train.v2._internal.execution.worker_group.worker",
    "ray_jobs.trainer",
    "ray_jobs.workloads.gpt2",
)

KEPT_FOR_S = 7 * 24 * 3600
"""Ray ends idle workers after a while. A spare that is never needed costs its memory, until its run ends."""

REQUEST_TIMEOUT_S = 10.0


def preload() -> None:
    """Import what every rank needs. Nothing here may touch a GPU: which one is this process's is not known yet."""
    # PyTorch would otherwise ask the driver whether there is a GPU, and fix for good which ones it sees.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("DS_ACCELERATOR", os.environ.get("STEERWAY_ACCELERATOR", "cpu"))
    for module in PRELOADED:
        try:
            importlib.import_module(module)
        except Exception:
            log.exception("a spare could not import %s", module)


def worker_environment(accelerator: str) -> dict[str, str]:
    """The environment of the ranks and of their spares; `accelerator` is DeepSpeed's name for it, `cpu` or `cuda`."""
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: HOOK, "STEERWAY_ACCELERATOR": accelerator}


def keep_warm_later(count: int, after: Callable[[], Any], only_if: Callable[[], bool] = lambda: True) -> None:
    """Ask for spares in the background, once `after` has returned: a start must not compete with its own spares."""

    def wait_and_ask() -> None:
        after()
        if only_if():
            keep_warm(count)

    threading.Thread(target=wait_and_ask, name="steerway-spares", daemon=True).start()


def keep_warm(count: int) -> list[str]:
    """Have `count` idle workers like this one on every living node; answers the nodes that took the request.

    Called in a worker: its spares get its own runtime environment, and belong to its own job.
    """
    import ray

    context = ray.get_runtime_context()
    asked = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        try:
            _prestart(node, context.get_runtime_env_string(), context.get_job_id(), count)
        except Exception as error:
            log.warning("no spares on %s: %s", node["NodeManagerAddress"], str(error).splitlines()[0])
        else:
            asked.append(node["NodeID"])
    log.info("%d spares asked for on each of %d nodes", count, len(asked))
    return asked


def _prestart(node: dict[str, Any], runtime_env: str, job: str, count: int) -> None:
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc, runtime_environment_pb2

    common, manager, environment = (cast(Any, stub) for stub in (common_pb2, node_manager_pb2, runtime_environment_pb2))
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    request = manager.PrestartWorkersRequest(
        language=common.Language.PYTHON,
        runtime_env_info=environment.RuntimeEnvInfo(serialized_runtime_env=runtime_env),
        job_id=bytes.fromhex(job),
        keep_alive_duration_secs=KEPT_FOR_S,
        num_workers=count,
    )
    with channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=REQUEST_TIMEOUT_S)
