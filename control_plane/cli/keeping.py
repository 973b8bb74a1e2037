"""`steer checkpoint`: which checkpoints are kept. `steer save` makes one, `steer checkpoints` lists them."""

from typing import Annotated

import typer

from control_plane.cli.asking import Asked, intent_of, run_and, steering
from control_plane.cli.refusals import SteerGroup

checkpoint = typer.Typer(
    cls=SteerGroup,
    name="checkpoint",
    no_args_is_help=True,
    help="Pin, unpin or delete a checkpoint. `steer save` makes one, `steer checkpoints` lists them.",
)

Named = Annotated[
    list[str], typer.Argument(metavar="[RUN] CHECKPOINT", help="The checkpoint's name, as `steer checkpoints` has it.")
]
EXAMPLE = "steer checkpoint {} RUN step-00000100-g1"


@checkpoint.command()
@steering
def pin(words: Named) -> Asked:
    """Keep a checkpoint, whatever the run's retention lets go."""
    run, name = run_and(words, "a checkpoint", EXAMPLE.format("pin"))
    return run, intent_of("pin_checkpoint", checkpoint=name)


@checkpoint.command()
@steering
def unpin(words: Named) -> Asked:
    """Leave a checkpoint to the run's retention again."""
    run, name = run_and(words, "a checkpoint", EXAMPLE.format("unpin"))
    return run, intent_of("pin_checkpoint", checkpoint=name, pinned=False)


@checkpoint.command()
@steering
def delete(words: Named) -> Asked:
    """Remove a checkpoint for good. One that is pinned, in use, or the newest is refused."""
    run, name = run_and(words, "a checkpoint", EXAMPLE.format("delete"))
    return run, intent_of("delete_checkpoint", checkpoint=name)
