"""Knobs of a training, with or without DeepSpeed: hyper-parameters, gradient clipping, checkpoint interval, length.

    register_training_knobs(knobs, partitions, loop, saver, ...)     when the engine and the schedule exist

Each reads and writes what the next step will use. Where a value lives in several places, all of them are written, and
all of them are read back.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from control_plane.core.model.errors import Conflict, Invalid
from control_plane.core.model.knobs import KnobKind, KnobValue, is_number
from ray_jobs.process.deepspeed_internals import can_clip, clipping_places
from ray_jobs.steering.knobs import Knob, Knobs
from ray_jobs.steering.partitions import Partitions
from ray_jobs.steering.schedule import ParamGroups

if TYPE_CHECKING:
    from ray_jobs.rank.live_training import TrainingLoop

log = logging.getLogger(__name__)

NOT_KNOBS = frozenset(
    {"params", "name", "lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "param_names"}
)
"""Keys of optimizer groups that are no knobs: the learning rate, and state of schedulers."""

BOUNDS: dict[str, dict[str, float]] = {
    "weight_decay": {"least": 0.0, "most": 10.0},
    "betas": {"least": 0.0, "below": 1.0},
    "eps": {"above": 0.0, "most": 1.0},
    "momentum": {"least": 0.0, "below": 1.0},
}
UNBOUNDED: dict[str, Any] = {"least": None, "most": None, "above": None, "below": None}

DESCRIPTIONS = {
    "weight_decay": "Weight decay. Without a group, groups that have none (biases, norms) keep none.",
    "betas": "Adam's decay rates of the first and the second moment.",
    "eps": "What keeps the optimizer from dividing by zero.",
    "momentum": "Momentum.",
}


class NumberAttribute:
    """Attribute that holds a number."""

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name

    def get(self) -> float:
        """Return the live value; None counts as 0."""
        return float(getattr(self._owner, self._name) or 0.0)

    def set(self, value: float) -> None:
        """Write."""
        setattr(self._owner, self._name, value)


class Saver(Protocol):
    """Saves a checkpoint every `every_steps` steps (0: never)."""

    every_steps: int


def register_training_knobs(
    knobs: Knobs,
    partitions: Partitions,
    loop: "TrainingLoop",
    saver: Saver | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
    intervals: Sequence[Knob] = (),
    clipping: Mapping[str, NumberAttribute] = MappingProxyType({}),
) -> None:
    """Register every knob of this training.

    Args:
        saver: None if no checkpoints are saved; then the training has no `total_steps` to set either.
        is_stopping: whether a command has stopped the run, so that a larger `total_steps` must not continue it.
        intervals: further knobs, in front of the ones made here.
        clipping: places of the clipping norm, by name, beside DeepSpeed's, which are in force if there are any.
    """
    engine = partitions.engine
    made: list[Knob] = [*group_knobs(partitions.groups), *intervals]
    places = (
        {name: NumberAttribute(*place) for name, place in clipping_places(engine).items()} if engine is not None else {}
    )
    if (knob := clipping_knob(places | dict(clipping), can_clip(engine))) is not None:
        made.append(knob)
    if saver is not None:
        made.append(_checkpoint_knob(saver))
        made.append(_total_steps_knob(loop, is_stopping))
    for knob in made:
        _register(knobs, knob)


def _register(knobs: Knobs, knob: Knob) -> None:
    """Register a knob, without bounds if its live value is outside of them (an infinite norm); a script's own knob of
    that name takes precedence."""
    if knob.reason_against(knob.get()):
        knob = replace(knob, **UNBOUNDED)
    try:
        knobs.register(knob)
    except (Conflict, Invalid) as refusal:
        log.warning("the trainer's %s cannot be set: %s", knob.name, refusal.reason)


# --- The optimizer's groups ---


def group_knobs(groups: Callable[[], ParamGroups]) -> list[Knob]:
    """Return a knob for each hyper-parameter (number or tuple of numbers) of the groups except the learning rate."""
    names = dict.fromkeys(name for group in groups() for name in group if name not in NOT_KNOBS)
    knobs = []
    for name in names:
        kind = _kind_of(name, [group[name] for group in groups() if group.get(name) is not None])
        if kind is not None:
            knobs.append(_group_knob(name, kind, groups))
    return knobs


def _kind_of(name: str, values: list[Any]) -> KnobKind | None:
    if not values:
        return None
    if all(isinstance(value, list | tuple) and value and all(map(is_number, value)) for value in values):
        return "numbers"
    # A whole number is a flag or a counter, unless it is the 0 of a hyper-parameter that is known, or others are not.
    known = name in BOUNDS or any(isinstance(value, float) for value in values)
    return "number" if known and all(map(is_number, values)) else None


def _group_knob(name: str, kind: KnobKind, groups: Callable[[], ParamGroups]) -> Knob:
    def write(values: list[Any]) -> None:
        for group, value in zip(groups(), values, strict=True):
            if value is not None and _plain(group[name]) != value:
                group[name] = tuple(value) if isinstance(value, list) else value

    return Knob(
        name,
        get=lambda: [_plain(group.get(name)) for group in groups()],
        set=write,
        kind=kind,
        per_group=True,
        description=DESCRIPTIONS.get(name, f"{name} of the optimizer"),
        spares_zero=name == "weight_decay",
        **cast(Any, BOUNDS.get(name, {})),
    )


def _plain(value: float | Sequence[float] | None) -> KnobValue:
    if value is None:
        return None
    return float(value) if isinstance(value, int | float) else [float(number) for number in value]


# --- Gradient clipping ---


def clipping_knob(places: Mapping[str, NumberAttribute], can_clip: bool = True) -> Knob | None:
    """Return the knob of gradient clipping (0: none), or None where a script clips by itself.

    The norm lives in up to three places. The first one is in force, and the others are made to agree with it.
    """
    if not places:
        return None
    in_force = next(iter(places.values()))
    for place in places.values():
        if place.get() != in_force.get():
            place.set(in_force.get())

    def read() -> float:
        values = {name: place.get() for name, place in places.items()}
        if len(set(values.values())) > 1:
            values_by_place = ", ".join(f"{name} is {value:g}" for name, value in values.items())
            raise RuntimeError(f"the places of gradient_clipping disagree: {values_by_place}")
        return in_force.get()

    def write(value: float) -> None:
        for place in places.values():
            place.set(value)

    return Knob(
        "gradient_clipping",
        get=read,
        set=write,
        least=0.0,
        most=None if can_clip else 0.0,
        description="The norm that gradients are clipped to; 0: no clipping.",
    )


# --- Checkpoints and the end ---


def _checkpoint_knob(saver: Saver) -> Knob:
    def write(value: int) -> None:
        saver.every_steps = value

    return Knob(
        "checkpoint_steps",
        get=lambda: int(saver.every_steps),
        set=write,
        kind="integer",
        least=0,
        description="Steps from one checkpoint to the next; 0: only when asked.",
    )


def _total_steps_knob(loop: "TrainingLoop", is_stopping: Callable[[], bool]) -> Knob:
    """Return the knob of the last step."""

    def write(value: int) -> None:
        was_over, is_over = loop.step >= loop.total_steps, loop.step >= value
        loop.total_steps = value
        # After the last step Transformers has said already that the training stops; so may a person have.
        if was_over != is_over and not is_stopping():
            loop.stopping = is_over

    def refusal(value: int) -> str | None:
        made, most = loop.step, loop.most_steps
        if value <= made:
            return f"step {made} has been made: total_steps is at least {made + 1}; to end now, stop the run"
        if most is not None and value > most:
            return f"the data of this run has no length and was asked for {most} steps: total_steps is at most {most}"
        return None

    return Knob(
        "total_steps",
        get=lambda: loop.total_steps,
        set=write,
        kind="integer",
        least=1,
        description="The step at which the training ends. The learning rate's schedule is not stretched with it; "
        "set_schedule plans another.",
        refusal=refusal,
    )
