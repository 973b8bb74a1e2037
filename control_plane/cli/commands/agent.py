"""`steer agent run`: an autopilot, a language model or a rule, in the foreground."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.errors import UsageError
from control_plane.cli.output.printing import say
from control_plane.cli.select_run import active_run
from control_plane.config import Settings, settings
from control_plane.contexts import chosen_settings
from control_plane.core.model.errors import Conflict
from control_plane.storage.layout import RunFiles


def agent(
    run: Annotated[
        str | None, typer.Argument(help="Run id, or a unique prefix or suffix of it. Default: the active run.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Who decides: auto (the model if one is configured), model, rule (the guarded rule), or one of the "
            "rules guarded, probing, greedy-shipped, greedy-published, plateau, zclip, learned, random, nothing; "
            "ado, odm, natural and uniform set the weights of the run's sources instead."
        ),
    ] = "auto",
    every: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", help="Decide once every this many steps. Default: 25; for mixtures 50."),
    ] = None,
    max_decisions: Annotated[
        int, typer.Option(min=1, help="Stop after this many decisions; bounds the model's cost.")
    ] = 1000,
    grants: Annotated[
        Path | None,
        typer.Option("--grants", "--powers", metavar="FILE", help="YAML file with further knobs and actions to grant."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print proposals, change nothing.")] = False,
) -> None:
    """Run an autopilot in this terminal: it tunes the learning rate within fixed bounds, and the knobs granted."""
    from control_plane.agent.choosing import MODEL_POLICIES, POLICIES
    from control_plane.agent.grants import load
    from control_plane.agent.ledger import Ledger
    from control_plane.agent.loop import AgentOptions, run_agent
    from control_plane.agent.model import endpoint
    from control_plane.agent.policy import AgentBounds
    from control_plane.api.agent_spending import budgets_of
    from control_plane.client import SteerwayClient
    from control_plane.core.model.intents.agent import AgentSettings
    from control_plane.core.model.intents.grants import NO_GRANTS

    if policy not in POLICIES:
        raise UsageError(f"--policy is {policy!r}; allowed are {', '.join(POLICIES)}")
    wanted = AgentSettings.model_validate({"policy": policy} | ({"every_steps": every} if every else {}))
    options = AgentOptions(
        every_steps=wanted.every_steps,
        bounds=AgentBounds(max_changes=wanted.max_changes),
        policy=policy,
        max_decisions=max_decisions,
        dry_run=dry_run,
        grants=load(grants) if grants else NO_GRANTS,
    )
    where = chosen_settings()
    asks = policy in MODEL_POLICIES and endpoint(os.environ) is not None
    with SteerwayClient.from_settings(where, role="agent") as client:
        which = active_run(client, run)
        with (
            nullcontext() if dry_run else only_autopilot(settings().home, which),
            Ledger.open(ledger_of(where, which), budgets_of(where)) if asks else nullcontext() as ledger,
        ):
            run_agent(client, which, options, say=say, budget=ledger)


def ledger_of(where: Settings, run: str) -> Path:
    """Return the ledger of a run's calls: the agent's of the gateway, or, for a gateway elsewhere, one in this home."""
    if where.url is None:
        return RunFiles(where.runs_dir / run).agent_ledger
    return settings().home / "autopilots" / f"{run}.ledger.jsonl"


@contextmanager
def only_autopilot(home: Path, run: str) -> Iterator[None]:
    """Hold this installation's autopilot lock of the run. Raises `Conflict` if another autopilot holds it.

    Not covered: an autopilot of another machine; it is noticed in the journal, when it acts.
    """
    folder = home / "autopilots"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The file is never removed: removing it would let two processes lock different files of the same name.
        lock = os.open(folder / run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        say(f"cannot check for another autopilot on run {run}: {error.strerror or error}")
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another autopilot is already running on {run}: stop that `steer agent` first") from None
        yield
    finally:
        os.close(lock)
