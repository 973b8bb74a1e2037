"""A script's `ddp_timeout` reaches the group that the ranks have already."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from transformers import TrainingArguments

from ray_jobs.process import ddp_timeout
from tests.ports import free_port

MADE_WITH = timedelta(seconds=600)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One rank's group, made as a run makes it, before the script."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(PartialState, "__init__", PartialState.__init__)
    monkeypatch.setattr(PartialState, "_prepare_backend", lambda *given: ("gloo", _multi_cpu()))
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1, timeout=MADE_WITH
    )
    yield
    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def _multi_cpu() -> object:
    from accelerate.utils import DistributedType

    return DistributedType.MULTI_CPU


def waits() -> timedelta:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    return backend.options._timeout


@pytest.mark.parametrize(("given", "seconds"), [({"ddp_timeout": 7200}, 7200), ({}, 600), ({"ddp_timeout": 60}, 600)])
def test_longer_timeout_than_the_default_counts(
    group: None, tmp_path: object, given: dict[str, int], seconds: int
) -> None:
    ddp_timeout.apply_script_timeout()
    ddp_timeout.apply_script_timeout()
    assert waits() == MADE_WITH
    assert TrainingArguments(output_dir=str(tmp_path), report_to="none", **given).device is not None
    assert waits() == timedelta(seconds=seconds)


def test_groups_wait_for_as_long_as_a_rank_may_be_in_user_code_and_no_chosen_patience_changes(group: None) -> None:
    others = dist.new_group(backend="gloo"), dist.new_group(backend="gloo", timeout=timedelta(seconds=30))
    ddp_timeout.raise_group_timeouts(2100)
    assert waits() == timedelta(seconds=2100)
    assert [ddp_timeout._timeout_s(each) for each in others] == [2100, 30]
    ddp_timeout.raise_group_timeouts(700)
    assert waits() == timedelta(seconds=2100)
