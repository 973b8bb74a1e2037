"""`steer context`: named gateways, to steer several clusters from one machine; and `steer settings`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.errors import UsageError
from control_plane.cli.output.printing import say, tell
from control_plane.config import Settings, settings
from control_plane.contexts import Context, ContextBook, checked, chosen_settings

contexts = typer.Typer(name="context", no_args_is_help=True, help="Name gateways, and choose the one to talk to.")

Name = Annotated[str, typer.Argument(help="Name of the context.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@contexts.command()
def add(
    name: Name,
    url: Annotated[str, typer.Option("--url", help="Address of the gateway, such as https://steerway.example.")],
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token. Default: ask, or read stdin.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the token over plain http to another machine.")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="PEM file of the authority that signed its certificate.")
    ] = None,
) -> None:
    """Add a gateway, or replace the one of this name, and use it. The token never goes on the command line."""
    where = settings()
    context = checked(Context(name=name, url=url.rstrip("/"), insecure=insecure, ca=ca and ca.expanduser().absolute()))
    context = context.model_copy(update={"token": _token(token_file)})
    _check(context)
    book = ContextBook.from_file(where.contexts_file).with_context(context)
    book.model_copy(update={"current": name}).write(where.contexts_file)
    tell(f"using context {name}: {context.url}")


@contexts.command()
def use(name: Name) -> None:
    """Use this gateway from now on."""
    where = settings()
    book = ContextBook.from_file(where.contexts_file)
    context = book.named(name)
    book.model_copy(update={"current": name}).write(where.contexts_file)
    tell(f"using context {name}: {_shown_url(context, where)}")


@contexts.command("list")
def list_contexts(as_json: AsJson = False) -> None:
    """List all contexts; the one in use has a star."""
    where, used = settings(), chosen_settings().context
    book = ContextBook.from_file(where.contexts_file)
    if as_json:
        rows = [{"name": one.name, "url": _shown_url(one, where), "used": one.name == used} for one in book.contexts]
        tell(json.dumps(rows))
        return
    if not book.contexts:
        say(
            "no contexts: `steer up` writes one for this machine's cluster, `steer context add` one for another gateway"
        )
    for one in book.contexts:
        tell(f"{'*' if one.name == used else ' '} {one.name:<16} {_shown_url(one, where)}")
    if settings().url is not None:
        say(f"STEERWAY_URL is set, so commands talk to {settings().url} and use no context")


@contexts.command()
def remove(name: Name) -> None:
    """Remove a context with its token. The gateway is not told."""
    where = settings()
    ContextBook.from_file(where.contexts_file).without(name).write(where.contexts_file)
    tell(f"removed context {name}")


def show_settings(as_json: AsJson = False) -> None:
    """Print every setting: its environment variable, its value, and what it is for. Tokens are not printed."""
    where = chosen_settings()
    values = {name: str(value) for name in Settings.model_fields if (value := getattr(where, name)) is not None}
    values |= {"public_names": ",".join(where.public_names)} | ({"token": "(set)"} if where.token else {})
    if as_json:
        tell(json.dumps({f"STEERWAY_{name.upper()}": value for name, value in values.items()}))
        return
    for name, field in Settings.model_fields.items():
        tell(f"STEERWAY_{name.upper():<17} {values.get(name) or '-':<28} {field.description}")


def _token(path: Path | None) -> str:
    """Read the token from a file, the terminal or stdin. Raises `UsageError`."""
    if path is not None:
        try:
            token = path.expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the token in {path} cannot be read ({type(error).__name__})") from None
    elif sys.stdin.isatty():
        token = typer.prompt("token", hide_input=True, err=True).strip()
    else:
        token = sys.stdin.readline().strip()
    if not token:
        raise UsageError("no token was given: use --token-file, or write it to stdin")
    return token


def _check(context: Context) -> None:
    """Ask the gateway who is there. A gateway that does not answer now is no reason not to add it."""
    from control_plane.client import SteerwayClient
    from control_plane.core.model.errors import Unavailable

    assert context.url is not None
    assert context.token is not None
    with SteerwayClient(
        context.url, context.token, insecure=context.insecure, ca=context.ca, context=context.name
    ) as client:
        try:
            client.runs()
        except Unavailable as error:
            say(f"added, but {error.reason}")


def _shown_url(context: Context, where: Settings) -> str:
    return context.url or f"{where.own_gateway_url} (this machine)"
