"""`steer`: the command line.

It talks to the gateway over HTTP and manages this machine's cluster through subprocesses. To start quickly it never
imports Ray or torch, and each command imports only what it needs.
"""

from typing import Annotated

import typer

from control_plane.cli import cluster
from control_plane.cli.agents.group import agent
from control_plane.cli.clusters.contexts import contexts, show_settings
from control_plane.cli.commands import branches, knobs, lifecycle, parameters, show, tree
from control_plane.cli.commands.chaos import chaos
from control_plane.cli.commands.checkpoint import checkpoint
from control_plane.cli.commands.episodes import episodes
from control_plane.cli.commands.journal import journals
from control_plane.cli.commands.keys import key
from control_plane.cli.commands.outputs import outputs
from control_plane.cli.commands.tokens import tokens
from control_plane.cli.data.group import data
from control_plane.cli.deploy import deploy
from control_plane.cli.doctor import doctor
from control_plane.cli.errors import SteerGroup
from control_plane.cli.health import alerts
from control_plane.cli.health.explain import explain
from control_plane.cli.launching import fork, resume
from control_plane.cli.launching.effect import effect
from control_plane.cli.launching.rounds import rounds
from control_plane.cli.launching.submit import submit
from control_plane.cli.nodes import nodes
from control_plane.cli.output.printing import tell
from control_plane.cli.queueing.queue import queue
from control_plane.cli.queueing.quota import quota
from control_plane.cli.queueing.space import delete, du

app = typer.Typer(
    cls=SteerGroup,
    name="steer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Steer distributed training while it runs.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 not allowed, 5 conflict, 6 refused or rejected, "
    "7 the run failed, 124 timeout, 130 Ctrl-C.",
)

TRAIN, STEER, LOOK = "Train", "Steer", "Inspect"


@app.callback()
def _root(
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="NAME", help="Talk to this gateway (see `steer context`); anywhere on the line."
        ),
    ] = None,
) -> None:
    """Steer distributed training while it runs."""


def _run(
    config: cluster.Config,
    overrides: cluster.Overrides = None,
    env: cluster.Env = None,
    unattended: Annotated[
        bool, typer.Option("--unattended", help="Print plain lines even on a terminal; exit when the run ends.")
    ] = False,
) -> None:
    """Start a cluster, submit one run, show its progress, and shut everything down at the end or on Ctrl-C."""
    from control_plane.cli.launching.run import run

    run(config, overrides or [], unattended, env or [])


def _version() -> None:
    """Print the installed version."""
    from control_plane.api.versions import release

    tell(release("unknown: Steerway is not installed as a package"))


app.command("run", rich_help_panel=TRAIN)(_run)
app.command(rich_help_panel=TRAIN)(cluster.up)
app.command(rich_help_panel=TRAIN)(cluster.down)
app.command(rich_help_panel=TRAIN)(deploy)
app.command(rich_help_panel=TRAIN)(submit)
app.command(rich_help_panel=TRAIN)(fork.fork)
app.command(rich_help_panel=TRAIN)(fork.replay)
app.command(rich_help_panel=TRAIN)(rounds)
app.command("set", rich_help_panel=STEER)(knobs.set_knobs)
app.command(rich_help_panel=STEER)(knobs.schedule)
app.command(rich_help_panel=STEER)(parameters.freeze)
app.command(rich_help_panel=STEER)(parameters.unfreeze)
app.command(rich_help_panel=STEER)(parameters.reset)
app.command(rich_help_panel=STEER)(parameters.skip)
app.command(rich_help_panel=STEER)(parameters.action)
app.command(rich_help_panel=STEER)(lifecycle.pause)
app.command(rich_help_panel=STEER)(resume.resume)
app.command(rich_help_panel=STEER)(lifecycle.stop)
app.command(rich_help_panel=STEER)(lifecycle.save)
app.command(rich_help_panel=STEER)(lifecycle.evaluate)
app.command(rich_help_panel=STEER)(branches.rollback)
app.command(rich_help_panel=STEER)(branches.switch)
app.command(rich_help_panel=STEER)(branches.adopt)
app.add_typer(checkpoint, rich_help_panel=STEER)
app.command(rich_help_panel=STEER)(lifecycle.cancel)
app.command(rich_help_panel=STEER)(alerts.ack)
app.command(rich_help_panel=STEER)(alerts.snooze)
app.add_typer(data, rich_help_panel=STEER)
app.add_typer(agent, rich_help_panel=STEER)
app.command(rich_help_panel=LOOK)(show.runs)
app.command(rich_help_panel=LOOK)(show.status)
app.command(rich_help_panel=LOOK)(alerts.alerts)
app.command(rich_help_panel=LOOK)(explain)
app.command(rich_help_panel=LOOK)(queue)
app.command(rich_help_panel=LOOK)(du)
app.command(rich_help_panel=LOOK)(knobs.knobs)
app.command(rich_help_panel=LOOK)(tree.tree)
app.command(rich_help_panel=LOOK)(tree.compare)
app.command(rich_help_panel=LOOK)(effect)
app.command(rich_help_panel=LOOK)(show.checkpoints)
app.add_typer(journals, rich_help_panel=LOOK)
app.add_typer(episodes, rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(show.logs)
app.command(rich_help_panel=LOOK)(outputs)
app.command(rich_help_panel=LOOK)(cluster.console)
app.command(rich_help_panel=LOOK)(nodes)
app.command(rich_help_panel=LOOK)(doctor)
app.command("version", rich_help_panel=LOOK)(_version)
app.command("settings", rich_help_panel=LOOK)(show_settings)
app.add_typer(contexts, rich_help_panel=TRAIN)
app.command(rich_help_panel=TRAIN)(delete)
app.add_typer(tokens, rich_help_panel=TRAIN)
app.add_typer(quota, rich_help_panel=TRAIN)
app.add_typer(chaos, rich_help_panel=TRAIN)
app.add_typer(key, rich_help_panel=TRAIN)


def main() -> None:
    """Run the `steer` command line."""
    app()


if __name__ == "__main__":
    main()
