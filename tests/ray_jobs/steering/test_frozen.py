"""What is frozen, in one process: which parameters stand still under torch's optimizers, and what is kept of it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Diverged
from ray_jobs.checkpoint import loop_state
from ray_jobs.loop.live import PlainLoop, live
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering.appliers import UnsupportedApplier
from ray_jobs.steering.freezing import FreezeApplier, FrozenParameters
from ray_jobs.steering.parameters import ResetApplier
from ray_jobs.steering.partitions import Partitions
from tests.ray_jobs.trials.parameter_trials import intent


def plain_training(model: nn.Module, kind: type[torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> Any:
    optimizer = kind(model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    return live(PlainLoop(1), model, optimizer)


def two_layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25), nn.Linear(4, 2))


def make_step(training: Any) -> None:
    training.model(torch.ones(2, 4)).square().sum().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_freezing_before_the_first_step_leaves_no_momentum_behind(kind: Any, options: dict[str, Any]) -> None:
    training = plain_training(two_layers(), kind, **options)
    before, frozen = copied(training.model), training.frozen
    frozen.hold({"0.weight", "0.bias"})
    for _ in range(3):
        make_step(training)
    assert moved(training.model, before) == {"2.weight", "2.bias"}
    state = training.optimizer.state[training.model[0].weight]
    assert all(not value.any() for key, value in state.items() if isinstance(value, torch.Tensor) and key != "step")


class WatchedOptimizer(torch.optim.SGD):
    """Notes every hook on its step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handles: list[Any] = []

    def register_step_pre_hook(self, hook: Any) -> Any:
        self.handles.append(super().register_step_pre_hook(hook))
        return self.handles[-1]

    def register_step_post_hook(self, hook: Any) -> Any:
        self.handles.append(super().register_step_post_hook(hook))
        return self.handles[-1]

    def hooked(self) -> list[bool]:
        return [handle.id in handle.hooks_dict_ref() for handle in self.handles]


def test_while_nothing_is_frozen_there_is_no_hook() -> None:
    training = plain_training(two_layers(), WatchedOptimizer)
    before, frozen = copied(training.model), training.frozen
    assert training.optimizer.hooked() == []
    frozen.hold({"0.weight", "2.bias"})
    assert training.optimizer.hooked() == [True, True]
    frozen.hold(())
    assert training.optimizer.hooked() == [False, False]
    make_step(training)
    assert moved(training.model, before) == set(before)


def test_frozen_gradients_are_zero_before_they_could_be_clipped() -> None:
    training = plain_training(two_layers())
    training.frozen.hold({"0.weight"})
    training.model(torch.ones(2, 4)).square().sum().backward()
    assert not training.model[0].weight.grad.any()
    assert training.model[2].weight.grad.any()


def test_a_checkpoint_keeps_what_is_frozen_and_a_new_training_recalls_it() -> None:
    training = plain_training(two_layers())
    training.frozen.hold({"0.weight", "2.bias"})
    saved = json.loads(json.dumps(loop_state.captured(training)["frozen"]))
    other = plain_training(two_layers())
    other.frozen.recall(saved)
    assert other.frozen.readings() == {"frozen": ["0.weight", "2.bias"], "frozen_parameters": 18}


def test_a_checkpoint_with_nothing_frozen_is_as_before() -> None:
    assert "frozen" not in loop_state.captured(plain_training(two_layers()))


def test_recalling_a_parameter_that_the_model_lacks_is_a_divergence() -> None:
    frozen = plain_training(two_layers()).frozen
    frozen.hold({"0.bias"})
    with pytest.raises(Diverged, match=r"5\.weight"):
        frozen.recall(["5.weight"])
    assert frozen.names == ["0.bias"]


def test_a_second_training_of_a_run_begins_with_nothing_frozen() -> None:
    context = SimpleNamespace(limits={}, checkpoint_every_steps=0, offload_pauses=False, health=None)
    run, first = SteeredRun(context), plain_training(two_layers())  # type: ignore[arg-type]
    run.session = SimpleNamespace(register=lambda kind, applier: None, replica=SimpleNamespace(repeating=None))  # type: ignore[assignment]
    run.begin(first, UnsupportedApplier("no evaluation"))
    first.frozen.hold({"0.weight"})
    second = plain_training(first.model)
    run.begin(second, UnsupportedApplier("no evaluation"))
    before = copied(second.model)
    assert second.frozen.names == []
    make_step(second)
    assert moved(second.model, before) == set(before)


def test_readings_name_at_most_64_frozen_parameters_and_count_the_rest() -> None:
    model = nn.ModuleList([nn.Linear(1, 1) for _ in range(40)])
    frozen = plain_training(model).frozen
    frozen.hold(frozen.trained)
    told = frozen.readings()
    assert (len(told["frozen"]), told["frozen"][-1], told["frozen_parameters"]) == (65, "and 16 more", 80)


def test_a_tied_parameter_is_frozen_by_any_of_its_names() -> None:
    model = two_layers()
    model.append(nn.Linear(4, 4))
    model[3].weight = model[0].weight
    assert plain_training(model).frozen.matching("3.*") == {"0.weight", "3.bias"}


def test_undoing_a_freeze_trains_on() -> None:
    training = plain_training(two_layers())
    applier = FreezeApplier(training.frozen)
    command = Command.model_validate(intent(0, kind="freeze", parameters="0.*"))
    assert applier.check(command) is None
    assert applier.apply(command, 1).after["frozen"] == ["0.bias", "0.weight"]
    applier.undo(command)
    assert training.frozen.names == []


def test_parameters_that_the_optimizer_lacks_are_refused() -> None:
    model = two_layers()
    training = live(PlainLoop(1), model, torch.optim.AdamW(model[0].parameters(), lr=0.1))
    refused = FreezeApplier(training.frozen).check(Command.model_validate(intent(0, kind="freeze", parameters="2.*")))
    assert "the optimizer does not hold it" in refused


def test_untrained_parameters_are_neither_frozen_nor_reset() -> None:
    model = two_layers()
    model[2].weight.requires_grad_(False)
    training = plain_training(model)
    assert training.frozen.matching("2.*") == {"2.bias"}
    reset = Command.model_validate(intent(0, kind="reset_parameters", modules="2"))
    refused = ResetApplier(training.partitions).check(reset)
    assert "2.weight is not trained" in refused


def test_a_shared_run_of_fsdp_is_refused() -> None:
    model = two_layers()
    partitions = Partitions(model, torch.optim.AdamW(model.parameters()), is_fsdp=True)
    for applier, given in (
        (FreezeApplier(FrozenParameters(partitions)), {"kind": "freeze", "parameters": "*"}),
        (ResetApplier(partitions), {"kind": "reset_parameters", "modules": "*"}),
    ):
        assert "FSDP" in applier.check(Command.model_validate(intent(0, **given)))
