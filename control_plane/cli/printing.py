"""Where the command line prints: no character that a terminal would obey leaves through here.

tell       a sentence or a row for a person, on stdout
say        the same on stderr: stdout is for data
tell_json  JSON for a program, in ASCII
"""

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import typer
from pydantic import BaseModel

from control_plane.core.characters import one_line

COLOURS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
"""What programs write into their logs for a terminal: left out as a whole, nothing of them would be in sight."""

NOT_ASCII = re.compile(r"[^\x20-\x7e]")


def tell(*lines: str) -> None:
    """Print lines, each of which stays one whatever is in it."""
    for line in lines:
        typer.echo(one_line(line))


def say(*lines: str) -> None:
    """The same, on stderr."""
    for line in lines:
        typer.echo(one_line(line), err=True)


def tell_json(value: Any) -> None:
    """One line of JSON. A model is told as its own JSON has it."""
    tell(ascii_json(value.model_dump_json()) if isinstance(value, BaseModel) else json.dumps(value))


def ascii_json(text: str) -> str:
    """JSON whose texts are spelled with escapes, so that a terminal shows them and does not obey them."""
    return NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f", text)


def tell_log(lines: Iterable[str]) -> None:
    """Lines of somebody's log: as they are into a file or a pipe, cleaned on a terminal."""
    if sys.stdout.isatty():
        tell(*map(_uncoloured, lines))
        return
    for line in lines:
        typer.echo(line)


def say_log(lines: Iterable[str]) -> None:
    """The same on stderr, always cleaned: it stands among our own sentences."""
    say(*map(_uncoloured, lines))


def _uncoloured(line: str) -> str:
    return COLOURS.sub("", line).expandtabs()
