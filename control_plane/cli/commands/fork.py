"""`steer fork` starts new runs from a checkpoint; `steer replay` repeats a run and compares it bit for bit."""

import itertools
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.cli import cluster
from control_plane.cli.commands import lifecycle
from control_plane.cli.commands.branches import find_checkpoint, first_of
from control_plane.cli.commands.resume import Trust
from control_plane.cli.errors import UsageError
from control_plane.cli.output.printing import say, tell, tell_json
from control_plane.cli.select_run import any_run, connect
from control_plane.config import settings
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.intents import Intent
from control_plane.programs import program

if TYPE_CHECKING:
    from control_plane.api.messages import Snapshot
    from control_plane.client import SteerwayClient
    from control_plane.compare.replay_check import ReplayVerdict
    from control_plane.config import Settings

MAX_FORKS = 16
"""Most forks of one command: each is a Ray job with a driver and a control server, even while it is queued."""

NUMBERS = "numbers"
"""The kind of a knob whose value is a list: there a comma separates the numbers of one value."""

LOOK_EVERY_S = 1.0
DIVERGED = 1


def fork(
    run: Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")],
    checkpoint: Annotated[str, typer.Argument(help="The checkpoint: its name, prefix of the name, label, or step:N.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config values to change.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KNOB=VALUE[,VALUE]...", help="Set a knob at the start; starts one fork for each value."
        ),
    ] = None,
    trust: Trust = False,
    as_json: lifecycle.AsJson = False,
) -> None:
    """Start new runs from a checkpoint, at the same position in the data: one, or one per combination of values."""
    where = settings()
    with connect() as client:
        snapshot = client.snapshot(any_run(client, run))
    base = find_checkpoint(snapshot, checkpoint)
    firsts = [first_of(chosen, hold=False) for chosen in combinations(sets or [], snapshot)]
    command = fork_command("fork", snapshot.run, base.checkpoint, *(overrides or []), *trusting(trust))
    for first in firsts:
        command += ["--first", json.dumps([intent.model_dump(mode="json") for intent in first])]
    begun = cluster.call_for_json(command, cluster.submitter_environment(where))["runs"]
    if as_json:
        tell_json({"parent": snapshot.run, "checkpoint": base.checkpoint, "runs": begun})
        return
    for new, first in zip(begun, firsts, strict=True):
        tell(f"{new}  {_in_words(first) or 'no changes'}")
    say(f"compare them with `steer compare {' '.join([snapshot.run, *begun])}`, or show `steer tree {snapshot.run}`")


def combinations(sets: Sequence[str], snapshot: "Snapshot") -> list[tuple[str, ...]]:
    """Return every combination of the values: `lr=1e-4,3e-4 eps=1e-6,1e-8` gives four. Raises `UsageError`."""
    choices = []
    for text in sets:
        name, equals, values = text.partition("=")
        knob = name.strip().removesuffix("*").strip()
        whole = snapshot.knob_spec(knob).kind == NUMBERS
        alternatives = [values] if whole else [value for value in values.split(",") if value.strip()]
        choices.append([f"{name}{equals}{value}" for value in alternatives] or [text])
    combined = list(itertools.product(*choices))
    if len(combined) > MAX_FORKS:
        raise UsageError(f"this would start {len(combined)} forks; the limit of one command is {MAX_FORKS}")
    return combined


def _in_words(first: Sequence[Intent]) -> str:

    return ", ".join(intent.describe() for intent in first)


def replay(
    run: Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")],
    until: Annotated[
        int | None, typer.Option("--until", metavar="STEP", min=1, help="Stop the replay at this step.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="REPLAY", help="Compare with this existing replay; start none.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the replay and do not compare.")] = False,
    trust: Trust = False,
    as_json: lifecycle.AsJson = False,
) -> None:
    """Repeat a recorded run with every command at its step, and check whether the result is bit-identical."""
    where = settings()
    with connect() as client:
        source = any_run(client, run)
        if against is not None:
            _tell(client.snapshot(any_run(client, against)).run, source, where, as_json)
            return
        words = fork_command(
            "replay", source, *(["--until", str(until)] if until is not None else []), *trusting(trust)
        )
        (begun,) = cluster.call_for_json(words, cluster.submitter_environment(where))["runs"]
        if detach:
            tell(json.dumps({"run": source, "replay": begun}) if as_json else begun)
            return
        say(f"run {begun} replays {source}; watch it at {where.console_url}")
        _wait(client, begun)
    _tell(begun, source, where, as_json)


def _wait(client: "SteerwayClient", run: str) -> None:
    """Wait until the replay has ended. Raises `SteerwayError` if it failed."""
    while not (snapshot := client.snapshot(run)).closed:
        time.sleep(LOOK_EVERY_S)
    if snapshot.status == "failed":
        raise SteerwayError(f"the replay {run} failed at step {snapshot.step}: {snapshot.reason}")


def _tell(replayed: str, run: str, where: "Settings", as_json: bool) -> None:
    verdict = _judge(replayed, run, where)
    if as_json:
        tell_json({"run": run, "replay": replayed} | verdict.model_dump(mode="json"))
    else:
        tell(verdict.sentence())
        for note in verdict.notes:
            say(note)
    if verdict.verdict != "identical":
        raise typer.Exit(DIVERGED)


def _judge(replayed: str, run: str, where: "Settings") -> "ReplayVerdict":
    from control_plane.compare.replay_check import judge
    from control_plane.storage.layout import find_run

    return judge(find_run(where.runs_dir, replayed), find_run(where.runs_dir, run))


def trusting(trust: bool) -> list[str]:
    """Return the `--trust` flag for a subprocess, if it was given."""
    return ["--trust"] if trust else []


def fork_command(verb: str, *words: str) -> list[str]:
    """Return the subprocess command that starts runs from another run."""
    return program("ray_jobs.driver.fork_and_replay", verb, *words, "--json")
