"""`steer chaos`: faults on purpose, to see that a run survives them. Each says what it did, and to which processes."""

import sys
from typing import Annotated

import typer

from control_plane.cli.machine import call, call_for_json, local
from control_plane.cli.printing import tell
from control_plane.cli.refusals import Misused, SteerGroup
from control_plane.cli.target import ACTIVE, active_run, connect
from control_plane.core.errors import Conflict, NotFound

chaos = typer.Typer(
    cls=SteerGroup,
    name="chaos",
    no_args_is_help=True,
    help="Kill, stop and replace nodes and ranks of this machine's cluster, to see that a run survives it.",
)

Node = Annotated[str, typer.Argument(help="A node's name, as `steer nodes` shows it, e.g. node-2.")]
Rank = Annotated[str, typer.Argument(metavar="RANK", help="A rank of the run, from 0.")]
Run = Annotated[
    str | None, typer.Argument(help="The run, or a beginning or an end of its id; left out, the active one.")
]
RunOption = Annotated[str | None, typer.Option("--run", help="The same, as an option.")]
Head = Annotated[
    bool,
    typer.Option(
        "--head",
        help="The head is meant: with it go Ray's GCS, the gateway, the control servers and the drivers.",
    ),
]
Heal = Annotated[bool, typer.Option("--heal", help="Let the node answer again.")]


@chaos.command("kill-node")
def kill_node(node: Node, head: Head = False) -> None:
    """Kill every process of a node at once (SIGKILL), as if the machine had lost its power."""
    _do("kill-node", node, *_flag("--head", head))


@chaos.command("add-node")
def add_node() -> None:
    """Join one more node to the cluster that is up, e.g. for one that was killed."""
    raise typer.Exit(call(local("add-node")))


@chaos.command()
def partition(node: Node, heal: Heal = False, head: Head = False) -> None:
    """Let a node answer nobody any more. Its network is not cut: all its processes are stopped (SIGSTOP).

    Its peers see what they would see of a machine that is cut off: silence. Its own processes see nothing, for they
    stand still. Ray declares the node dead after some seconds; a node that is healed later than that ends itself.
    """
    _do("partition", node, *_flag("--heal", heal), *_flag("--head", head))


@chaos.command("kill-rank")
def kill_rank(rank: Rank, run: Run = None, run_option: RunOption = None) -> None:
    """Kill the process of one rank (SIGKILL)."""
    _send("kill", rank, run, run_option)


@chaos.command("stop-rank")
def stop_rank(rank: Rank, run: Run = None, run_option: RunOption = None) -> None:
    """Stop the process of one rank (SIGSTOP): it hangs, and its peers wait for it."""
    _send("stop", rank, run, run_option)


@chaos.command("cont-rank")
def cont_rank(rank: Rank, run: Run = None, run_option: RunOption = None) -> None:
    """Let the process of a stopped rank go on (SIGCONT)."""
    _send("continue", rank, run, run_option)


def _send(word: str, given: str, run: str | None, run_option: str | None) -> None:
    rank = _number(given)
    if run and run_option:
        raise Misused("name the run once: after the rank, or with --run")
    run = run or run_option
    with connect() as client:
        chosen = active_run(client, run)
        snapshot = client.snapshot(chosen)
    if snapshot.status not in ACTIVE:
        raise Conflict(f"run {chosen} is {snapshot.status}: none of its ranks runs any more")
    if not snapshot.ranks:
        raise Conflict(f"no rank of run {chosen} runs yet; it is {snapshot.status}")
    pids = {place.rank: place.pid for place in snapshot.ranks}
    if rank not in pids:
        raise NotFound(f"run {chosen} has no rank {rank}; its ranks are {min(pids)} to {max(pids)}")
    told = call_for_json([*_command("signal", str(pids[rank]), word), "--json"])
    tell(f"rank {rank} of run {chosen}, generation {snapshot.generation}: {told['done']}")


def _number(given: str) -> int:
    # Not typer's own conversion: it takes `-1` for an option, and says nothing of ranks.
    if not given.isascii() or not given.isdigit():
        raise Misused(f"{given!r} is not a rank: ranks are counted from 0")
    return int(given)


def _do(*words: str) -> None:
    raise typer.Exit(call(_command(*words)))


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cluster.chaos", *words]


def _flag(name: str, given: bool) -> list[str]:
    return [name] if given else []
