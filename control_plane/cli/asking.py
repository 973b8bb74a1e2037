"""What changes a run. Each command waits until it is applied, unless it is told not to.

    @steering
    def pause(run: Run = None) -> Asked:
        return run, Pause()

`steering` adds the options that all of them have, sends the intent, waits for its end and says it.
"""

import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from pydantic import ValidationError

from control_plane.cli.printing import say, tell
from control_plane.cli.refusals import REJECTED, Misused
from control_plane.cli.target import active_run, connect
from control_plane.core.commands import INTENT, Intent
from control_plane.core.errors import Invalid, NotFound
from control_plane.core.intents import MAX_VALUES, NEEDS_NO_RANK, Cancel
from control_plane.core.records import CommandAccepted
from control_plane.handle import CommandView

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

DEFAULT_TIMEOUT_S = 120.0
"""An evaluation or a checkpoint may stand before the command."""

MIN_UUID_CHARS = 8
"""As many of a uuid as the journal shows to people."""

JOURNAL_PAGE = 1000

Run = Annotated[
    str | None, typer.Argument(help="The run, or the beginning or the end of its id. Without it: the active one.")
]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the journal.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return when the command is durable; do not wait for its end.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Wait this long for its end.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

Asked = tuple[str | None, Intent]
"""The run, as it was named, and what is asked of it."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command is given: the options that all of them have."""

    reason: Reason = None
    not_before: Annotated[
        int | None, typer.Option("--not-before", metavar="STEP", help="Apply after this step, no earlier.")
    ] = None
    not_after: Annotated[
        int | None, typer.Option("--not-after", metavar="STEP", help="Apply after this step at the latest, or not.")
    ] = None
    based_on: Annotated[
        int | None,
        typer.Option(
            "--based-on", metavar="SEQ", help="Only if nobody has changed the run since this record of its journal."
        ),
    ] = None
    detach: Detach = False
    timeout: Timeout = DEFAULT_TIMEOUT_S
    as_json: AsJson = False


Arrive = Callable[["SteerwayClient", str, CommandView, float], tuple[dict[str, Any], str]]
"""Waits for what an applied command of a run leads to, for some seconds: members for the JSON, and a sentence."""


Send = Callable[[str | None, Intent, Manner, Arrive | None], None]


def steering(
    wish: Callable[..., Asked],
    arrive: Arrive | None = None,
    send: Send | None = None,
    manners: type[Manner] = Manner,
) -> Callable[..., None]:
    """A command of `steer`: what `wish` answers is asked, in the manner of its options.

    With `arrive`, the command has done its work only when that has happened, too. `send` takes the place of `ask`.
    """
    own = inspect.signature(wish, eval_str=True)
    shared = inspect.signature(manners, eval_str=True).parameters
    parameters = [*own.parameters.values(), *shared.values()]

    def command(**given: Any) -> None:
        manner = manners(**{name: given.pop(name) for name in shared})
        run, intent = wish(**given)
        (send or ask)(run, intent, manner, arrive)

    command.__name__, command.__doc__ = wish.__name__, wish.__doc__
    # Typer reads a command's options off its signature.
    command.__signature__ = own.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@steering
def pause(run: Run = None) -> Asked:
    """Hold every rank at the next step boundary."""
    return run, intent_of("pause")


@steering
def stop(
    run: Run = None,
    yes: Yes = False,
    save: Annotated[bool, typer.Option("--save", help="Save a last checkpoint.")] = False,
) -> Asked:
    """End a run at the next step boundary. `steer resume` can have it go on later."""
    check_can_ask(yes, "a stop ends the training")
    with connect() as client:
        chosen = active_run(client, run)
    confirm(yes, f"Stop {chosen}?", "nothing was stopped")
    return chosen, intent_of("stop", save=save)


def check_can_ask(yes: bool, because: str) -> None:
    """Raises `Misused` where nobody can be asked and nobody has said yes."""
    if not yes and not sys.stdin.isatty():
        raise Misused(f"{because}; say -y if that is meant")


def confirm(yes: bool, question: str, otherwise: str) -> None:
    """Ask, unless it was said already. Raises `Misused` for a no."""
    if not yes and not typer.confirm(question, err=True):
        raise Misused(otherwise)


@steering
def save(
    run: Run = None,
    label: Annotated[str | None, typer.Option(help="A name for the checkpoint.")] = None,
    note: Annotated[str | None, typer.Option(help="What is worth knowing about it, kept with it.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it, whatever the run's retention lets go.")] = False,
) -> Asked:
    """Save a checkpoint at the next step boundary."""
    return run, intent_of("save_checkpoint", label=label, note=note, pin=pin)


@steering
def evaluate(run: Run = None) -> Asked:
    """Evaluate at the next step boundary."""
    return run, intent_of("evaluate")


@steering
def cancel(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] UUID", help=f"The command's uuid, or its first {MIN_UUID_CHARS} digits or more."),
    ],
) -> Asked:
    """Take back a command that has not been settled yet. What was applied first stays applied."""
    run, given = run_and(words, "a command", "steer cancel RUN 1f0c9a7e")
    with connect() as client:
        chosen = active_run(client, run)
        return chosen, Cancel(command=_uuid_of(client, chosen, given))


def _uuid_of(client: "SteerwayClient", run: str, given: str) -> UUID:
    """The uuid, or the only one of the run's commands that begins so. Raises `Misused`, `NotFound`."""
    try:
        return UUID(given)
    except ValueError:
        digits = given.lower().replace("-", "")
    if len(digits) < MIN_UUID_CHARS or not set(digits) <= set("0123456789abcdef"):
        raise Misused(f"{given!r} is not a uuid, nor its first {MIN_UUID_CHARS} digits: `steer journal {run}` has them")
    found = [uuid for uuid in _commands(client, run) if uuid.hex.startswith(digits)]
    if not found:
        raise NotFound(f"run {run} has no command whose uuid begins with {given!r}")
    if len(found) > 1:
        raise Misused(f"{len(found)} commands of run {run} begin with {given!r}; say more of the one you mean")
    return found[0]


def _commands(client: "SteerwayClient", run: str) -> list[UUID]:
    """Every command that the run has ever accepted."""
    found: list[UUID] = []
    after = 0
    while page := client.journal(run, after=after, limit=JOURNAL_PAGE):
        found += [each.record.command.uuid for each in page if isinstance(each.record, CommandAccepted)]
        after = page[-1].seq
    return found


def run_and(words: Sequence[str], what: str, example: str) -> tuple[str | None, str]:
    """`[RUN] WHAT`: the run is left out where it is the only active one. Raises `Misused`."""
    if not 1 <= len(words) <= 2:
        raise Misused(f"give {what}, and at most one run before it, for example: {example}")
    return (words[0] if len(words) == 2 else None), words[-1]


def ask(run: str | None, intent: Intent, manner: Manner, arrive: Arrive | None = None) -> None:
    """Send a command, wait for its end and say it. Exits with 6 if it was not applied."""
    from control_plane.cli.wording import outcome

    if isinstance(intent, NEEDS_NO_RANK) and not (manner.not_before is manner.not_after is None):
        raise Misused("this needs no rank and is done at once: leave --not-before and --not-after out")
    with connect() as client:
        chosen = active_run(client, run)
        receipt = client.submit(
            chosen,
            intent,
            reason=manner.reason,
            not_before_step=manner.not_before,
            not_after_step=manner.not_after,
            based_on_seq=manner.based_on,
        )
        if manner.detach:
            seen = f"accepted by {receipt.run} as record {receipt.seq}, uuid {receipt.uuid}"
            tell(receipt.model_dump_json() if manner.as_json else seen)
            return
        until = time.monotonic() + manner.timeout
        try:
            view = client.wait_settled(chosen, receipt.uuid, manner.timeout)
        except KeyboardInterrupt:
            say(f"the command is durable and goes on without you; to take it back: steer cancel {receipt.uuid}")
            raise
        members, said = dict[str, Any](), outcome(view)
        if arrive is not None and view.status == "applied":
            say(said)
            members, said = arrive(client, chosen, view, max(0.0, until - time.monotonic()))
    tell(json.dumps(json.loads(view.model_dump_json()) | members) if manner.as_json else said)
    if view.status != "applied":
        raise typer.Exit(REJECTED)


def intent_of(kind: str, **body: Any) -> Intent:
    """Raises `Invalid` with a sentence where the core's words refuse a value."""
    try:
        return INTENT.validate_python({"kind": kind, **body})
    except ValidationError as error:
        raise Invalid(_objection(error, body)) from None


def _objection(error: ValidationError, body: dict[str, Any]) -> str:
    first = error.errors()[0]
    said, loc = first["msg"].removeprefix("Value error, "), first["loc"][1:]
    if len(loc) > 1 and loc[0] == "changes":
        change = body["changes"][loc[1]]
        if "value" in loc:
            said = f"a finite number, true or false, or 1 to {MAX_VALUES} finite numbers with commas between are needed"
            return f"{change['knob']} = {change['value']!r}: {said}"
        return f"{change['knob']}: {said[0].lower()}{said[1:]}"
    return f"{loc[0]} = {first['input']!r}: {said.lower()}" if loc else said
