"""A loop of the user's own that was started by hand: it is a loop, and misuse is refused."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from control_plane.core.model.errors import Conflict, Invalid
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.loop.live import PlainLoop, live
from ray_jobs.loop.session import TrainingSession
from ray_jobs.steering.schedule import PlannedSchedule


def alone(steps: int = 3) -> TrainingSession:
    net = nn.Linear(2, 1)
    return TrainingSession(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=steps)


def test_by_hand_it_is_a_loop_with_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    made = []
    with alone() as session:
        for step in session.steps():
            session.step({"loss": torch.tensor(1.0)})
            made.append(step)
    assert made == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records if "cannot be steered" in record.getMessage()]


def test_a_round_that_does_not_end_its_step_is_found() -> None:
    with alone() as session, pytest.raises(RuntimeError, match=r"calls session\.step\(\) once"):
        for _ in session.steps():
            pass


def test_a_step_that_was_not_begun_is_refused() -> None:
    with alone() as session, pytest.raises(RuntimeError, match="once in each round"):
        session.step()


def test_steps_outside_of_the_session_are_refused() -> None:
    with pytest.raises(RuntimeError, match="inside of `with session:`"):
        next(iter(alone().steps()))


@pytest.mark.parametrize("metrics", [{"loss": "low"}, {"loss": torch.zeros(2)}, {"x" * 65: 1.0}, {"": 1.0}])
def test_what_is_no_measurement_is_refused(metrics: dict[str, Any]) -> None:
    with alone() as session:
        steps = session.steps()
        next(steps)
        with pytest.raises(Invalid, match="the measurement"):
            session.step(metrics)


def test_a_session_without_anything_to_train_is_refused() -> None:
    with pytest.raises(Invalid, match="an engine, or a model and its optimizer"):
        TrainingSession(nn.Linear(1, 1), total_steps=1)


def test_a_loop_asks_for_the_samples_of_its_step_and_for_its_place_in_the_data() -> None:
    net, order = nn.Linear(2, 1), SampleOrder(20, seed=7, global_batch_samples=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with TrainingSession(net, optimizer, total_steps=7, sample_order=order) as session:
        taken = []
        for step in session.steps():
            assert session.data_step == step + (3 if step > 1 else 0)
            taken.append(session.samples().tolist())
            session.step()
            if step == 1:
                assert session._loop.reason_not_to_skip() is None
                session._loop.skip(5)
                session._loop.take_back_skip()
                session._loop.skip(3)
    assert taken == [order.batch(number).tolist() for number in (1, 2, 6, 7, 8, 9, 10)]


def test_a_loop_that_chooses_its_own_samples_says_why_none_can_be_skipped() -> None:
    session = alone()
    assert "session.data_step" in str(session._loop.reason_not_to_skip())
    with pytest.raises(RuntimeError, match="needs a sample_order"):
        session.samples()


def test_a_global_batch_of_nothing_is_refused() -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(Invalid, match="at least 1"):
        TrainingSession(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=1, global_batch_samples=-1)


def test_a_loop_without_a_schedule_keeps_its_own_rates_until_a_course_is_set() -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    session = TrainingSession(net, optimizer, total_steps=8)
    training = live(PlainLoop(8), net, optimizer)
    run: Any = SimpleNamespace(training=training)
    optimizer.param_groups[0]["lr"] = 0.25
    session._step_schedule(run)
    assert optimizer.param_groups[0]["lr"] == 0.25
    training.schedule.follow([PlannedSchedule(0.25, "linear", 0.0, 0, 1.0, 4)])
    rates = []
    for _ in range(4):
        session._step_schedule(run)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.1875, 0.125, 0.0625, 0.0]


def test_state_of_a_loop_is_what_transformers_would_write() -> None:
    from transformers import TrainerState

    assert PlainLoop(8).state() == dataclasses.asdict(TrainerState(max_steps=8))


def test_a_plain_loop_imports_no_transformers() -> None:
    program = (
        "import sys, torch; from ray_jobs.training_session import TrainingSession\n"
        "from ray_jobs.loop.live import PlainLoop, live\n"
        "net = torch.nn.Linear(2, 1); optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "with TrainingSession(net, optimizer, total_steps=1) as session:\n"
        "    for _ in session.steps(): session.step({'loss': 1.0})\n"
        "live(PlainLoop(1), net, optimizer)\n"
        "assert 'transformers' not in sys.modules, 'transformers was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_knob_whose_name_is_taken_is_refused() -> None:
    session = alone()
    session.register_knob("temperature", get=lambda: 1.0, set=lambda value: None)
    with pytest.raises(Conflict, match="temperature"):
        session.register_knob("temperature", get=lambda: 1.0, set=lambda value: None)
