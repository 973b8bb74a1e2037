"""`steer key`: list and rotate the keys that sign checkpoints and configs."""

import typer

from control_plane.cli.printing import tell
from control_plane.cli.refusals import SteerGroup, say
from control_plane.config import settings

key = typer.Typer(
    cls=SteerGroup,
    name="key",
    no_args_is_help=True,
    help="The keys with which this installation signs its checkpoints and configs, and those that it accepts.",
)


@key.command("list")
def list_keys() -> None:
    """Name the key that signs, and the others whose signatures are accepted."""
    from control_plane.storage.signing import SigningKey

    found = SigningKey.of_installation(settings().signing_key)
    tell(f"signs     {found.name}")
    for name in found.accepted:
        tell(f"accepted  {name}")


@key.command()
def rotate() -> None:
    """Sign with a fresh key from now on. What the old one has signed is accepted for as long as its file is there."""
    from control_plane.storage.signing import rotate as put_a_fresh_one

    fresh, kept = put_a_fresh_one(settings().signing_key)
    tell(f"signs     {fresh.name}")
    say(f"the old key lies in {kept}, and what it has signed is accepted; without that file it needs --trust")
    say("runs that are at work sign with the old key until their ranks start again")
