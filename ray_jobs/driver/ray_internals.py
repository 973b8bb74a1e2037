"""Private interfaces of Ray and Ray Train, in one place. Read in Ray 2.60.0.

Everything else of Ray is imported where it is needed. `cluster.join` patches the command line of `ray` by itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import ray
from ray.train.torch.config import _TorchBackend as TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

__all__ = [
    "NODE_ID_LABEL",
    "WORKER_MODULE",
    "ControllerCallback",
    "TorchBackend",
    "WorkerGroupCallback",
    "WorkerGroupStartupFailedError",
]

NODE_ID_LABEL = "ray.io/node-id"
"""Label with a node's id, which Ray sets on every node."""

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


def answers(node: Mapping[str, Any], timeout_s: float) -> bool:
    """Return whether a node's raylet answers the health check that the GCS sends, too. `node`: of `ray.nodes()`."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    # An open connection proves little: the kernel keeps that of a raylet that is stopped.
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            check(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            # Every other answer, such as a refusal, is one.
            return cast(Any, error).code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


def free_resources_by_node() -> dict[str, dict[str, float]]:
    """Return the free resources of every living node by its id."""
    from ray._private import state

    return cast(dict[str, dict[str, float]], state.available_resources_per_node())


def resources_per_rank(scaling: Any) -> dict[str, float]:
    """Return what one rank needs, by a `ScalingConfig`."""
    return dict(scaling._resources_per_worker_not_none)


def abandon_group(group: Any) -> None:
    """Kill the ranks of a group that failed while it was started, and release its resources, which Ray Train keeps."""
    state = group._worker_group_state
    if state is not None:
        for worker in state.workers:
            ray.kill(worker.actor)
        state.shutdown()
        group._clear_state()


def store_again(context: Any) -> None:
    """Put the training function of a group that is to be started into the object store once more, on this node.

    A copy lies on every node that has ever run a rank. A rank that asks a node that does not answer for it asks another
    one after 10 s only (`object_manager_pull_timeout_ms`).
    """
    from ray.train.v2._internal.util import ObjectRefWrapper

    # The dataclass is frozen, and made anew for each start.
    object.__setattr__(context, "train_fn_ref", ObjectRefWrapper(context.train_fn_ref.get()))
