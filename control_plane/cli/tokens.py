"""`steer token`: who may use this machine's gateway. A running gateway notices a change by itself."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from control_plane.cli.looking import AsJson, print_table
from control_plane.cli.printing import tell, tell_json
from control_plane.cli.refusals import Misused, SteerGroup, say
from control_plane.config import Role, settings
from control_plane.gateway.tokens import TokenBook, add_token, for_no_run, revoke_token

tokens = typer.Typer(
    cls=SteerGroup, name="token", no_args_is_help=True, help="Who may use this machine's gateway: roles, runs, expiry."
)

Name = Annotated[str, typer.Argument(help="Whose token it is; its commands carry this name in the journal.")]
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@tokens.command()
def create(
    name: Name,
    role: Annotated[Role, typer.Option("--role", help="viewer looks, agent tunes, operator steers, admin everything.")],
    runs: Annotated[
        list[str] | None, typer.Option("--runs", metavar="GLOB", help="Only for runs like this, e.g. 'gpt2-*'; repeat.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="WHEN", help="30m, 12h, 7d, or a date such as 2027-01-31 (UTC).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, once: only its digest is kept."""
    until = None if expires is None else _moment(expires)
    token = add_token(settings(), name, role, tuple(runs) if runs else None, until)
    if as_json:
        tell_json({"name": name, "role": role, "token": token})
        return
    tell(token)
    say(f"this is the only time that it is shown; use it as STEERWAY_TOKEN. `steer token revoke {name}` ends it")


@tokens.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """The tokens that the gateway knows, without their secrets."""
    records = TokenBook.from_file(settings().tokens_file).tokens
    if as_json:
        tell_json([each.model_dump(mode="json", exclude={"sha256"}) for each in records])
        return
    now_s = datetime.now(UTC).timestamp()
    rows = [
        (
            each.id,
            each.role,
            "all" if each.runs is None else " ".join(each.runs) or "none",
            "never" if each.expires_at is None else f"{each.expires_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "for no run" if each.is_for_no_run else "expired" if each.has_expired(now_s) else "in force",
        )
        for each in records
    ]
    print_table(("NAME", "ROLE", "RUNS", "EXPIRES", "STATE"), rows)
    for each in records:
        if each.is_for_no_run:
            say(for_no_run(each.id))


@tokens.command()
def revoke(name: Name) -> None:
    """End a token: at once for requests, within seconds for streams. A local one is replaced by a new one."""
    replaced = revoke_token(settings(), name)
    tell(f"{name} is revoked" + ("; this machine's commands use a new one" if replaced else ""))


def _moment(text: str) -> datetime:
    if found := re.fullmatch(r"([0-9]{1,6})([mhd])", text):
        return datetime.now(UTC) + timedelta(**{UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Misused(f"--expires {text!r} is no time: 30m, 12h, 7d, or a date such as 2027-01-31") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
