"""Timeouts of PyTorch's NCCL watchdog, which is set to wait longer than Steerway's own.

Two watchdogs may terminate a rank whose collective does not end. Ours (see `watchdog`) reports which rank was silent
to the driver. PyTorch's reports only which collective timed out; if it were first, the run's failure reason would be
lost. So PyTorch's is the fallback, for a process in which even our thread cannot run.

Names and meanings read in torch 2.13, `ProcessGroupNCCL.hpp`.
"""

from ray_jobs.process.timeouts import USER_CODE_S

MARGIN_S = 300.0
"""Margin between the two: time for our watchdog to detect, to write the exit reason, and for Ray to end all ranks."""


def collective_timeout_s(user_code_s: float = USER_CODE_S) -> int:
    """Return the timeout of process groups, of NCCL or gloo, after which PyTorch ends the rank.

    Longer than all timeouts of our watchdog but one: a deadlock in a training whose steps take more than about 100 s.
    """
    return int(user_code_s + MARGIN_S)


def nccl_environment(user_code_s: float = USER_CODE_S) -> dict[str, str]:
    """Return the NCCL variables for a rank's environment, which replace existing values.

    Ray Train makes the process group before any code of a rank runs, so these are set in the workers' environment.
    """
    return {
        # 3 (SkipCleanUp), PyTorch's default: end the process, and do not abort communicators first, which may hang as
        # well. Ray Train sets 1 by default. 0 would leave a broken link unnoticed.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        # With 1 a wait blocks the thread and raises in it: a rank would end with a traceback of the collective.
        "TORCH_NCCL_BLOCKING_WAIT": "0",
        # A thread that ends the process when PyTorch's watchdog itself is stuck, by default after 8 minutes.
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(collective_timeout_s(user_code_s)),
        # One rank's error would end the others through the store before they get the reason.
        "TORCH_NCCL_PROPAGATE_ERROR": "0",
    }
