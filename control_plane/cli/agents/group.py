"""`steer agent`: the group of its commands, and those that start and stop an agent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from control_plane.api.messages import CommandView
from control_plane.cli.agents import proposals, status
from control_plane.cli.commands import agent as foreground
from control_plane.cli.commands.lifecycle import Run, RunIntent, steering_command
from control_plane.cli.errors import SteerGroup, UsageError
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.agent import AgentSettings, StartAgent, StopAgent

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

FOREGROUND = "run"

ActionSpaceOption = Annotated[
    str | None,
    typer.Option(
        "--action-space", "--actions", metavar="SPACE", help="published (double, halve, keep), factors, or full."
    ),
]
TrialOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="STEPS", help="Try a change for so many steps; adopt it if the evaluation is better."),
]

LeastBatchesOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Policies ado, odm: batches of a source before it gets more than the floor."),
]
FitEveryOption = Annotated[
    int | None, typer.Option(min=1, metavar="STEPS", help="Policy ado: steps between two fits of the learning curves.")
]


class AgentGroup(SteerGroup):
    """The group `steer agent`. `steer agent RUN ...` is short for `steer agent run RUN ...`, as in earlier releases."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before arguments that begin with no command of the group."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [FOREGROUND, *args]
        return super().parse_args(ctx, args)


agent = typer.Typer(
    cls=AgentGroup,
    name="agent",
    no_args_is_help=True,
    help="An agent, a language model or a rule, that proposes changes; a person or its mode decides. Start it, see it, "
    "answer it.",
)


def _started(client: "SteerwayClient", run: str, view: CommandView, timeout_s: float) -> tuple[dict[str, Any], str]:
    from control_plane.agent.choosing import advice
    from control_plane.agent.options import options_of

    intent = view.command.intent
    assert isinstance(intent, StartAgent)
    told = advice(options_of(intent.settings), client.snapshot(run).step)
    return {}, f"the gateway starts the agent of {run}: `steer agent status {run}`" + (f"\n{told}" if told else "")


def start(
    run: Run = None,
    policy: Annotated[
        str, typer.Option(help="Who decides: auto (the gateway's model, else the guarded rule), model, or a rule.")
    ] = "auto",
    mode: Annotated[
        str, typer.Option(help="suggest (a person answers everything), guarded (low risk alone) or auto.")
    ] = "guarded",
    actions: ActionSpaceOption = None,
    every: Annotated[int | None, typer.Option(min=1, metavar="STEPS", help="Steps between two looks.")] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds that a person has to answer a proposal.")
    ] = None,
    default: Annotated[
        str | None, typer.Option(metavar="ANSWER", help="What happens at the deadline: reject or approve.")
    ] = None,
    grants: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with further knobs and actions to grant.")
    ] = None,
    min_lr: Annotated[float | None, typer.Option("--min-lr", help="Lowest learning rate of low risk.")] = None,
    max_lr: Annotated[float | None, typer.Option("--max-lr", help="Highest learning rate of low risk.")] = None,
    max_factor: Annotated[float | None, typer.Option("--max-factor", help="Largest factor of low risk.")] = None,
    max_changes: Annotated[int | None, typer.Option("--max-changes", help="Changes over the whole run.")] = None,
    max_decisions: Annotated[int | None, typer.Option("--max-decisions", help="Decisions until it ends.")] = None,
    cool_down: Annotated[
        int | None, typer.Option("--cool-down", metavar="STEPS", help="Steps between two changes of a knob.")
    ] = None,
    trial: TrialOption = None,
    fallback: Annotated[
        str | None, typer.Option(help="If the model gives no decision: keep, or rule (the guarded rule decides).")
    ] = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive/--fixed", help="Look rarely at a healthy run, often at a doubtful one.")
    ] = True,
    least_batches: LeastBatchesOption = None,
    fit_every: FitEveryOption = None,
    second_opinion: Annotated[
        bool, typer.Option("--second-opinion/--no-second-opinion", help="Ask twice before anything of high risk.")
    ] = True,
) -> RunIntent:
    """Start a run's agent. The gateway keeps it running until it is stopped or the run has ended."""
    from control_plane.agent.choosing import POLICIES

    if policy not in POLICIES:
        raise UsageError(f"--policy is {policy!r}; allowed are {', '.join(POLICIES)}")
    given = {
        "policy": policy,
        "mode": mode,
        "action_space": actions,
        "every_steps": every,
        "deadline_s": deadline,
        "default": default,
        "min_lr": min_lr,
        "max_lr": max_lr,
        "max_factor": max_factor,
        "max_changes": max_changes,
        "max_decisions": max_decisions,
        "cool_down_steps": cool_down,
        "trial_steps": trial,
        "fallback": fallback,
        "mixing": _given(least_batches=least_batches, fit_every_steps=fit_every),
    }
    chosen = {name: value for name, value in given.items() if value not in (None, {})}
    return run, StartAgent(
        settings=settings_of(chosen | {"adaptive": adaptive, "second_opinion": second_opinion}, grants)
    )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def settings_of(given: dict[str, Any], grants: Path | None) -> AgentSettings:
    """Return the settings of an agent. Raises `Invalid` with the first that cannot be."""
    if grants is not None:
        from control_plane.agent.grants import load

        given = given | {"grants": load(grants)}
    try:
        return AgentSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise Invalid(f"{name} = {first['input']!r}: {reason}" if name else reason) from None


@steering_command
def stop(run: Run = None) -> RunIntent:
    """Stop a run's agent. Its open proposals stay and can be answered; the run goes on."""
    return run, StopAgent()


agent.command("start")(steering_command(start, wait_for=_started))
agent.command("stop")(stop)
agent.command("status")(status.status)
agent.command("proposals")(proposals.proposals)
agent.command("approve")(proposals.approve)
agent.command("edit")(proposals.edit)
agent.command("reject")(proposals.reject)
agent.command(FOREGROUND)(foreground.agent)
