"""Copies beside the next forward and backward pass: what is saved is the state at the boundary, or nothing."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ray_jobs.checkpoint import overlap
from ray_jobs.checkpoint.capture import copy_of
from ray_jobs.checkpoint.host_memory import Copy, HostBuffers
from ray_jobs.rank.live_training import LiveTraining
from tests.ray_jobs.support.ranks import run_ranks

WAIT_S = 10.0


class Held:
    """Copies of other threads than the test's, which begin when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_begin, make = threading.Event(), Copy.make

        def held(copy: Copy) -> None:
            assert threading.current_thread() is threading.main_thread() or self.may_begin.wait(WAIT_S)
            make(copy)

        monkeypatch.setattr(Copy, "make", held)
        monkeypatch.setattr(overlap, "WORTH_BYTES", 0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


def normalized() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    step(model, optimizer)
    return model, optimizer


def forward(model: torch.nn.Module) -> None:
    model(torch.arange(12.0).view(3, 4)).square().sum().backward()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    forward(model)
    optimizer.step()
    optimizer.zero_grad()


def state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"state": {"model": model.state_dict(), "optimizer": optimizer.state_dict()}}


def begin(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], Any]:
    laid_out, copies = copy_of(state(model, optimizer), HostBuffers())
    training = SimpleNamespace(model=model, partitions=SimpleNamespace(torch_optimizer=optimizer))
    return laid_out["state"], overlap.begin(cast(LiveTraining, training), copies)


def tensors(value: dict[str, Any]) -> list[torch.Tensor]:
    moments = [each["momentum_buffer"].clone() for each in value["optimizer"]["state"].values()]
    return [tensor.clone() for tensor in value["model"].values()] + moments


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_update_waits_for_the_copy_and_forward_does_not(held: Held) -> None:
    model, optimizer = normalized()
    expected = tensors(state(model, optimizer)["state"])
    copy, background = begin(model, optimizer)
    optimizer.register_step_pre_hook(lambda *_: background.wait())
    forward(model)  # this changes the running mean of the normalization
    threading.Timer(0.1, held.may_begin.set).start()
    optimizer.step()
    background.finish()
    assert background.waited_s > 0
    assert same(tensors(copy), expected)
    assert not same(tensors(state(model, optimizer)["state"]), expected)


def test_weights_that_a_script_changes_meanwhile_are_noticed(held: Held) -> None:
    model, optimizer = normalized()
    _, background = begin(model, optimizer)
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[index, operator]
    held.may_begin.set()
    with pytest.raises(RuntimeError, match=r"0\.weight was changed between two updates .* set checkpoint\.overlap to"):
        background.finish()


def test_small_state_is_copied_at_once() -> None:
    model, optimizer = normalized()
    expected = tensors(state(model, optimizer)["state"])
    copy, background = begin(model, optimizer)
    assert background is None
    step(model, optimizer)
    assert same(tensors(copy), expected)


def test_copy_that_fails_is_told_by_finish_and_holds_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(copy: Copy) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no more host memory")

    monkeypatch.setattr(Copy, "make", failing)
    monkeypatch.setattr(overlap, "WORTH_BYTES", 0)
    _, background = begin(*normalized())
    background.wait()
    with pytest.raises(RuntimeError, match="the state could not be copied: no more host memory"):
        background.finish()


# --- Real ranks ---


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("overlap")
    function = "tests.ray_jobs.trials.checkpoint_trials:overlapping"
    return run_ranks(function, 2, {"root": str(root / "runs")}, root / "ranks")


@pytest.mark.jobs
@pytest.mark.parametrize("stage", ["0", "1", "2", "3", "None"])
def test_what_is_saved_beside_a_step_is_the_state_before_it(ranks: list[dict[str, Any]], stage: str) -> None:
    for rank, all_seen in enumerate(ranks):
        seen = all_seen[f"{stage} held"]
        assert seen["reason"] is None
        assert seen["saved"] == seen["digest"] != seen["a_step_later"], rank
    # Rank 0 has something to copy at every stage: it took longer than the boundary, and the update waited for it.
    seen = ranks[0][f"{stage} held"]
    assert seen["seconds"]["copy"] > 0.2
    assert seen["seconds"]["waited"] > 0


@pytest.mark.jobs
def test_without_the_update_s_wait_the_saved_state_is_another_or_none(ranks: list[dict[str, Any]]) -> None:
    seen = ranks[0]["2 free"]
    assert seen["reason"] is not None or seen["saved"] != seen["digest"]
