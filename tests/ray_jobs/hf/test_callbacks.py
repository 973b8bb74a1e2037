"""The callbacks around the edges of a training, without one."""

from types import SimpleNamespace
from typing import Any

from control_plane.api.messages import Point
from ray_jobs.hf.callbacks import LoggingCallback
from ray_jobs.rank.step_log import StepLog
from ray_jobs.steered_run import SteeredRun


class Listener:
    """Takes what is measured."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def measure(self, points: list[Point]) -> None:
        self.points += points


def logging_callback(link: Any) -> LoggingCallback:
    run = SteeredRun(SimpleNamespace(checkpoint_every_steps=0))  # type: ignore[arg-type]
    if link is not None:
        run.log = StepLog(SimpleNamespace(loop=SimpleNamespace(step=0)), link)  # type: ignore[arg-type]
    return LoggingCallback(run)


def log(callback: LoggingCallback, step: int, logs: dict[str, Any]) -> None:
    callback.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)  # type: ignore[arg-type]


def test_logging_before_the_training_has_begun_is_no_ones_business() -> None:
    callback = logging_callback(None)
    assert callback.on_log(None, SimpleNamespace(global_step=0), None, logs={"eval_loss": 2.0}) is None  # type: ignore[arg-type,func-returns-value]


def test_logging_forwards_numbers_and_leaves_out_what_is_not_a_measurement() -> None:
    listener = Listener()
    log(logging_callback(listener), 7, {"eval_loss": 2.0, "epoch": 0.5, "note": "text", "flag": True})
    assert [(point.step, point.name, point.value) for point in listener.points] == [(7, "eval_loss", 2.0)]


def test_logging_keeps_a_loss_that_is_not_finite() -> None:
    listener = Listener()
    log(logging_callback(listener), 7, {"eval_loss": float("nan")})
    assert [str(point.value) for point in listener.points] == ["nan"]
