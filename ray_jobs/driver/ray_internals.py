"""Private interfaces of Ray and Ray Train, in one place. Read in Ray 2.60.0.

Everything else of Ray is imported where it is needed. `cluster.join` patches the command line of `ray` by itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

__all__ = ["WORKER_MODULE", "WorkerGroupCallback"]

WORKER_MODULE = "ray.train.v2._internal.execution.worker_group.worker"
"""Module of Ray Train's workers."""


def without_datasets(callbacks: Iterable[Any]) -> list[Any]:
    """Return Ray Train's callbacks without the one for datasets."""
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback  # in the driver only: imports Ray Data

    return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


def draining_nodes() -> Mapping[str, int]:
    """Return the deadlines of draining nodes by node id, Unix time in ms; 0 if Ray does not know it."""
    from ray._private import state

    return cast(Mapping[str, int], state.state.get_draining_nodes())


def setup_hook_variable() -> str:
    """Return the name of the environment variable with the setup hook of worker processes."""
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return str(WORKER_PROCESS_SETUP_HOOK_ENV_VAR)


def prestart_workers(node: Mapping[str, Any], count: int, keep_s: int, timeout_s: float) -> None:
    """Request idle workers on a node, with the runtime environment of this process, for its job.

    Args:
        node: An element of `ray.nodes()`.
        count: Number of workers.
        keep_s: Seconds after which Ray may end an idle one.
        timeout_s: Timeout of the request to the raylet.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc, runtime_environment_pb2

    context = ray.get_runtime_context()
    common, manager, environment = (cast(Any, stub) for stub in (common_pb2, node_manager_pb2, runtime_environment_pb2))
    request = manager.PrestartWorkersRequest(
        language=common.Language.PYTHON,
        runtime_env_info=environment.RuntimeEnvInfo(serialized_runtime_env=context.get_runtime_env_string()),
        job_id=bytes.fromhex(context.get_job_id()),
        keep_alive_duration_secs=keep_s,
        num_workers=count,
    )
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=timeout_s)
