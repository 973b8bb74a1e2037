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


class SteerGroup(TyperGroup):
    """Command group that turns exceptions into exit codes."""

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
