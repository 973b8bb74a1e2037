"""How long the ranks wait for each other in torch's and DeepSpeed's groups, which have clocks of their own.

    let_it_count()      once in a process, before the script runs: a script's `ddp_timeout` counts, though the ranks'
                        group is there before the script, and accelerate makes no other
    let_groups_wait()   when a training begins: as long as one rank may be in user code (`recovery.user_code_s`)

Of `ddp_timeout` only a longer one than the group has, and than the default of Transformers: who leaves it out asks for
nothing.
"""

import logging
from datetime import timedelta
from typing import Any

import torch.distributed as dist

log = logging.getLogger(__name__)

DEFAULT_S = 1800.0
"""Of TrainingArguments, which hands it on in any case."""

LEAST_DEFAULT_S = 600.0
"""Torch's for NCCL; for gloo it is three times that."""


def let_it_count() -> None:
    """Patch accelerate in this process. Doing it again changes nothing."""
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
        log.warning("ddp_timeout=%g does not count: %s", timeout.total_seconds(), error)
        return
    log.info("the ranks wait for each other for up to %g s, by the script's ddp_timeout", timeout.total_seconds())


def let_groups_wait(wait_s: float) -> None:
    """Every group that waits as long as torch's defaults, or longer, waits `wait_s` at least.

    A shorter patience was somebody's own choice, and stays.
    """
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        try:
            has_s = _patience_s(group)
            if LEAST_DEFAULT_S <= has_s < wait_s:
                distributed_c10d._set_pg_timeout(timedelta(seconds=wait_s), group)
        except Exception as error:
            log.warning("a group of ranks keeps its own patience: %s", error)


def _patience_s(group: Any) -> float:
    backend = group._get_backend(group._device_types[0])
    return float(backend.options._timeout.total_seconds())
