"""`steer chaos`: fault injection. Every command prints what it did to which processes."""

from typing import Annotated

import typer

from control_plane.cli.cluster import call, call_for_json, cluster_command
from control_plane.cli.errors import SteerGroup, UsageError
from control_plane.cli.output.printing import tell
from control_plane.cli.select_run import ACTIVE, active_run, connect
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.programs import program

chaos = typer.Typer(
    cls=SteerGroup,
    name="chaos",
    no_args_is_help=True,
    help="Inject faults: kill, stop and replace nodes and ranks of this machine's cluster.",
)

Node = Annotated[str, typer.Argument(help="Node name as `steer nodes` lists it, e.g. node-2.")]
Rank = Annotated[str, typer.Argument(metavar="RANK", help="Rank of the run, counted from 0.")]
Run = Annotated[str | None, typer.Argument(help="Run id, or a unique prefix or suffix of it. Default: the active run.")]
RunOption = Annotated[str | None, typer.Option("--run", help="The run, as an option instead of an argument.")]
Head = Annotated[
    bool,
    typer.Option(
        "--head",
        help="Confirm that the node is the head: Ray's GCS, the gateway, control servers and drivers die with it.",
    ),
]
Heal = Annotated[bool, typer.Option("--heal", help="End the partition: let the node's processes continue.")]


@chaos.command("kill-node")
def kill_node(node: Node, head: Head = False) -> None:
    """Kill every process of a node at once (SIGKILL), like a power failure."""
    _do("kill-node", node, *_flag("--head", head))


@chaos.command("add-node")
def add_node() -> None:
    """Add a node to the running cluster, for example to replace a killed one."""
    raise typer.Exit(call(cluster_command("add-node")))


@chaos.command()
def partition(node: Node, heal: Heal = False, head: Head = False) -> None:
    """Simulate a network partition of a node by stopping all its processes (SIGSTOP).

    Its peers see what they would see of an unreachable machine: no answers. Its own processes notice nothing, since
    they do not run. Ray declares the node dead after some seconds; a node that is healed later than that exits.
    """
    _do("partition", node, *_flag("--heal", heal), *_flag("--head", head))


@chaos.command("kill-rank")
def kill_rank(rank: Rank, run: Run = None, run_option: RunOption = None) -> None:
    """Kill the process of one rank (SIGKILL)."""
    _send("kill", rank, run, run_option)


@chaos.command("stop-rank")
def stop_rank(rank: Rank, run: Run = None, run_option: RunOption = None) -> None:
    """Stop the process of one rank (SIGSTOP): it hangs, and the other ranks wait for it."""
    _send("stop", rank, run, run_option)


@chaos.command("cont-rank")
def cont_rank(rank: Rank, run: Run = None, run_option: RunOption = None) -> None:
    """Continue the stopped process of one rank (SIGCONT)."""
    _send("continue", rank, run, run_option)


def _send(word: str, given: str, run: str | None, run_option: str | None) -> None:
    rank = _number(given)
    if run and run_option:
        raise UsageError("the run is given twice: name it after the rank or with --run, not both")
    run = run or run_option
    with connect() as client:
        chosen = active_run(client, run)
        snapshot = client.snapshot(chosen)
    if snapshot.status not in ACTIVE:
        raise Conflict(f"run {chosen} is {snapshot.status}: it has no running ranks")
    if not snapshot.ranks:
        raise Conflict(f"run {chosen} is {snapshot.status}: no rank has started yet")
    pids = {place.rank: place.pid for place in snapshot.ranks}
    if rank not in pids:
        raise NotFound(f"run {chosen} has no rank {rank}; its ranks are {min(pids)} to {max(pids)}")
    result = call_for_json([*_command("signal", str(pids[rank]), word), "--json"])
    tell(f"rank {rank} of run {chosen}, generation {snapshot.generation}: {result['done']}")


def _number(given: str) -> int:
    # Not typer's own conversion: it takes `-1` for an option, and says nothing of ranks.
    if not given.isascii() or not given.isdigit():
        raise UsageError(f"{given!r} is not a rank: expected a number, counted from 0")
    return int(given)


def _do(*words: str) -> None:
    raise typer.Exit(call(_command(*words)))


def _command(*words: str) -> list[str]:
    return program("cluster.chaos", *words)


def _flag(name: str, given: bool) -> list[str]:
    return [name] if given else []
