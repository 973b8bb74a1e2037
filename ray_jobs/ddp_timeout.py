"""A script's `ddp_timeout` counts: the ranks' group is there before the script, and accelerate makes no other.

    let_it_count()      once in a process, before the script runs

Only a longer one than the group has, and than the default of Transformers: who leaves it out asks for nothing.
"""

import logging
from datetime import timedelta
from typing import Any

import torch.distributed as dist

log = logging.getLogger(__name__)

DEFAULT_S = 1800.0
"""Of TrainingArguments, which hands it on in any case."""


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
