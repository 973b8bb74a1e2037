"""Knobs of a Transformers Trainer, with or without DeepSpeed: hyper-parameters, clipping, intervals, length.

    register_trainer_knobs(knobs, trainer, saving)     when the engine and the schedule exist

Each reads and writes what the next step will use. Where a value lives in several places, all of them are written, and
all of them are read back.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from control_plane.core.model.errors import Conflict, Invalid
from ray_jobs.steering.knobs import Kind, Knob, Knobs, misfit
from ray_jobs.steering.schedule import ParamGroups, live_groups

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


def register_trainer_knobs(knobs: Knobs, trainer: Any, saving: Any = None) -> None:
    """Register every knob of this trainer.

    `saving` has an `every_steps` that may be changed (see `saving.CheckpointCallback`); None: nothing is saved.
    """
    found: list[Knob] = [*group_knobs(live_groups(trainer)), *_interval_knobs(trainer)]
    if (clipping := clipping_knob(trainer)) is not None:
        found.append(clipping)
    if saving is not None:
        found.append(_checkpoint_knob(saving))
        found.append(_total_steps_knob(trainer, saving))
    for knob in found:
        _register(knobs, knob)


def _register(knobs: Knobs, knob: Knob) -> None:
    """Register a knob, without bounds if its live value is outside of them (an infinite norm); a script's own knob of
    that name takes precedence."""
    if misfit(knob, knob.get()):
        knob = replace(knob, **UNBOUNDED)
    try:
        knobs.register(knob)
    except (Conflict, Invalid) as refusal:
        log.warning("the trainer's %s cannot be set: %s", knob.name, refusal.reason)


# --- The optimizer's groups ---


def group_knobs(groups: Callable[[], ParamGroups]) -> list[Knob]:
    """Return a knob for each hyper-parameter (number or tuple of numbers) of the groups except the learning rate."""
    names = dict.fromkeys(name for group in groups() for name in group if name not in NOT_KNOBS)
    found = []
    for name in names:
        kind = _kind_of(name, [group[name] for group in groups() if group.get(name) is not None])
        if kind is not None:
            found.append(_group_knob(name, kind, groups))
    return found


def _kind_of(name: str, values: list[Any]) -> Kind | None:
    if not values:
        return None
    if all(isinstance(value, list | tuple) and value and all(map(_is_number, value)) for value in values):
        return "numbers"
    # A whole number is a flag or a counter, unless it is the 0 of a hyper-parameter that is known, or others are not.
    known = name in BOUNDS or any(isinstance(value, float) for value in values)
    return "number" if known and all(map(_is_number, values)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _group_knob(name: str, kind: Kind, groups: Callable[[], ParamGroups]) -> Knob:
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


def _plain(value: Any) -> Any:
    if value is None:
        return None
    return [float(each) for each in value] if isinstance(value, list | tuple) else float(value)


# --- Gradient clipping ---


def clipping_knob(trainer: Any) -> Knob | None:
    """Return the knob of gradient clipping (0: none), or None where a script clips by itself.

    With DeepSpeed it lives in up to three places. The ones that do nothing are made to agree with the one in force.
    """
    places = _clipping_places(trainer)
    if not places:
        return None
    in_force = next(iter(places.values()))
    for place in places.values():
        if place.get() != in_force.get():
            place.set(in_force.get())
    optimizer = getattr(getattr(trainer, "deepspeed", None), "optimizer", None)
    norms = getattr(optimizer, "compute_grad_norm", True)  # without them ZeRO 1 and 2 cannot clip

    def read() -> float:
        values = {name: place.get() for name, place in places.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{name} is {value:g}" for name, value in values.items())
            raise RuntimeError(f"the places of gradient_clipping disagree: {told}")
        return in_force.get()

    def write(value: float) -> None:
        for place in places.values():
            place.set(value)

    return Knob(
        "gradient_clipping",
        get=read,
        set=write,
        least=0.0,
        most=None if norms else 0.0,
        description="The norm that gradients are clipped to; 0: no clipping.",
    )


class Place:
    """Attribute that holds a number."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name

    def get(self) -> float:
        """Return the live value; None counts as 0."""
        return float(getattr(self._owner, self._name) or 0.0)

    def set(self, value: float) -> None:
        """Write."""
        setattr(self._owner, self._name, value)


def _clipping_places(trainer: Any) -> dict[str, Place]:
    """Return the places of the clipping norm by name; the first one is in force."""
    places = {}
    engine = getattr(trainer, "deepspeed", None)
    if engine is not None:
        if hasattr(engine.optimizer, "clip_grad"):
            places["the ZeRO optimizer's clip_grad"] = Place(engine.optimizer, "clip_grad")
        places["the engine's gradient_clipping"] = Place(engine._config, "gradient_clipping")
    if hasattr(trainer.args, "max_grad_norm"):
        places["the arguments' max_grad_norm"] = Place(trainer.args, "max_grad_norm")
    return places


# --- Intervals and the end ---


def _interval_knobs(trainer: Any) -> list[Knob]:
    """Return knobs for the intervals that Transformers uses: where it logs or evaluates every k steps."""
    args = trainer.args
    found = []
    if args.logging_strategy == "steps":
        found.append(_interval_knob(trainer, "logging_steps", "Steps from one logged loss to the next."))
    if args.eval_strategy == "steps" and trainer.eval_dataset is not None:
        found.append(_interval_knob(trainer, "eval_steps", "Steps from one evaluation to the next."))
    return found


def _interval_knob(trainer: Any, name: str, description: str) -> Knob:
    def write(value: int) -> None:
        # The state decides; the arguments are what scripts look at. They may hold a share of the whole, until then.
        setattr(trainer.state, name, value)
        setattr(trainer.args, name, value)

    return Knob(
        name,
        get=lambda: int(getattr(trainer.state, name)),
        set=write,
        kind="integer",
        least=1,
        description=description,
    )


def _checkpoint_knob(saving: Any) -> Knob:
    def write(value: int) -> None:
        saving.every_steps = value

    return Knob(
        "checkpoint_steps",
        get=lambda: int(saving.every_steps),
        set=write,
        kind="integer",
        least=0,
        description="Steps from one checkpoint to the next; 0: only when asked.",
    )


def _total_steps_knob(trainer: Any, saving: Any) -> Knob:
    """Return the knob of the last step. `trainer.most_steps` is its upper bound, or None."""

    def write(value: int) -> None:
        state, session = trainer.state, saving.session
        was_over, is_over = state.global_step >= state.max_steps, state.global_step >= value
        state.max_steps = session.total_steps = value
        if trainer.args.max_steps > 0:  # otherwise the arguments count epochs
            trainer.args.max_steps = value
        # After the last step Transformers has said already that the training stops; so may a person have.
        if was_over != is_over and not session.replica.stopping:
            trainer.control.should_training_stop = is_over

    def refusal(value: int) -> str | None:
        made, most = trainer.state.global_step, trainer.most_steps
        if value <= made:
            return f"step {made} has been made: total_steps is at least {made + 1}; to end now, stop the run"
        if most is not None and value > most:
            return f"the data of this run has no length and was asked for {most} steps: total_steps is at most {most}"
        return None

    return Knob(
        "total_steps",
        get=lambda: int(trainer.state.max_steps),
        set=write,
        kind="integer",
        least=1,
        description="The step at which the training ends. The learning rate's schedule is not stretched with it; "
        "set_schedule plans another.",
        refusal=refusal,
    )
