"""Exit codes of the command line: an error is one line on stderr and an exit code, never a traceback.

0 ok   1 error   2 usage   3 not found   4 not allowed   5 conflict   6 refused or rejected   7 the run failed
124 timeout   130 Ctrl-C
"""

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from control_plane.cli.output.printing import say
from control_plane.core.model.errors import SteerwayError

USAGE = 2
REJECTED = 6
RUN_FAILED = 7
TIMED_OUT = 124
INTERRUPTED = 130


class UsageError(SteerwayError):
    """Usage error: the command line is wrong; nothing was sent."""

    exit_code = USAGE
    slug = "misused"


CONTEXT = "--context"


class SteerGroup(TyperGroup):
    """Command group that turns exceptions into exit codes, and takes `--context NAME` anywhere on the command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--context` out of the arguments: for every command, the chosen context is in the environment."""
        try:
            chosen, args = take_context(args)
        except UsageError as error:
            say(f"steer: {error.reason}")
            raise typer.Exit(error.exit_code) from None
        if chosen is not None:
            # What was typed counts more than what the shell has set for every command.
            for name in ("STEERWAY_URL", "STEERWAY_TOKEN"):
                os.environ.pop(name, None)
            os.environ["STEERWAY_CONTEXT"] = chosen
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print an error as one line and exit with its code."""
        try:
            return super().invoke(ctx)
        except SteerwayError as error:
            say(f"steer: {error.reason}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("steer: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # `steer journal | head`: the reader is gone. Python would raise again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def take_context(args: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of `--context` and the arguments without it; `--` ends the options. Raises `UsageError`."""
    end = args.index("--") if "--" in args else len(args)
    options, rest = list(args[:end]), args[end:]
    chosen = None
    for place, word in enumerate(options):
        if word == CONTEXT:
            if place + 1 == len(options):
                raise UsageError(f"{CONTEXT} needs the name of a context, see `steer context list`")
            chosen = options[place + 1]
            del options[place : place + 2]
            break
        if word.startswith(f"{CONTEXT}="):
            chosen = word.partition("=")[2]
            del options[place]
            break
    if chosen == "" or any(word == CONTEXT or word.startswith(f"{CONTEXT}=") for word in options):
        raise UsageError(f"{CONTEXT} takes one name, once; see `steer context list`")
    return chosen, [*options, *rest]
