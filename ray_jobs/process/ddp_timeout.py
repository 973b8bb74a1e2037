"""Timeouts of the process groups of torch and DeepSpeed.

    apply_script_timeout()   once in a process, before the script runs: applies a script's `ddp_timeout`, although the
                             ranks' group exists before the script, and accelerate makes no other
    raise_group_timeouts()   when a training begins: raises the timeouts to `recovery.user_code_s`

A `ddp_timeout` is only applied if it is longer than the default of Transformers, which passes that on in any case.
"""

import logging
from datetime import timedelta
from typing import Any

import torch.distributed as dist

log = logging.getLogger(__name__)

DEFAULT_S = 1800.0
"""Default `ddp_timeout` of TrainingArguments."""

LEAST_DEFAULT_S = 600.0
"""Torch's default timeout for NCCL; for gloo it is three times that."""


def apply_script_timeout() -> None:
    """Patch accelerate in this process so that a script's `ddp_timeout` is applied. Idempotent."""
    from accelerate.state import PartialState

    PartialState.__init__ = _waiting(PartialState.__init__)


def _waiting(original: Any) -> Any:
    if getattr(original, "waits", False):
        return original

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        timeout = kwargs.get("timeout")
        if isinstance(timeout, timedelta) and timeout.total_seconds() > DEFAULT_S and dist.is_initialized():
            _set(timeout)
        original(self, *args, **kwargs)

    init.waits = True  # type: ignore[attr-defined]
    return init


def _set(timeout: timedelta) -> None:
    from torch.distributed import distributed_c10d

    try:
        distributed_c10d._set_pg_timeout(timeout)
    except Exception as error:
        log.warning("ddp_timeout=%g could not be applied: %s", timeout.total_seconds(), error)
        return
    log.info("process group timeout set to %g s by the script's ddp_timeout", timeout.total_seconds())


def raise_group_timeouts(wait_s: float) -> None:
    """Raise the timeout of every process group to `wait_s`, unless it is shorter than torch's defaults.

    A shorter one was set on purpose, and stays.
    """
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        try:
            if LEAST_DEFAULT_S <= _timeout_s(group) < wait_s:
                distributed_c10d._set_pg_timeout(timedelta(seconds=wait_s), group)
        except Exception as error:
            log.warning("the timeout of a process group could not be raised: %s", error)


def _timeout_s(group: Any) -> float:
    backend = group._get_backend(group._device_types[0])
    return float(backend.options._timeout.total_seconds())
