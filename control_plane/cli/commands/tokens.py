"""`steer token`: create, list and revoke the tokens of this machine's gateway, which notices changes by itself."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from control_plane.cli.commands.show import AsJson, print_table
from control_plane.cli.errors import SteerGroup, UsageError, say
from control_plane.cli.output.printing import tell, tell_json
from control_plane.config import Role, settings
from control_plane.gateway.tokens import TokenBook, add_token, for_no_run, revoke_token

tokens = typer.Typer(
    cls=SteerGroup,
    name="token",
    no_args_is_help=True,
    help="Create, list and revoke access tokens of this machine's gateway.",
)

Name = Annotated[str, typer.Argument(help="Name of the token; the journal records it as the author.")]
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@tokens.command()
def create(
    name: Name,
    role: Annotated[
        Role, typer.Option("--role", help="viewer: read only. agent: tune. operator: steer. admin: everything.")
    ],
    runs: Annotated[
        list[str] | None,
        typer.Option("--runs", metavar="GLOB", help="Restrict to matching runs, e.g. 'gpt2-*'. Repeatable."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="WHEN", help="Expiry: 30m, 12h, 7d, or a date such as 2027-01-31 (UTC)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token and print it once; only its digest is stored."""
    until = None if expires is None else _moment(expires)
    token = add_token(settings(), name, role, tuple(runs) if runs else None, until)
    if as_json:
        tell_json({"name": name, "role": role, "token": token})
        return
    tell(token)
    say(f"the token is not shown again; set it as STEERWAY_TOKEN. Revoke it with `steer token revoke {name}`")


@tokens.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens of the gateway, without their secrets."""
    records = TokenBook.from_file(settings().tokens_file).tokens
    if as_json:
        tell_json([record.model_dump(mode="json", exclude={"sha256"}) for record in records])
        return
    now_s = datetime.now(UTC).timestamp()
    rows = [
        (
            record.id,
            record.role,
            "all" if record.runs is None else " ".join(record.runs) or "none",
            "never" if record.expires_at is None else f"{record.expires_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "for no run" if record.is_for_no_run else "expired" if record.has_expired(now_s) else "valid",
        )
        for record in records
    ]
    print_table(("NAME", "ROLE", "RUNS", "EXPIRES", "STATE"), rows)
    for record in records:
        if record.is_for_no_run:
            say(for_no_run(record.id))


@tokens.command()
def revoke(name: Name) -> None:
    """Revoke a token: at once for requests, within seconds for streams. A local token is replaced by a new one."""
    replaced = revoke_token(settings(), name)
    tell(f"{name} is revoked" + ("; this machine's commands now use a new one" if replaced else ""))


def _moment(text: str) -> datetime:
    if match := re.fullmatch(r"([0-9]{1,6})([mhd])", text):
        return datetime.now(UTC) + timedelta(**{UNITS[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--expires {text!r} is not a time: expected 30m, 12h, 7d, or a date such as 2027-01-31"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
