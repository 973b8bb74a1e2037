"""`steer rounds`: a reference run and fresh runs after it, planned from a memory of the earlier ones."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli import cluster
from control_plane.cli.errors import UsageError
from control_plane.cli.launching.request import LaunchChoices, launch, overridden
from control_plane.cli.launching.submit import wait_until_started
from control_plane.cli.output.printing import say, tell, tell_json
from control_plane.cli.select_run import connect
from control_plane.config_text import from_yaml, read_text
from control_plane.contexts import chosen_settings
from control_plane.core.model.knobs import is_number
from control_plane.shipped import find_config

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

RATE, SCHEDULE, DEFAULT_SCHEDULE = "learning_rate", "lr_scheduler_type", "linear"


def rounds(
    config: cluster.Config,
    overrides: cluster.Overrides = None,
    count: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds after the reference.")] = 6,
    policy: Annotated[
        str | None,
        typer.Option(help="Agent that steers each round after the reference: model, or a rule's name. Default: none."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, metavar="STEPS", help="Steps between two looks of the agent.")] = 25,
    memory: Annotated[
        Path, typer.Option(metavar="FILE", help="Memory of the rounds (JSONL); another call continues it.")
    ] = Path("rounds.jsonl"),
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the frontier: .png or .svg.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    as_json: cluster.AsJson = False,
) -> None:
    """Run a reference and N rounds, each a fresh run, whose rate and schedule are planned from the earlier ones.

    With OPENAI_API_KEY set a model plans, else a seeded local search.
    """
    from control_plane.agent.choosing import choose_model, choose_rule
    from control_plane.agent.ledger import Ledger
    from control_plane.agent.loop import AgentOptions
    from control_plane.agent.model import ChatModel, endpoint
    from control_plane.agent.rounds.frontier import draw, table
    from control_plane.agent.rounds.memory import Memory, series_of
    from control_plane.agent.rounds.playing import Series, play
    from control_plane.agent.rounds.spending import ledger_of, spent_of
    from control_plane.api.agent_spending import budgets_of
    from control_plane.client import SteerwayClient

    given = overrides or []
    text, training = _training(config, given)
    remembered = Memory.open(memory, series_of(text, given, policy, seed))
    steering = AgentOptions(policy=policy, every_steps=every) if policy else None
    if steering is not None:  # before anything is launched
        choose_rule(steering)
        choose_model(steering, os.environ)
    where = endpoint(os.environ)
    with (
        connect() as client,
        Ledger.open(ledger_of(memory), budgets_of(chosen_settings())) if where else nullcontext() as ledger,
        SteerwayClient.from_settings(chosen_settings(), role="agent") as agent,
    ):
        series = Series(
            launch=lambda changes: _begin(client, config, [*given, *changes]),
            client=agent,
            rate=training[RATE],
            schedule=training[SCHEDULE],
            seed=seed,
            agent=steering,
            model=ChatModel(where, ledger) if where else None,
            environ=dict(os.environ),
            budget=ledger,
            spent=lambda: spent_of(ledger),
            say=say,
        )
        play(remembered, series, count)
    if figure is not None:
        draw(remembered.ended, figure)
        say(f"drew the frontier into {figure}")
    if as_json:
        for each in remembered.ended:
            assert each.ended is not None
            tell_json(each.begun.model_dump(mode="json") | each.ended.model_dump(mode="json"))
    else:
        tell(*table(remembered.ended))


def _begin(client: "SteerwayClient", config: str, overrides: Sequence[str]) -> str:
    """Launch a run, and return its id once it has started."""
    shares = chosen_settings().url is None
    run: str = launch(client, config, overrides, LaunchChoices(), shares).runs[0].run
    wait_until_started(client, run)
    return run


def _training(config: str, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the config's text, and the rate and schedule that its reference runs with. Raises `UsageError`."""
    path = Path(find_config(config)).expanduser()
    text = read_text(path, str(path))
    raw = from_yaml(text, str(path))
    training = overridden(raw if isinstance(raw, dict) else {}, overrides).get("training", {})
    rate = training.get(RATE) if isinstance(training, dict) else None
    try:
        rate = float(rate) if isinstance(rate, str) else rate
    except ValueError:
        rate = None
    if not is_number(rate) or not rate > 0:
        raise UsageError(f"{config} has no training.{RATE}: rounds plan that value, so it must be in the config")
    return text, {RATE: float(rate), SCHEDULE: str(training.get(SCHEDULE, DEFAULT_SCHEDULE))}
