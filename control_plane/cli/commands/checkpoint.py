"""`steer checkpoint`: pin, unpin and delete checkpoints."""

from typing import Annotated

import typer

from control_plane.cli.commands.lifecycle import RunIntent, build_intent, run_and, steering_command
from control_plane.cli.errors import SteerGroup

checkpoint = typer.Typer(
    cls=SteerGroup,
    name="checkpoint",
    no_args_is_help=True,
    help="Pin, unpin or delete a checkpoint. `steer save` makes one, `steer checkpoints` lists them.",
)

Named = Annotated[
    list[str],
    typer.Argument(metavar="[RUN] CHECKPOINT", help="Name of the checkpoint, as `steer checkpoints` lists it."),
]
EXAMPLE = "steer checkpoint {} RUN step-00000100-g1"


@checkpoint.command()
@steering_command
def pin(words: Named) -> RunIntent:
    """Protect a checkpoint from deletion by the run's retention rules."""
    run, name = run_and(words, "a checkpoint", EXAMPLE.format("pin"))
    return run, build_intent("pin_checkpoint", checkpoint=name)


@checkpoint.command()
@steering_command
def unpin(words: Named) -> RunIntent:
    """Unpin a checkpoint: the run's retention rules apply to it again."""
    run, name = run_and(words, "a checkpoint", EXAMPLE.format("unpin"))
    return run, build_intent("pin_checkpoint", checkpoint=name, pinned=False)


@checkpoint.command()
@steering_command
def delete(words: Named) -> RunIntent:
    """Delete a checkpoint permanently. Rejected if it is pinned, in use, or the latest."""
    run, name = run_and(words, "a checkpoint", EXAMPLE.format("delete"))
    return run, build_intent("delete_checkpoint", checkpoint=name)
