"""`steer key`: list and rotate the keys that sign checkpoints and configs."""

import typer

from control_plane.cli.errors import SteerGroup, say
from control_plane.cli.output.printing import tell
from control_plane.config import settings

key = typer.Typer(
    cls=SteerGroup,
    name="key",
    no_args_is_help=True,
    help="List and rotate the keys that sign this installation's checkpoints and configs.",
)


@key.command("list")
def list_keys() -> None:
    """List the signing key and the old keys whose signatures are still accepted."""
    from control_plane.storage.checkpoint.signing import SigningKey

    signing_key = SigningKey.of_installation(settings().signing_key)
    tell(f"signs     {signing_key.name}")
    for name in signing_key.accepted:
        tell(f"accepted  {name}")


@key.command()
def rotate() -> None:
    """Create a new signing key. Signatures of the old one are accepted as long as its key file exists."""
    from control_plane.storage.checkpoint.signing import rotate as put_a_fresh_one

    fresh, kept = put_a_fresh_one(settings().signing_key)
    tell(f"signs     {fresh.name}")
    say(f"the old key is in {kept}; as long as that file exists, its signatures are accepted without --trust")
    say("active runs sign with the old key until their ranks restart")
