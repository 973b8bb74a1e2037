"""NCCL's own watchdog waits longer than ours, which knows why a rank is blocked.

Two threads may end a rank whose collective does not end. Ours (see `watchdog`) says which rank was silent, where the
driver finds it. PyTorch's says only which collective timed out; it would be first in a long start or end, and then the
run's reason would be lost. So PyTorch's is the second line: for a process in which even our thread cannot run.

Names and meanings read in torch 2.13, `ProcessGroupNCCL.hpp`.
"""

from ray_jobs.verdict import USER_CODE_S

MARGIN_S = 300.0
"""Between the two: time for our watchdog's tick, its last words, and Ray's end of the other ranks."""


def collective_timeout_s(user_code_s: float = USER_CODE_S) -> int:
    """For the process group: how long a collective may take, of NCCL or gloo, before PyTorch ends the rank. Above all
    that ours waits for, but one: a deadlock in a training whose steps take longer than a hundred seconds or so."""
    return int(user_code_s + MARGIN_S)


def nccl_environment(user_code_s: float = USER_CODE_S) -> dict[str, str]:
    """What must be in a rank's environment before its process group is made; values that are there already give way.

    Ray Train makes the group before any code of a rank runs, so that these come with the workers' environment.
    """
    return {
        # 3 (SkipCleanUp), PyTorch's default: end the process, and do not abort communicators first, which may hang as
        # well. Ray Train would set 1 where it is not set. 0 would leave a broken link unnoticed.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        # With 1 a wait blocks the thread and raises in it: a rank would end with a traceback of the collective's.
        "TORCH_NCCL_BLOCKING_WAIT": "0",
        # A thread that ends the process when PyTorch's watchdog itself is stuck, by default after 8 minutes.
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(collective_timeout_s(user_code_s)),
        # One rank's error would end the others through the store before they are told why.
        "TORCH_NCCL_PROPAGATE_ERROR": "0",
    }
