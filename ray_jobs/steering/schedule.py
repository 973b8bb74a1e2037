"""Steerable learning-rate schedule: a wrapper around any scheduler.

A bare edit of `param_groups[i]["lr"]` lasts until the scheduler's next step, and schedulers keep their base values in
different places (`base_lrs`, `max_lrs`, `org_lrs`, or only in the groups). So the scheduler is not edited: it is
wrapped. It goes on computing its own *scheduled* values, undisturbed, and after each of its steps the wrapper turns
them into live ones: times a factor that keeps the shape of the rest, or a constant value. This is exact for every
scheduler with a `step`, also for those that compute each value from the one before, because before the inner step the
groups get their scheduled values back. A `PlannedSchedule` replaces the scheduler: a new plan from here on.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from control_plane.core.model.records import Readback

ParamGroups = list[dict[str, Any]]
Mode = Literal["keep", "hold", "course"]


@dataclass(frozen=True, slots=True)
class PlannedSchedule:
    """Planned schedule of one group: from `start` to `peak` times it in `warmup_steps`, if there are any; then, in
    `shape`, to `end` times that in `over_steps` (at least 1); then constant."""

    start: float
    shape: Literal["constant", "linear", "cosine"]
    end: float
    warmup_steps: int
    peak: float
    over_steps: int

    @property
    def top(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.start * self.peak if self.warmup_steps else self.start

    @property
    def last(self) -> float:
        """Learning rate at the end."""
        return self.top if self.shape == "constant" else self.top * self.end

    def at(self, steps: int) -> float:
        """Return the learning rate after `steps` steps of the scheduler."""
        if steps < self.warmup_steps:
            return self.start + (self.top - self.start) * (steps / self.warmup_steps)
        progress = (steps - self.warmup_steps) / self.over_steps
        if progress <= 0 or self.shape == "constant":
            return self.top
        if progress >= 1:
            return self.last
        left = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.last + (self.top - self.last) * left


@dataclass(frozen=True, slots=True)
class Steering:
    """Rule for one group's live learning rate, from its scheduled one or from a planned schedule."""

    mode: Mode = "keep"
    value: float = 1.0  # keep, course: the factor; hold: the learning rate
    course: PlannedSchedule | None = None
    steps: int = 0  # of the scheduler, since the course began

    def live(self, scheduled: float) -> float:
        """Return the learning rate for the optimizer."""
        if self.mode == "hold":
            return self.value
        return self.planned(scheduled) * self.value

    def planned(self, scheduled: float) -> float:
        """Return the planned learning rate: of the planned schedule, if there is one, or of the scheduler."""
        return self.course.at(self.steps) if self.course is not None else scheduled

    def stepped(self) -> "Steering":
        """Return the rule after one more step of the scheduler."""
        return replace(self, steps=self.steps + 1) if self.course is not None else self

    def memory(self) -> list[Any]:
        """Return the plain form for a checkpoint."""
        kept: list[Any] = [self.mode, self.value]
        return kept if self.course is None else [*kept, asdict(self.course), self.steps]

    @classmethod
    def recalled(cls, mode: Mode, value: float, course: dict[str, Any] | None = None, steps: int = 0) -> "Steering":
        """Make a rule from its `memory`."""
        return cls(mode, float(value), PlannedSchedule(**course) if course is not None else None, steps)


UNSTEERED = Steering()


class Scheduler(Protocol):
    """Learning-rate scheduler of torch, DeepSpeed, Transformers or a script."""

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Set the groups' learning rates for the next step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""


class SteeredSchedule:
    """Wrapper in place of a scheduler: `step`, `get_last_lr`, `state_dict` and the rest work as before.

    `groups` returns the live optimizer's parameter groups. `inner` may be None: then every value is constant.
    """

    def __init__(self, inner: "Scheduler | None", groups: Callable[[], ParamGroups]) -> None:
        self.inner = inner
        self._groups = groups
        self._scheduled = [float(group["lr"]) for group in groups()]
        self._steering = [UNSTEERED] * len(self._scheduled)
        # Names follow from what the groups hold at first; they must not change when that is steered.
        self.names = group_names(groups())

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # Transformers asks isinstance(scheduler, ReduceLROnPlateau) to choose how to step it.
        return type(self.inner) if self.inner is not None else SteeredSchedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the inner scheduler on its own values, then apply the steered ones."""
        groups = self._groups()
        for group, scheduled in zip(groups, self._scheduled, strict=True):
            group["lr"] = scheduled
        if self.inner is not None:
            self.inner.step(*args, **kwargs)
        self._scheduled = [float(group["lr"]) for group in groups]
        self._steering = [steering.stepped() for steering in self._steering]
        for group, scheduled, steering in zip(groups, self._scheduled, self._steering, strict=True):
            group["lr"] = steering.live(scheduled)

    def get_last_lr(self) -> list[float]:
        """Return the live learning rate of each group, as the optimizer holds it."""
        return [group["lr"] for group in self._groups()]

    def state_dict(self) -> dict[str, Any]:
        """Return the inner scheduler's state; the steering is saved by `memory`."""
        return dict(self.inner.state_dict()) if self.inner is not None else {}

    def reason_against(self, index: int, value: float, mode: Literal["keep", "hold"]) -> str | None:
        """Return the reason why group `index` cannot be set, or None."""
        planned = self._steering[index].planned(self._scheduled[index])
        course = self._steering[index].course is not None
        if mode == "keep" and planned <= 0 and (self.inner is not None or course):
            return (
                f"the schedule of group {index} is at {planned:g} here, so its shape cannot be kept "
                f"from {value:g}; hold the value instead, or wait for the schedule to leave zero"
            )
        return None

    def set(self, index: int, value: float, mode: Literal["keep", "hold"]) -> None:
        """Set group `index` to exactly `value` for the next step, and steer the steps after it."""
        steering = self._steering[index]
        planned = steering.planned(self._scheduled[index])
        if mode == "hold" or planned <= 0:
            self._steering[index] = Steering("hold", value)
        else:
            kept: Mode = "keep" if steering.course is None else "course"
            self._steering[index] = replace(steering, mode=kept, value=value / planned)
        # Not scheduled * (value / scheduled), which may differ in the last bit: the value that was asked for.
        self._groups()[index]["lr"] = value

    def follow(self, courses: list[PlannedSchedule]) -> None:
        """Have each group follow its planned schedule; the values for the next step stay."""
        self._steering = [Steering("course", 1.0, course) for course in courses]

    def readings(self) -> Readback:
        """Return learning rate and mode of each group, and the groups' names."""
        return {
            "lr": [float(rate) for rate in self.get_last_lr()],
            "schedule": self.modes(),
            "groups": list(self.names),
        }

    def modes(self) -> list[str]:
        """Return `keep`, `hold` or `course` for each group."""
        return [steering.mode for steering in self._steering]

    def remember(self) -> tuple[list[Steering], list[float]]:
        """Return a snapshot for `restore`."""
        return list(self._steering), [group["lr"] for group in self._groups()]

    def memory(self) -> dict[str, Any]:
        """Return the steering for a checkpoint: each group's scheduled value, mode, factor or constant, plan.

        With the names of the groups only where the live groups would give others.
        """
        kept = {
            "scheduled": list(self._scheduled),
            "steering": [steering.memory() for steering in self._steering],
        }
        return kept if self.names == group_names(self._groups()) else kept | {"names": list(self.names)}

    def recall(self, memory: dict[str, Any]) -> None:
        """Restore the steering from a checkpoint. The groups' live values are restored with the groups."""
        self._scheduled = [float(value) for value in memory["scheduled"]]
        self._steering = [Steering.recalled(*kept) for kept in memory["steering"]]
        self.names = list(memory.get("names", self.names))

    def restore(self, memory: tuple[list[Steering], list[float]]) -> None:
        """Restore a snapshot of `remember`."""
        steering, rates = memory
        self._steering = list(steering)
        for group, rate in zip(self._groups(), rates, strict=True):
            group["lr"] = rate


def group_names(groups: ParamGroups) -> list[str]:
    """Return a name for each parameter group: its own, Transformers' decay and no_decay, or its index."""
    if len(groups) == 2 and [bool(group.get("weight_decay")) for group in groups] == [True, False]:
        return [str(group.get("name", name)) for group, name in zip(groups, ("decay", "no_decay"), strict=True)]
    return [str(group.get("name", f"group{index}")) for index, group in enumerate(groups)]
