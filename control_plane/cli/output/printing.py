"""Terminal output of the command line, with control characters escaped.

tell       a sentence or a table row, on stdout
say        a message on stderr, which keeps stdout for data
tell_json  JSON for programs, in ASCII
"""

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import typer
from pydantic import BaseModel

from control_plane.core.model.characters import one_line

COLOURS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
"""ANSI colour sequences in logs: removed as a whole, so that no remainder of them is printed."""

NOT_ASCII = re.compile(r"[^\x20-\x7e]")


def tell(*lines: str) -> None:
    """Print lines on stdout, with line breaks and control characters escaped."""
    for line in lines:
        typer.echo(one_line(line))


def say(*lines: str) -> None:
    """Print lines on stderr, escaped like `tell`."""
    for line in lines:
        typer.echo(one_line(line), err=True)


def show_progress(line: str, done: bool) -> None:
    """Show a line on a terminal's stderr in place of the one before; print nothing anywhere else."""
    if sys.stderr.isatty():
        typer.echo(f"\r{one_line(line)}", err=True, nl=done)


def tell_json(value: Any) -> None:
    """Print one line of JSON; a pydantic model in its own JSON form."""
    tell(ascii_json(value.model_dump_json()) if isinstance(value, BaseModel) else json.dumps(value))


def ascii_json(text: str) -> str:
    """Return JSON with every non-ASCII or control character escaped, safe to print on a terminal."""
    return NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f", text)


def tell_log(lines: Iterable[str]) -> None:
    """Print log lines: unchanged to a file or pipe, escaped on a terminal."""
    if sys.stdout.isatty():
        tell(*map(_uncoloured, lines))
        return
    for line in lines:
        typer.echo(line)


def say_log(lines: Iterable[str]) -> None:
    """Print log lines on stderr, always escaped, since they stand between our own messages."""
    say(*map(_uncoloured, lines))


def _uncoloured(line: str) -> str:
    return COLOURS.sub("", line).expandtabs()
