"""`steer fork` starts new runs from a checkpoint; `steer replay` repeats a run and compares it bit for bit."""

import itertools
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.api.launching import ForkRequest, ReplayRequest
from control_plane.api.versions import release
from control_plane.cli.commands import lifecycle
from control_plane.cli.commands.branches import find_checkpoint, first_of
from control_plane.cli.errors import UsageError
from control_plane.cli.launching.effect_arms import has_ended, patiently
from control_plane.cli.launching.job_watch import JobWatch
from control_plane.cli.launching.request import PriorityOption
from control_plane.cli.launching.resume import Trust
from control_plane.cli.output.printing import say, tell, tell_json
from control_plane.cli.select_run import any_run, connect
from control_plane.core.model.intents import Intent

if TYPE_CHECKING:
    from control_plane.api.messages import Snapshot
    from control_plane.client import SteerwayClient

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
    priority: PriorityOption = 0,
    as_json: lifecycle.AsJson = False,
) -> None:
    """Start new runs from a checkpoint, at the same position in the data: one, or one per combination of values."""
    with connect() as client:
        snapshot = client.snapshot(any_run(client, run))
        base = find_checkpoint(snapshot, checkpoint)
        firsts = [first_of(chosen, hold=False) for chosen in combinations(sets or [], snapshot)]
        request = ForkRequest.model_validate(
            {
                "checkpoint": base.checkpoint,
                "overrides": overrides or (),
                "firsts": [[intent.model_dump(mode="json") for intent in first] for first in firsts],
                "trust": trust,
                "priority": priority,
                "client": release(""),
            }
        )
        launched = client.fork(snapshot.run, request)
    begun = [one.run for one in launched.runs]
    for note in launched.notes:
        say(note)
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
    with connect() as client:
        source = any_run(client, run)
        if against is not None:
            _tell(client, any_run(client, against), source, as_json)
            return
        launched = client.replay(source, ReplayRequest(until_step=until, trust=trust, client=release("")))
        begun = launched.runs[0].run
        if detach:
            tell(json.dumps({"run": source, "replay": begun}) if as_json else begun)
            return
        say(f"run {begun} replays {source}; watch it with `steer status {begun} --watch`")
        _wait(client, begun)
        _tell(client, begun, source, as_json)


def _wait(client: "SteerwayClient", run: str) -> None:
    """Wait until the replay has ended, also while it waits in the queue. Raises `SteerwayError` if it failed."""
    job = JobWatch(client, run)
    while not patiently(lambda: has_ended(client, job)):
        time.sleep(LOOK_EVERY_S)


def _tell(client: "SteerwayClient", replayed: str, run: str, as_json: bool) -> None:
    verdict = client.replay_check(replayed, run)
    if as_json:
        tell_json({"run": run, "replay": replayed} | verdict.model_dump(mode="json"))
    else:
        tell(verdict.sentence())
        for note in verdict.notes:
            say(note)
    if verdict.verdict != "identical":
        raise typer.Exit(DIVERGED)
