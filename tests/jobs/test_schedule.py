"""The steered schedule over every kind of scheduler: its shape kept, a value held, and everything put back."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from ray_jobs.schedule import SteeredSchedule, group_names

Make = Callable[[torch.optim.Optimizer], Any]
MAKERS: dict[str, Make] = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 - step / 40),
    "cosine (each value from the one before)": lambda o: schedulers.CosineAnnealingLR(o, 40),
    "exponential (each value from the one before)": lambda o: schedulers.ExponentialLR(o, 0.95),
    "step": lambda o: schedulers.StepLR(o, 7, 0.5),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=60),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.5, 3), schedulers.ExponentialLR(o, 0.9)], [3]
    ),
}
each_scheduler = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def optimizer() -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameter], "lr": lr} for parameter, lr in zip(parameters, (0.1, 0.2), strict=True)]
    return torch.optim.SGD(groups)


def rates(make: Make, steer: Callable[[int, SteeredSchedule], None], steps: int = 20) -> list[list[float]]:
    """The live rates of each step; `steer` is called at every boundary."""
    owner = optimizer()
    schedule = SteeredSchedule(make(owner), lambda: owner.param_groups)
    seen = []
    for step in range(steps):
        owner.step()
        schedule.step()
        steer(step, schedule)
        seen.append([group["lr"] for group in owner.param_groups])
    return seen


def nothing(step: int, schedule: SteeredSchedule) -> None:
    """Leave it alone."""


@each_scheduler
def test_schedule_left_alone_is_the_scheduler_itself(make: Make) -> None:
    owner = optimizer()
    plain, seen = make(owner), []
    for _ in range(20):
        owner.step()
        plain.step()
        seen.append([group["lr"] for group in owner.param_groups])
    assert rates(make, nothing) == seen


@each_scheduler
def test_schedule_kept_follows_its_shape_from_the_new_value(make: Make) -> None:
    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            schedule.set(0, 0.007, "keep")

    plain, steered = rates(make, nothing), rates(make, steer)
    assert steered[5][0] == 0.007
    scale = 0.007 / plain[5][0]
    assert [row[0] for row in steered[6:]] == pytest.approx([row[0] * scale for row in plain[6:]])
    assert [row[1] for row in steered] == [row[1] for row in plain]


@each_scheduler
def test_schedule_held_does_not_move_and_can_follow_again(make: Make) -> None:
    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            schedule.set(1, 0.003, "hold")
        if step == 10:
            schedule.set(1, 0.004, "keep")

    plain, steered = rates(make, nothing), rates(make, steer)
    assert {row[1] for row in steered[5:10]} == {0.003}
    assert [row[1] for row in steered[10:]] == pytest.approx([row[1] * 0.004 / plain[10][1] for row in plain[10:]])


@each_scheduler
def test_schedule_restored_goes_on_as_if_it_had_not_been_set(make: Make) -> None:
    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            memory = schedule.remember()
            schedule.set(0, 0.007, "keep")
            schedule.set(1, 0.007, "hold")
            schedule.restore(memory)

    assert rates(make, steer) == rates(make, nothing)


def test_schedule_at_zero_refuses_to_keep_a_shape_that_it_cannot_scale() -> None:
    owner = optimizer()
    schedule = SteeredSchedule(schedulers.LambdaLR(owner, lambda step: 0.0), lambda: owner.param_groups)
    assert "cannot be kept" in str(schedule.refusal(0, 1e-3, "keep"))
    assert schedule.refusal(0, 1e-3, "hold") is None


def test_schedule_stands_in_for_its_scheduler() -> None:
    owner = optimizer()
    plateau = schedulers.ReduceLROnPlateau(owner)
    schedule = SteeredSchedule(plateau, lambda: owner.param_groups)
    assert isinstance(schedule, schedulers.ReduceLROnPlateau)
    assert schedule.patience == plateau.patience
    assert schedule.state_dict() == plateau.state_dict()
    schedule.set(0, 0.5, "hold")
    assert schedule.get_last_lr() == [0.5, 0.2]


def test_group_names_are_the_groups_own_or_what_transformers_means() -> None:
    assert group_names([{"weight_decay": 0.1}, {"weight_decay": 0.0}]) == ["decay", "no_decay"]
    assert group_names([{"weight_decay": 0.1, "name": "trunk"}, {"weight_decay": 0.0}]) == ["trunk", "no_decay"]
    assert group_names([{}, {}, {"name": "head"}]) == ["group0", "group1", "head"]
