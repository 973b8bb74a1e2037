"""The steered schedule over every kind of scheduler: its shape kept, a value held, and everything put back."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from ray_jobs.steering.schedule import PlannedSchedule, SteeredSchedule, group_names

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
    assert "cannot be kept" in str(schedule.reason_against(0, 1e-3, "keep"))
    assert schedule.reason_against(0, 1e-3, "hold") is None


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


def course(start: float = 0.1, **about: Any) -> PlannedSchedule:
    whole: dict[str, Any] = {"shape": "linear", "end": 0.0, "warmup_steps": 0, "peak": 1.0, "over_steps": 4} | about
    return PlannedSchedule(start=start, **whole)


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        (course(), [0.1, 0.075, 0.05, 0.025, 0.0, 0.0]),
        (course(end=0.5), [0.1, 0.0875, 0.075, 0.0625, 0.05, 0.05]),
        (course(shape="constant"), [0.1] * 6),
        (course(shape="cosine"), [0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4, 0.0, 0.0]),
        (course(warmup_steps=2, peak=3.0, over_steps=2), [0.1, 0.2, 0.3, 0.15, 0.0, 0.0]),
        (course(warmup_steps=2, peak=0.5, shape="constant"), [0.1, 0.075, 0.05, 0.05, 0.05, 0.05]),
        (course(peak=3.0), [0.1, 0.075, 0.05, 0.025, 0.0, 0.0]),  # a peak only where there is a warm-up
    ],
)
def test_course_goes_from_its_start_to_its_end_and_stays(planned: PlannedSchedule, expected: list[float]) -> None:
    assert [planned.at(steps) for steps in range(6)] == pytest.approx(expected, abs=1e-12)
    assert planned.at(0) == planned.start
    assert planned.at(10**6) == planned.last


@each_scheduler
def test_course_takes_the_schedulers_place_from_the_next_step_on(make: Make) -> None:
    planned: list[PlannedSchedule] = []

    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            planned.extend(course(rate, over_steps=10) for rate in schedule.get_last_lr())
            schedule.follow(planned)
            assert schedule.modes() == ["course", "course"]

    plain, steered = rates(make, nothing), rates(make, steer)
    assert steered[:6] == plain[:6]
    assert steered[5:] == [[each.at(steps) for each in planned] for steps in range(15)]


@each_scheduler
def test_course_keeps_its_shape_from_a_new_value_and_yields_to_one_that_is_held(make: Make) -> None:
    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            schedule.follow([course(rate, over_steps=10) for rate in schedule.get_last_lr()])
        if step == 10:
            schedule.set(0, 0.5, "keep")
            schedule.set(1, 0.7, "hold")
            assert schedule.modes() == ["course", "hold"]

    seen = rates(make, steer)
    assert [row[0] for row in seen[10:]] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0, 0], abs=1e-12)
    assert [row[1] for row in seen[10:]] == [0.7] * 10


@each_scheduler
def test_course_undone_never_was(make: Make) -> None:
    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            memory = schedule.remember()
            schedule.follow([course(rate) for rate in schedule.get_last_lr()])
            schedule.restore(memory)

    assert rates(make, steer) == rates(make, nothing)


@each_scheduler
@pytest.mark.parametrize("stopped_at", [5, 7, 12])
def test_course_recalled_goes_on_exactly(make: Make, stopped_at: int) -> None:
    def steer(step: int, schedule: SteeredSchedule) -> None:
        if step == 5:
            schedule.follow([course(rate, warmup_steps=3, peak=2.0, over_steps=9) for rate in schedule.get_last_lr()])

    whole = rates(make, steer)
    owner = optimizer()
    first = SteeredSchedule(make(owner), lambda: owner.param_groups)
    for step in range(stopped_at + 1):
        owner.step()
        first.step()
        steer(step, first)
    memory, state, live = first.memory(), first.state_dict(), first.get_last_lr()
    other = optimizer()
    second = SteeredSchedule(make(other), lambda: other.param_groups)
    second.inner.load_state_dict(state)
    second.recall(memory)
    for group, rate in zip(other.param_groups, live, strict=True):
        group["lr"] = rate
    assert second.memory() == memory
    seen = [live]
    for _ in range(stopped_at + 1, 20):
        other.step()
        second.step()
        seen.append(second.get_last_lr())
    assert seen == whole[stopped_at:]


def test_course_at_its_end_of_zero_refuses_to_keep_its_shape() -> None:
    owner = optimizer()
    schedule = SteeredSchedule(None, lambda: owner.param_groups)
    schedule.follow([course(over_steps=1), course(over_steps=2)])
    schedule.step()
    assert "cannot be kept" in str(schedule.reason_against(0, 1e-3, "keep"))
    assert schedule.reason_against(1, 1e-3, "keep") is None
    assert schedule.reason_against(0, 1e-3, "hold") is None


def test_names_of_groups_stay_when_what_they_follow_from_is_changed() -> None:
    owner = optimizer()
    owner.param_groups[0]["weight_decay"] = 0.1
    schedule = SteeredSchedule(None, lambda: owner.param_groups)
    assert "names" not in schedule.memory()
    owner.param_groups[1]["weight_decay"] = 0.1
    memory = schedule.memory()
    assert schedule.names == memory["names"] == ["decay", "no_decay"]
    later = SteeredSchedule(None, lambda: owner.param_groups)
    later.recall(memory)
    assert later.names == ["decay", "no_decay"]
