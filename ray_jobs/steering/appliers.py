"""Appliers: one per command kind, on the live training, with readback of every value.

An applier is local to its rank and is called at a step boundary. `check` says whether this rank can, and changes
nothing. `apply` does it and answers what it read before and after. `undo` puts back what the last `apply` changed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from control_plane.core.boundary import Applied
from control_plane.core.model import limits as rules
from control_plane.core.model.commands import MAX_LEARNING_RATE, Command, SetLearningRate, Stop
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents import SetSchedule
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Readback
from control_plane.core.rules.admission import find_group
from ray_jobs.steering.schedule import PlannedSchedule, SteeredSchedule

if TYPE_CHECKING:
    from ray_jobs.rank.live_training import LiveTraining, TrainingLoop


class Applier(Protocol):
    """Handler of one command kind on one rank."""

    def check(self, command: Command) -> str | None:
        """Return the reason why this rank cannot apply the command, or None. Changes nothing."""
        ...

    def apply(self, command: Command, step: int) -> Applied:
        """Apply the command after step `step`. If it raises, the command fails and `undo` is called on every rank."""
        ...

    def undo(self, command: Command) -> None:
        """Revert the last `apply`. Raises if it cannot."""
        ...


class LearningRateApplier:
    """Applier of `set_learning_rate`: one parameter group or all, in the live optimizer and the schedule after it."""

    def __init__(self, training: "LiveTraining", limits: Mapping[str, Limit] | None = None) -> None:
        self._groups, self._schedule = training.groups, training.schedule
        self._limits = limits or {}
        self._memory = self._schedule.remember()

    def check(self, command: Command) -> str | None:
        """Reject unknown groups, results out of bounds, and a schedule whose shape cannot be kept."""
        intent = _learning_rate(command)
        indices = self._indices(intent)
        if not indices:
            return f"there is no parameter group {intent.group!r}; this run has {self._schedule.names}"
        if reason := _without_effect([self._groups()[index] for index in indices]):
            return reason
        for index, value in self._targets(intent):
            if not 0 < value <= MAX_LEARNING_RATE:
                return (
                    f"group {index} would get the learning rate {value:g}; "
                    f"allowed is above 0 and at most {MAX_LEARNING_RATE:g}"
                )
            reason = self._schedule.reason_against(index, value, intent.schedule)
            if reason := reason or rules.reason_against_value(
                self._limits, LEARNING_RATE, self._groups()[index]["lr"], value
            ):
                return reason
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Set, then read back from the live optimizer. Raises `RuntimeError` if the readback differs."""
        intent = _learning_rate(command)
        self._memory = self._schedule.remember()
        before, targets = self._schedule.readings(), self._targets(intent)
        for index, value in targets:
            self._schedule.set(index, value, intent.schedule)
        after = self._schedule.readings()
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
        index = find_group(self._schedule.names, intent.group)
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


def _without_effect(groups: Iterable[Mapping[str, Any]]) -> str | None:
    """Why the optimizer would take a learning rate and not use it, or None."""
    if any(group.get("relative_step") for group in groups):
        return (
            "the optimizer (Adafactor with relative_step=True) makes its own learning rate in every step and uses none "
            "that is set; make it with relative_step=False and a learning rate"
        )
    return None


class ScheduleApplier:
    """Applier of `set_schedule`: plans a new schedule for each group, starting at its live learning rate."""

    def __init__(self, training: "LiveTraining", limits: Mapping[str, Limit] | None = None) -> None:
        self._loop: TrainingLoop = training.loop
        self._schedule: SteeredSchedule = training.schedule
        self._groups, self._limits = training.groups, limits or {}
        self._memory = self._schedule.remember()

    def check(self, command: Command) -> str | None:
        """Reject if no steps are left, if every learning rate is 0, or if the plan leaves the bounds."""
        intent, left = _planned_schedule(command), self._steps_left()
        if intent.over_steps is None and intent.shape != "constant" and left <= intent.warmup_steps:
            return f"a warm-up of {intent.warmup_steps} steps leaves none of the {left} that are to come"
        if reason := _without_effect(self._groups()):
            return reason
        courses = self._courses(intent)
        if all(course.start <= 0 for course in courses):
            return "the learning rate is 0, and every course from there would stay at 0; set a learning rate first"
        return next((reason for course in courses if (reason := self._reason_against(course))), None)

    def apply(self, command: Command, step: int) -> Applied:
        """Plan and read back: the next step's learning rates stay, and every group follows its planned schedule.

        Raises `RuntimeError` if the readback differs.
        """
        self._memory = self._schedule.remember()
        before = self._reading()
        self._schedule.follow(self._courses(_planned_schedule(command)))
        after = self._reading()
        if after["lr"] != before["lr"]:
            raise RuntimeError(f"the learning rates were {before['lr']} and read {after['lr']}")
        return Applied(before, after)

    def undo(self, command: Command) -> None:
        """Every group as it was."""
        self._schedule.restore(self._memory)

    def _reading(self) -> Readback:
        return {"lr": [float(rate) for rate in self._schedule.get_last_lr()], "schedule": self._schedule.modes()}

    def _steps_left(self) -> int:
        return self._loop.total_steps - self._loop.step

    def _courses(self, intent: SetSchedule) -> list[PlannedSchedule]:
        over_steps = intent.over_steps or max(1, self._steps_left() - intent.warmup_steps)
        return [
            PlannedSchedule(float(rate), intent.shape, intent.end, intent.warmup_steps, intent.peak, over_steps)
            for rate in self._schedule.get_last_lr()
        ]

    def _reason_against(self, course: PlannedSchedule) -> str | None:
        for value in (course.top, course.last):
            if value > MAX_LEARNING_RATE:
                return f"the learning rate would reach {value:g}; allowed is at most {MAX_LEARNING_RATE:g}"
        # The end is reached in many small steps, so that only the bounds of its value count.
        reached = rules.reason_against_value(self._limits, LEARNING_RATE, course.start, course.top)
        return reached or rules.reason_against_value(self._limits, LEARNING_RATE, course.last, course.last)


def _planned_schedule(command: Command) -> SetSchedule:
    assert isinstance(command.intent, SetSchedule)
    return command.intent


class FlagApplier:
    """Applier of `pause` and `resume`: the replica itself holds the flag (see `core.boundary.Replica`)."""

    def __init__(self, name: str, value: bool) -> None:
        self._reading = {name: value}

    def check(self, command: Command) -> str | None:
        """Always possible."""
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Return the new flag; the boundary enters it into the replica when all ranks agree."""
        return Applied(before={}, after=self._reading)

    def undo(self, command: Command) -> None:
        """Nothing was changed."""


class StopApplier:
    """Applier of `stop`: ends the training after this boundary, with a final checkpoint if requested."""

    def __init__(self, stop: Callable[[bool], None], save_now: Callable[[int], Readback]) -> None:
        self._stop, self._save_now = stop, save_now

    def check(self, command: Command) -> str | None:
        """Accept always; a checkpoint that cannot be saved fails in `apply`."""
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Save first: if the requested checkpoint fails, the run does not stop."""
        saved = self._save_now(step) if _saves(command) else {}
        self._stop(True)
        return Applied(before={}, after={"stopping": True} | saved)

    def undo(self, command: Command) -> None:
        """Continue the training."""
        self._stop(False)


def _saves(command: Command) -> bool:
    assert isinstance(command.intent, Stop)
    return command.intent.save


class UnsupportedApplier:
    """Applier that rejects every command of a kind, with a reason."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def check(self, command: Command) -> str | None:
        """Return the reason."""
        return self._reason

    def apply(self, command: Command, step: int) -> Applied:
        """Raise: the command was rejected before."""
        raise RuntimeError(self._reason)

    def undo(self, command: Command) -> None:
        """Nothing was changed."""


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Have the model in its evaluation mode, without gradients, with the same random numbers at each evaluation.

    Afterwards every module is in the mode in which it was, and the random generators are where they were.
    """
    import random

    import numpy

    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), random_state_kept():
            random.seed(0)
            numpy.random.seed(0)
            torch.manual_seed(0)
            yield
    finally:
        for module in was_training:
            module.training = True


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore all random generators afterwards: even making a data loader draws from the global one."""
    import random

    import numpy

    python, arrays = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
