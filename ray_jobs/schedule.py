"""A learning-rate schedule that can be steered while it runs.

A bare edit of `param_groups[i]["lr"]` lasts until the scheduler's next step, and schedulers keep their base values in
different places (`base_lrs`, `max_lrs`, `org_lrs`, or only in the groups). So the scheduler is not edited: it is
wrapped. It goes on computing its own *scheduled* values, undisturbed, and after each of its steps the wrapper turns
them into live ones: times a factor that keeps the shape of what is left, or a value that is held. This is exact for
every scheduler with a `step`, also for those that compute each value from the one before, because before the inner
step the groups are given their scheduled values back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

ParamGroups = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Steering:
    """How one group's live value follows from its scheduled one."""

    mode: Literal["keep", "hold"] = "keep"
    value: float = 1.0  # keep: the factor; hold: the learning rate

    def live(self, scheduled: float) -> float:
        """The learning rate that the optimizer gets."""
        return self.value if self.mode == "hold" else scheduled * self.value


UNSTEERED = Steering()


class SteeredSchedule:
    """Stands where a scheduler stood: `step`, `get_last_lr`, `state_dict` and the rest work as before.

    `groups` returns the live optimizer's parameter groups. `inner` may be None: then every value is held.
    """

    def __init__(self, inner: Any, groups: Callable[[], ParamGroups]) -> None:
        self.inner = inner
        self._groups = groups
        self._scheduled = [float(group["lr"]) for group in groups()]
        self._steering = [UNSTEERED] * len(self._scheduled)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # Transformers asks isinstance(scheduler, ReduceLROnPlateau) to choose how to step it.
        return type(self.inner) if self.inner is not None else SteeredSchedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the inner scheduler on its own values, then put the steered ones in force."""
        groups = self._groups()
        for group, scheduled in zip(groups, self._scheduled, strict=True):
            group["lr"] = scheduled
        if self.inner is not None:
            self.inner.step(*args, **kwargs)
        self._scheduled = [float(group["lr"]) for group in groups]
        for group, scheduled, steering in zip(groups, self._scheduled, self._steering, strict=True):
            group["lr"] = steering.live(scheduled)

    def get_last_lr(self) -> list[float]:
        """The live learning rate of each group: what the optimizer holds, not what the schedule meant."""
        return [group["lr"] for group in self._groups()]

    def state_dict(self) -> dict[str, Any]:
        """The inner scheduler's state. What was steered is a knob, and is saved with the knobs."""
        return dict(self.inner.state_dict()) if self.inner is not None else {}

    def refusal(self, index: int, value: float, mode: Literal["keep", "hold"]) -> str | None:
        """Why group `index` cannot be set, or None."""
        if mode == "keep" and self._scheduled[index] <= 0 and self.inner is not None:
            return (
                f"the schedule of group {index} is at {self._scheduled[index]:g} here, so its shape cannot be kept "
                f"from {value:g}; hold the value instead, or wait for the schedule to leave zero"
            )
        return None

    def set(self, index: int, value: float, mode: Literal["keep", "hold"]) -> None:
        """Give group `index` exactly `value` for the next step, and steer the steps after it."""
        scheduled = self._scheduled[index]
        if mode == "hold" or scheduled <= 0:
            self._steering[index] = Steering("hold", value)
        else:
            self._steering[index] = Steering("keep", value / scheduled)
        # Not scheduled * (value / scheduled), which may differ in the last bit: the value that was asked for.
        self._groups()[index]["lr"] = value

    def modes(self) -> list[str]:
        """`keep` or `hold` for each group."""
        return [steering.mode for steering in self._steering]

    def remember(self) -> tuple[list[Steering], list[float]]:
        """What `restore` needs to put everything back as it is now."""
        return list(self._steering), [group["lr"] for group in self._groups()]

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps of the steering: each group's scheduled value, mode and factor or held value."""
        return {
            "scheduled": list(self._scheduled),
            "steering": [[steering.mode, steering.value] for steering in self._steering],
        }

    def recall(self, memory: dict[str, Any]) -> None:
        """Steer as it was when `memory` was taken. The groups' live values are restored with the groups."""
        self._scheduled = [float(value) for value in memory["scheduled"]]
        self._steering = [Steering(mode, float(value)) for mode, value in memory["steering"]]

    def restore(self, memory: tuple[list[Steering], list[float]]) -> None:
        """Put back what `remember` saw."""
        steering, rates = memory
        self._steering = list(steering)
        for group, rate in zip(self._groups(), rates, strict=True):
            group["lr"] = rate


def live_groups(trainer: Any) -> Callable[[], ParamGroups]:
    """The parameter groups that the next optimizer step will read, of DeepSpeed's engine or of a plain Trainer."""
    engine = getattr(trainer, "deepspeed", None)
    return lambda: (engine if engine is not None else trainer).optimizer.param_groups


def steer_schedule(trainer: Any) -> SteeredSchedule:
    """Put a `SteeredSchedule` wherever `trainer` or its DeepSpeed engine would step the scheduler.

    With a DeepSpeed scheduler, or with DeepSpeed's optimizer, the engine steps it and the Trainer holds a wrapper
    that does nothing; with Transformers' optimizer and scheduler, the Trainer steps it.
    """
    outer = trainer.lr_scheduler
    inner = getattr(outer, "scheduler", outer)
    steered = SteeredSchedule(inner, live_groups(trainer))
    engine = getattr(trainer, "deepspeed", None)
    if engine is not None and engine.lr_scheduler is inner:
        engine.lr_scheduler = steered
    if inner is not outer:
        outer.scheduler = steered
    else:
        trainer.lr_scheduler = trainer.callback_handler.lr_scheduler = steered
    trainer.steered_schedule = steered
    return steered


def group_names(groups: ParamGroups) -> list[str]:
    """A name for each parameter group: its own, or what Transformers means by the two it makes, or its index."""
    if len(groups) == 2 and [bool(group.get("weight_decay")) for group in groups] == [True, False]:
        return [str(group.get("name", name)) for group, name in zip(groups, ("decay", "no_decay"), strict=True)]
    return [str(group.get("name", f"group{index}")) for index, group in enumerate(groups)]
