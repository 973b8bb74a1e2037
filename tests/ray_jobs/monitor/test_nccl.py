"""Our watchdog is before NCCL's, which is set where Ray Train makes the process group."""

from pathlib import Path

import pytest
import torch

from ray_jobs.driver import warm_spares
from ray_jobs.monitor.nccl import collective_timeout_s, nccl_environment
from ray_jobs.monitor.verdict import LEAST_DEADLOCK_S

HEADER = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"


@pytest.mark.parametrize("user_code_s", [30.0, 1800.0, 7200.0])
def test_nccl_waits_longer_than_our_watchdog_for_user_code_and_for_a_deadlock(user_code_s: float) -> None:
    assert max(user_code_s, LEAST_DEADLOCK_S) < collective_timeout_s(user_code_s)
    told = nccl_environment(user_code_s)["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]
    assert int(told) >= collective_timeout_s(user_code_s)


def test_installed_torch_knows_every_name() -> None:
    known = HEADER.read_text(encoding="utf-8")
    assert [name for name in nccl_environment() if f'"{name}"' not in known] == []


def test_ranks_on_gpus_and_their_spares_get_it_and_those_on_cpus_do_not() -> None:
    assert nccl_environment().items() <= warm_spares.worker_environment("cuda").items()
    assert not nccl_environment().keys() & warm_spares.worker_environment("cpu").keys()
