"""Which steps the optimizer did not take, read off trainers of every kind. Real ones: see `test_training_session`."""

from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.steering.skipped_steps import readings, was_skipped


def engine(skipped_steps: int, **optimizer: Any) -> Any:
    return SimpleNamespace(engine=SimpleNamespace(skipped_steps=skipped_steps, optimizer=SimpleNamespace(**optimizer)))


def without_engine(step_was_skipped: bool) -> Any:
    return SimpleNamespace(engine=None, loop=SimpleNamespace(step_was_skipped=step_was_skipped))


@pytest.mark.parametrize(
    ("training", "read"),
    [
        (engine(0, overflow=False), {}),
        (engine(0), {}),  # without ZeRO and in 32 bits nobody looks
        (engine(2, overflow=False), {"skipped_steps": 2}),
        (engine(3, overflow=True), {"skipped_steps": 3, "step_was_skipped": True}),
        (without_engine(False), {}),
        (without_engine(True), {"step_was_skipped": True}),
    ],
)
def test_a_reading_tells_of_skipped_steps_only_where_there_are_some(training: Any, read: dict[str, Any]) -> None:
    assert readings(training) == read
    assert was_skipped(training) == ("step_was_skipped" in read)
