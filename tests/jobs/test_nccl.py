"""Our watchdog is before NCCL's, which is set where Ray Train makes the process group."""

from pathlib import Path

import torch

from ray_jobs import spares
from ray_jobs.nccl import COLLECTIVE_TIMEOUT_S, nccl_environment
from ray_jobs.watchdog import LEAST_DEADLOCK_S, PATIENCE_S

HEADER = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"


def test_nccl_waits_longer_than_our_watchdog_in_every_phase() -> None:
    assert max(*PATIENCE_S.values(), LEAST_DEADLOCK_S) < COLLECTIVE_TIMEOUT_S
    assert int(nccl_environment()["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) >= COLLECTIVE_TIMEOUT_S


def test_installed_torch_knows_every_name() -> None:
    known = HEADER.read_text(encoding="utf-8")
    assert [name for name in nccl_environment() if f'"{name}"' not in known] == []


def test_ranks_on_gpus_and_their_spares_get_it_and_those_on_cpus_do_not() -> None:
    assert nccl_environment().items() <= spares.worker_environment("cuda").items()
    assert not nccl_environment().keys() & spares.worker_environment("cpu").keys()
