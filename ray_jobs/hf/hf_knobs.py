"""Knobs that only a Transformers Trainer has: intervals of logging and evaluation, its place of the clipping norm."""

from transformers import Trainer

from ray_jobs.steering.knobs import Knob
from ray_jobs.steering.training_knobs import NumberAttribute


def clipping_place(trainer: Trainer) -> dict[str, NumberAttribute]:
    """Return the place of the clipping norm in the Trainer's arguments."""
    return {"the arguments' max_grad_norm": NumberAttribute(trainer.args, "max_grad_norm")}


def interval_knobs(trainer: Trainer) -> list[Knob]:
    """Return knobs for the intervals that Transformers uses: where it logs or evaluates every k steps."""
    args, knobs = trainer.args, []
    if args.logging_strategy == "steps":
        knobs.append(_interval_knob(trainer, "logging_steps", "Steps from one logged loss to the next."))
    if args.eval_strategy == "steps" and trainer.eval_dataset is not None:
        knobs.append(_interval_knob(trainer, "eval_steps", "Steps from one evaluation to the next."))
    return knobs


def _interval_knob(trainer: Trainer, name: str, description: str) -> Knob:
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
