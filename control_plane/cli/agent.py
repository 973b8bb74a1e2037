"""`steer agent`: an operator that happens to be a language model, or a rule."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from control_plane.cli.printing import say
from control_plane.cli.refusals import Misused
from control_plane.cli.target import active_run
from control_plane.config import settings
from control_plane.core.errors import Conflict


def agent(
    run: Annotated[str | None, typer.Argument(help="The run. Without it: the one that is active.")] = None,
    policy: Annotated[str, typer.Option(help="auto, model or rule.")] = "auto",
    every: Annotated[int, typer.Option(min=1, metavar="STEPS", help="Look every so many steps.")] = 25,
    max_decisions: Annotated[int, typer.Option(min=1, help="Stop after so many; bounds what a model may cost.")] = 1000,
    powers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML file of further knobs and actions that it may use.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Propose, but change nothing.")] = False,
) -> None:
    """Let a model, or a rule, tune the learning rate within fixed bounds, and with --powers what a file grants."""
    from control_plane.agent.loop import AgentOptions, run_agent
    from control_plane.agent.powers import NO_MORE, load
    from control_plane.client import SteerwayClient

    if policy not in ("auto", "model", "rule"):
        raise Misused(f"--policy is {policy!r}; allowed is auto, model or rule")
    chosen: Any = policy
    options = AgentOptions(
        every_steps=every,
        policy=chosen,
        max_decisions=max_decisions,
        dry_run=dry_run,
        powers=load(powers) if powers else NO_MORE,
    )
    with SteerwayClient.from_settings(settings(), role="agent") as client:
        which = active_run(client, run)
        with nullcontext() if dry_run else only_autopilot(settings().home, which):
            run_agent(client, which, options, say=say)


@contextmanager
def only_autopilot(home: Path, run: str) -> Iterator[None]:
    """No other one of this installation steers the run inside. One of elsewhere is noticed when it acts.

    Raises `Conflict` if there is one.
    """
    folder = home / "autopilots"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It stays there: whoever removed it could take the lock from under the next one.
        lock = os.open(folder / run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        say(f"whether another autopilot steers run {run} cannot be told here: {error.strerror or error}")
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another autopilot steers run {run}: end that `steer agent` first") from None
        yield
    finally:
        os.close(lock)
