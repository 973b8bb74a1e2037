"""Knobs without a training: what is refused, what is written, what is put back; and those of a trainer."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from control_plane.core.model.commands import Change, Command, SetKnobs
from control_plane.core.model.errors import Conflict, Diverged, Invalid, NotFound
from control_plane.core.model.limits import Limit
from ray_jobs.hf.hf_knobs import clipping_place, interval_knobs
from ray_jobs.hf.live import TrainerLoop
from ray_jobs.process.deepspeed_internals import clipping_places
from ray_jobs.steering.knobs import Knob, Knobs, KnobsApplier
from ray_jobs.steering.partitions import Partitions
from ray_jobs.steering.training_knobs import NumberAttribute, clipping_knob, group_knobs, register_training_knobs

GROUPS = ["decay", "no_decay"]


class Settings:
    """What a script might hold."""

    def __init__(self) -> None:
        self.goal, self.count, self.active, self.weights = 1.0, 4, False, [0.5, 0.25]
        self.decay: list[float | None] = [0.1, 0.0]
        self.is_broken = False

    def knob(self, name: str, **about: Any) -> Knob:
        return Knob(name, get=lambda: getattr(self, name), set=lambda value: self._take(name, value), **about)

    def _take(self, name: str, value: Any) -> None:
        if self.is_broken and name == "count":
            raise OSError("the count is stuck")
        setattr(self, name, value)


@pytest.fixture
def settings() -> Settings:
    return Settings()


def make_knobs(settings: Settings, **limits: Limit) -> Knobs:
    knobs = Knobs(limits, lambda: GROUPS)
    knobs.register(settings.knob("goal", least=0.0, most=10.0))
    knobs.register(settings.knob("count", kind="integer", least=1))
    knobs.register(settings.knob("active", kind="switch"))
    knobs.register(settings.knob("weights", kind="numbers", least=0.0, below=1.0))
    knobs.register(settings.knob("decay", per_group=True, least=0.0, most=10.0, spares_zero=True))
    return knobs


def command(*changes: Change) -> Command:
    return Command(uuid=uuid4(), author="test", intent=SetKnobs(changes=changes))


def refusal(knobs: Knobs, *changes: Change) -> str:
    return KnobsApplier(knobs).check(command(*changes)) or ""


def read(settings: Settings) -> list[Any]:
    return [settings.goal, settings.count, settings.active, settings.weights, settings.decay]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Change(knob="gaol", value=1.0), "there is no knob 'gaol'; this run has goal, count"),
        (Change(knob="lr", value=1.0), "set_learning_rate"),
        (Change(knob="goal", value=True), "goal takes a finite number, not True"),
        (Change(knob="goal", value=(1.0, 2.0)), "goal takes a finite number"),
        (Change(knob="count", value=2**60), "count takes a whole number"),
        (Change(knob="goal", value=11.0), "goal is at most 10, not 11"),
        (Change(knob="goal", factor=0.5, group=0), "leave 'group' out"),
        (Change(knob="count", value=2.5), "count takes a whole number, not 2.5"),
        (Change(knob="count", value=0), "count is at least 1, not 0"),
        (Change(knob="active", value=1), "active takes true or false, not 1"),
        (Change(knob="active", factor=2.0), "cannot be multiplied"),
        (Change(knob="weights", value=(0.5, 1.0)), "weights is below 1, not 1"),
        (Change(knob="weights", value=(0.5,)), "weights has 2 numbers, and 1 were given"),
        (Change(knob="weights", value=0.5), "weights takes a list of finite numbers"),
        (Change(knob="decay", value=0.2, group="trunk"), "no parameter group 'trunk'; this run has ['decay',"),
        (Change(knob="decay", value=0.2, group=2), "no parameter group 2"),
        (Change(knob="decay", value=-0.2), "decay is at least 0, not -0.2"),
        (Change(knob="*:p", value=0.2), "there is no knob '*:p'"),
    ],
)
def test_planning_refuses_with_a_sentence_and_changes_nothing(settings: Settings, change: Change, told: str) -> None:
    before = read(settings)
    assert told in refusal(make_knobs(settings), change)
    assert read(settings) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), (0.5, float("nan"))])
def test_a_value_that_is_not_finite_cannot_be_said(value: Any) -> None:
    with pytest.raises(ValidationError):
        Change(knob="goal", value=value)


def test_a_factor_times_a_value_that_became_infinite_is_refused(settings: Settings) -> None:
    knobs = make_knobs(settings)
    settings.goal = float("inf")
    assert "finite" in refusal(knobs, Change(knob="goal", factor=0.5))


def test_setting_is_read_back_before_and_after(settings: Settings) -> None:
    changes = (
        Change(knob="goal", value=3),
        Change(knob="count", factor=2.0),
        Change(knob="active", value=True),
        Change(knob="weights", value=(0.25, 0.125)),
    )
    applied = KnobsApplier(make_knobs(settings)).apply(command(*changes), 1)
    assert applied.before == {"goal": 1.0, "count": 4, "active": False, "weights": [0.5, 0.25]}
    assert applied.after == {"goal": 3.0, "count": 8, "active": True, "weights": [0.25, 0.125]}
    assert read(settings)[:4] == [3.0, 8, True, [0.25, 0.125]]


def test_a_whole_number_may_be_spelt_with_a_point(settings: Settings) -> None:
    KnobsApplier(make_knobs(settings)).apply(command(Change(knob="count", value=10.0)), 1)
    assert repr(settings.count) == "10"


def test_two_groups_are_set_by_one_command(settings: Settings) -> None:
    changes = Change(knob="decay", value=0.3, group="decay"), Change(knob="decay", value=0.4, group=1)
    assert KnobsApplier(make_knobs(settings)).apply(command(*changes), 1).after == {"decay": [0.3, 0.4]}


def test_without_a_group_those_that_hold_zero_keep_it(settings: Settings) -> None:
    KnobsApplier(make_knobs(settings)).apply(command(Change(knob="decay", value=0.3)), 1)
    assert settings.decay == [0.3, 0.0]


def test_where_every_group_holds_zero_one_has_to_be_named(settings: Settings) -> None:
    settings.decay = [0.0, 0.0]
    assert "name the group" in refusal(make_knobs(settings), Change(knob="decay", value=0.3))
    assert refusal(make_knobs(settings), Change(knob="decay", value=0.3, group=0)) == ""


def test_a_group_without_the_value_is_left_out_and_cannot_be_named(settings: Settings) -> None:
    settings.decay = [0.1, None]
    knobs = make_knobs(settings)
    assert "has no decay" in refusal(knobs, Change(knob="decay", value=0.3, group=1))
    assert KnobsApplier(knobs).apply(command(Change(knob="decay", factor=2.0)), 1).after == {"decay": [0.2, None]}


def test_limits_bind_what_the_value_becomes(settings: Settings) -> None:
    knobs = make_knobs(settings, goal=Limit(max=4.0, max_factor=3.0), decay=Limit(min=0.05))
    assert "goal would be 5; this run allows at most 4" in refusal(knobs, Change(knob="goal", factor=5.0))
    assert "multiplied by 3.5" in refusal(knobs, Change(knob="goal", value=3.5))
    assert "at least 0.05" in refusal(knobs, Change(knob="decay", value=0.01))
    # The group that does not decay is below the limit, and stays so.
    assert refusal(knobs, Change(knob="decay", value=0.06)) == ""


def test_limits_bind_one_command_and_not_each_of_its_changes(settings: Settings) -> None:
    knobs = make_knobs(settings, decay=Limit(max_factor=3.0))
    twice = Change(knob="decay", factor=2.0), Change(knob="decay", factor=2.0, group=0)
    assert "multiplied by 4" in refusal(knobs, *twice)


def test_a_value_that_reads_otherwise_fails_and_all_is_put_back(settings: Settings) -> None:
    knobs = make_knobs(settings)
    live = {"rounded": 1.0}
    knobs.register(Knob("rounded", get=lambda: live["rounded"], set=lambda value: live.update(rounded=round(value))))
    applier, before = KnobsApplier(knobs), read(settings)
    both = command(Change(knob="goal", value=2.0), Change(knob="rounded", value=2.5))
    with pytest.raises(RuntimeError, match=r"rounded was set to 2\.5 and reads 2"):
        applier.apply(both, 1)
    applier.undo(both)
    assert (read(settings), live) == (before, {"rounded": 1.0})
    assert knobs.memory() == {}


def test_a_set_that_raises_undoes_what_was_set_before_it(settings: Settings) -> None:
    applier, before = KnobsApplier(make_knobs(settings)), read(settings)
    settings.is_broken = True
    both = command(Change(knob="goal", value=2.0), Change(knob="count", value=9))
    with pytest.raises(OSError, match="stuck"):
        applier.apply(both, 1)
    settings.is_broken = False
    applier.undo(both)
    assert read(settings) == before


def test_a_command_that_cannot_be_planned_undoes_nothing_of_the_one_before(settings: Settings) -> None:
    applier = KnobsApplier(make_knobs(settings))
    applier.apply(command(Change(knob="goal", value=2.0)), 1)
    lost = command(Change(knob="gaol", value=3.0))
    with pytest.raises(NotFound):
        applier.apply(lost, 2)
    applier.undo(lost)
    assert settings.goal == 2.0


@pytest.mark.parametrize("name", ["goal", "lr", "schedule", "groups", "a:b"])
def test_a_name_is_registered_once_and_is_not_one_of_the_runs_own(settings: Settings, name: str) -> None:
    with pytest.raises(Conflict):
        make_knobs(settings).register(Knob(name, get=lambda: 1.0, set=lambda value: None))


def test_a_knob_whose_live_value_is_none_of_its_kind_is_not_registered(settings: Settings) -> None:
    with pytest.raises(Invalid, match="finite"):
        Knobs().register(Knob("loss", get=lambda: float("nan"), set=lambda value: None))


def test_a_checkpoint_keeps_what_was_set_and_nothing_else(settings: Settings) -> None:
    knobs = make_knobs(settings)
    assert knobs.memory() == {}
    changes = Change(knob="goal", value=2.0), Change(knob="decay", value=0.3)
    KnobsApplier(knobs).apply(command(*changes), 1)
    settings.goal = 2.5  # it may go on by itself
    assert knobs.memory() == {"goal": 2.5}  # what is in the optimizer's groups is saved with them


def test_a_new_training_holds_what_was_set_in_the_old_one_however_late_it_is_registered() -> None:
    new, early, late = Settings(), Knobs(), {"goal": 3.5, "count": 7}
    early.register(new.knob("goal"))
    early.recall(late)
    assert early.memory() == late
    assert new.count == 4
    early.register(new.knob("count", kind="integer"))
    assert (new.goal, new.count, early.memory()) == (3.5, 7, late)


def test_a_restored_value_that_reads_otherwise_is_told(settings: Settings) -> None:
    knobs = Knobs()
    knobs.register(Knob("fixed", get=lambda: 1.0, set=lambda value: None))
    with pytest.raises(Diverged, match=r"fixed was 2\.0 and reads 1\.0"):
        knobs.recall({"fixed": 2.0})


# --- The optimizer's groups, clipping, intervals ---


def test_every_number_of_the_groups_is_a_knob_but_rates_and_flags() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "weight_decay": 0.1}, {"params": [parameters[1]], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.99))
    optimizer.param_groups[0]["steps_seen"] = optimizer.param_groups[1]["steps_seen"] = 3
    knobs = Knobs(group_names=lambda: GROUPS)
    for knob in group_knobs(lambda: optimizer.param_groups):
        knobs.register(knob)
    assert knobs.readings() == {"betas": [[0.9, 0.99]] * 2, "eps": [1e-8] * 2, "weight_decay": [0.1, 0.0]}
    changes = Change(knob="betas", value=(0.8, 0.95), group="decay"), Change(knob="eps", factor=10.0)
    KnobsApplier(knobs).apply(command(*changes), 1)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.95), (0.9, 0.99)]
    assert [group["eps"] for group in optimizer.param_groups] == [1e-7, 1e-7]


def fake_trainer(**arguments: Any) -> Any:
    args = {"max_grad_norm": 1.0, "logging_strategy": "steps", "logging_steps": 0.1, "eval_strategy": "no"}
    args |= {"max_steps": -1} | arguments
    parameter = nn.Parameter(torch.zeros(1))
    return SimpleNamespace(
        args=SimpleNamespace(**args),
        optimizer=torch.optim.SGD([parameter], lr=0.1, momentum=0.9),
        state=SimpleNamespace(logging_steps=5, global_step=8, max_steps=10),
        control=SimpleNamespace(should_training_stop=False),
        eval_dataset=None,
        most_steps=None,
    )


def registered(trainer: Any, saver: Any = None, is_stopping: bool = False) -> Knobs:
    knobs, partitions = Knobs(), Partitions(nn.Linear(1, 1), trainer.optimizer)
    intervals, clipping = interval_knobs(trainer), clipping_place(trainer)
    saver = saver or SimpleNamespace(every_steps=0)
    register_training_knobs(knobs, partitions, TrainerLoop(trainer), saver, lambda: is_stopping, intervals, clipping)
    return knobs


def places(engine: Any) -> dict[str, NumberAttribute]:
    return {name: NumberAttribute(*place) for name, place in clipping_places(engine).items()}


def test_clipping_is_written_to_all_its_places_and_told_if_they_disagree() -> None:
    trainer, config = fake_trainer(), SimpleNamespace(gradient_clipping=1.0)
    engine: Any = SimpleNamespace(optimizer=SimpleNamespace(clip_grad=1.0), _config=config)
    knob = clipping_knob(places(engine) | clipping_place(trainer))
    assert knob is not None
    knob.set(0.5)
    assert (engine.optimizer.clip_grad, config.gradient_clipping, trainer.args.max_grad_norm) == (0.5,) * 3
    config.gradient_clipping = 0.7
    with pytest.raises(RuntimeError, match=r"clip_grad is 0\.5, the engine's gradient_clipping is 0\.7"):
        knob.get()


def test_clipping_that_is_in_force_is_what_the_other_places_are_given_at_first() -> None:
    trainer = fake_trainer()
    engine: Any = SimpleNamespace(optimizer=object(), _config=SimpleNamespace(gradient_clipping=0.0))
    knob = clipping_knob(places(engine) | clipping_place(trainer))
    assert knob is not None
    assert knob.get() == 0.0
    assert trainer.args.max_grad_norm == 0.0


def test_a_loop_that_clips_by_itself_has_no_such_knob() -> None:
    assert clipping_knob({}) is None


def test_an_infinite_norm_is_left_alone() -> None:
    knobs = registered(fake_trainer(max_grad_norm=float("inf")))
    assert "gradient_clipping" not in knobs.readings()


def test_intervals_are_whole_numbers_in_the_state_and_in_the_arguments() -> None:
    trainer, saver = fake_trainer(), SimpleNamespace(every_steps=0)
    knobs = registered(trainer, saver)
    assert knobs.readings()["logging_steps"] == 5
    assert "eval_steps" not in knobs.readings()  # nothing is evaluated every so many steps
    changes = Change(knob="logging_steps", value=2), Change(knob="checkpoint_steps", value=3)
    KnobsApplier(knobs).apply(command(*changes), 1)
    assert (trainer.state.logging_steps, trainer.args.logging_steps, saver.every_steps) == (2, 2, 3)


def test_a_total_that_is_no_longer_ahead_or_cannot_be_reached_is_refused() -> None:
    trainer = fake_trainer()
    knobs = registered(trainer)
    assert "total_steps is at least 9" in refusal(knobs, Change(knob="total_steps", value=8))
    assert refusal(knobs, Change(knob="total_steps", value=9)) == ""
    trainer.most_steps = 10
    assert "at most 10" in refusal(knobs, Change(knob="total_steps", value=11))


def test_more_steps_at_the_last_boundary_take_the_end_back_and_undoing_them_ends_again() -> None:
    trainer = fake_trainer()
    knobs = registered(trainer)
    trainer.state.global_step, trainer.control.should_training_stop = 10, True
    applier, more = KnobsApplier(knobs), command(Change(knob="total_steps", value=20))
    applier.apply(more, 10)
    assert trainer.state.max_steps == 20
    assert (trainer.args.max_steps, trainer.control.should_training_stop) == (-1, False)
    applier.undo(more)
    assert (trainer.state.max_steps, trainer.control.should_training_stop) == (10, True)


def test_more_steps_do_not_take_back_a_stop_that_somebody_asked_for() -> None:
    trainer = fake_trainer()
    knobs = registered(trainer, is_stopping=True)
    trainer.state.global_step, trainer.control.should_training_stop = 10, True
    KnobsApplier(knobs).apply(command(Change(knob="total_steps", value=20)), 10)
    assert trainer.control.should_training_stop
