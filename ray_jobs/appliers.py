"""One applier per command kind, on a live trainer; every value is read back.

An applier is local to its rank and is called at a step boundary. `check` says whether this rank can, and changes
nothing. `apply` does it and answers what it read before and after. `undo` puts back what the last `apply` changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from control_plane.core.boundary import Applied
from control_plane.core.commands import MAX_LEARNING_RATE, Command, Evaluate, SetLearningRate, Stop
from control_plane.core.decisions import find_group
from control_plane.core.records import Reading
from ray_jobs.schedule import SteeredSchedule, group_names, live_groups


class Applier(Protocol):
    """What carries out the commands of one kind on one rank."""

    def check(self, command: Command) -> str | None:
        """None, or the reason why this rank cannot. Changes nothing."""
        ...

    def apply(self, command: Command, step: int) -> Applied:
        """Do it after step `step`. May raise; then the command fails, and `undo` is called on every rank."""
        ...

    def undo(self, command: Command) -> None:
        """Put back what the last `apply` changed. Raises if it cannot."""
        ...


class LearningRateApplier:
    """Sets the learning rate of one parameter group or of all, in the live optimizer and in what is to come."""

    def __init__(self, trainer: Any, schedule: SteeredSchedule) -> None:
        self._groups = live_groups(trainer)
        self._schedule = schedule
        self._memory = schedule.remember()

    def knobs(self) -> Reading:
        """The learning rate and the steering of each group, read from the live optimizer."""
        groups = self._groups()
        return {
            "lr": [float(group["lr"]) for group in groups],
            "schedule": self._schedule.modes(),
            "groups": group_names(groups),
        }

    def check(self, command: Command) -> str | None:
        """Unknown groups, results out of bounds, and shapes that cannot be kept are refused here."""
        intent = _learning_rate(command)
        indices = self._indices(intent)
        if not indices:
            return f"there is no parameter group {intent.group!r}; this run has {group_names(self._groups())}"
        for index, value in self._targets(intent):
            if not 0 < value <= MAX_LEARNING_RATE:
                return (
                    f"group {index} would get the learning rate {value:g}; "
                    f"allowed is above 0 and at most {MAX_LEARNING_RATE:g}"
                )
            refusal = self._schedule.refusal(index, value, intent.schedule)
            if refusal:
                return refusal
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Set, then read back from the live optimizer. Raises `RuntimeError` if it holds anything else."""
        intent = _learning_rate(command)
        self._memory = self._schedule.remember()
        before, targets = self.knobs(), self._targets(intent)
        for index, value in targets:
            self._schedule.set(index, value, intent.schedule)
        after = self.knobs()
        for index, value in targets:
            if after["lr"][index] != value:
                raise RuntimeError(f"group {index} was set to {value!r} and reads {after['lr'][index]!r}")
        return Applied(before, after)

    def undo(self, command: Command) -> None:
        """Every group as it was."""
        self._schedule.restore(self._memory)

    def _indices(self, intent: SetLearningRate) -> list[int]:
        groups = self._groups()
        if intent.group is None:
            return list(range(len(groups)))
        index = find_group(group_names(groups), intent.group)
        return [] if index is None else [index]

    def _targets(self, intent: SetLearningRate) -> list[tuple[int, float]]:
        groups = self._groups()
        return [
            (index, intent.value if intent.value is not None else float(groups[index]["lr"]) * (intent.factor or 1.0))
            for index in self._indices(intent)
        ]


def _learning_rate(command: Command) -> SetLearningRate:
    assert isinstance(command.intent, SetLearningRate)
    return command.intent


class FlagApplier:
    """Pause, resume: the replica itself holds the flag (see `core.boundary.Replica`); nothing else has to change."""

    def __init__(self, name: str, value: bool) -> None:
        self._reading = {name: value}

    def check(self, command: Command) -> str | None:
        """Always possible."""
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """The boundary enters the flag into the replica when all ranks agree."""
        return Applied(before={}, after=self._reading)

    def undo(self, command: Command) -> None:
        """Nothing was changed."""


class StopApplier:
    """Ends the training after this boundary, with a last checkpoint if one is asked for."""

    def __init__(self, stop: Callable[[bool], None], save_now: Callable[[int], Reading]) -> None:
        self._stop, self._save_now = stop, save_now

    def check(self, command: Command) -> str | None:
        """Always possible; whether the checkpoint is turns out when it is made."""
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Save first: a stop that cannot save as asked does not stop."""
        saved = self._save_now(step) if _saves(command) else {}
        self._stop(True)
        return Applied(before={}, after={"stopping": True} | saved)

    def undo(self, command: Command) -> None:
        """Go on."""
        self._stop(False)


def _saves(command: Command) -> bool:
    assert isinstance(command.intent, Stop)
    return command.intent.save


class EvaluateApplier:
    """Evaluates now, on all ranks; the reading is the evaluation loss, which Transformers gathers over the ranks."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def check(self, command: Command) -> str | None:
        """Needs an evaluation set."""
        assert isinstance(command.intent, Evaluate)
        return None if self._trainer.eval_dataset is not None else "this run has no evaluation set"

    def apply(self, command: Command, step: int) -> Applied:
        """Collective: every rank evaluates its part. The training's random state and plans are left as they were."""
        control = self._trainer.control
        planned = control.should_log, control.should_evaluate, control.should_save
        with random_state_kept():
            metrics = self._trainer.evaluate()
        # Logging the evaluation's own numbers crosses out what this step was going to log.
        control.should_log, control.should_evaluate, control.should_save = planned
        return Applied(before={}, after={"eval_loss": metrics.get("eval_loss")})

    def undo(self, command: Command) -> None:
        """Nothing was changed."""


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Even making a data loader draws from the global generator; an evaluation must not change the training."""
    import random

    import numpy

    python, arrays = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
