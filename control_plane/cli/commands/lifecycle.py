"""Commands that change a run: pause, stop, save, evaluate, cancel. Each waits until it is applied, or `--detach`.

    @steering_command
    def pause(run: Run = None) -> RunIntent:
        return run, Pause()

`steering_command` adds the shared options, submits the intent, waits for its outcome and prints it.
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

from control_plane.api.messages import CommandView
from control_plane.cli.errors import REJECTED, UsageError
from control_plane.cli.output.printing import say, tell
from control_plane.cli.select_run import active_run, connect
from control_plane.core.model.commands import INTENT, Intent
from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.intents import Cancel
from control_plane.core.model.records import CommandAccepted
from control_plane.core.model.values import MAX_VALUES

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

DEFAULT_TIMEOUT_S = 120.0
"""Leaves time for an evaluation or a checkpoint that is queued before the command."""

MIN_UUID_CHARS = 8
"""The length of the uuid prefix that `steer journal` prints."""

JOURNAL_PAGE = 1000

Run = Annotated[str | None, typer.Argument(help="Run id, or a unique prefix or suffix of it. Default: the active run.")]
Reason = Annotated[str | None, typer.Option(help="Why the command is given; recorded in the journal.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the command is durable; do not wait for it.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Seconds to wait for the outcome.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

RunIntent = tuple[str | None, Intent]
"""The run as the user named it, and the intent to submit."""


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """Options that every steering command has."""

    reason: Reason = None
    not_before: Annotated[
        int | None, typer.Option("--not-before", metavar="STEP", help="Earliest step after which to apply it.")
    ] = None
    not_after: Annotated[
        int | None,
        typer.Option("--not-after", metavar="STEP", help="Latest step after which to apply it; then it expires."),
    ] = None
    based_on: Annotated[
        int | None,
        typer.Option("--based-on", metavar="SEQ", help="Reject it if the run has changed since this journal record."),
    ] = None
    detach: Detach = False
    timeout: Timeout = DEFAULT_TIMEOUT_S
    as_json: AsJson = False


WaitFor = Callable[["SteerwayClient", str, CommandView, float], tuple[dict[str, Any], str]]
"""Waits up to some seconds for the effect of an applied command. Returns extra JSON members, and a sentence."""


Send = Callable[[str | None, Intent, CommandOptions, WaitFor | None], None]


def steering_command(
    build: Callable[..., RunIntent],
    wait_for: WaitFor | None = None,
    send: Send | None = None,
    options_type: type[CommandOptions] = CommandOptions,
) -> Callable[..., None]:
    """Return a `steer` command that submits the intent which `build` builds, with the shared options of `options_type`.

    `wait_for` waits for the effect of the applied command before it counts as done. `send` replaces `submit_and_wait`.
    """
    own = inspect.signature(build, eval_str=True)
    shared = inspect.signature(options_type, eval_str=True).parameters
    parameters = [*own.parameters.values(), *shared.values()]

    def command(**given: Any) -> None:
        options = options_type(**{name: given.pop(name) for name in shared})
        run, intent = build(**given)
        (send or submit_and_wait)(run, intent, options, wait_for)

    command.__name__, command.__doc__ = build.__name__, build.__doc__
    # Typer reads a command's options off its signature.
    command.__signature__ = own.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@steering_command
def pause(run: Run = None) -> RunIntent:
    """Pause a run: every rank waits at the next step boundary until `steer resume`."""
    return run, build_intent("pause")


@steering_command
def stop(
    run: Run = None,
    yes: Yes = False,
    save: Annotated[bool, typer.Option("--save", help="Save a checkpoint first.")] = False,
) -> RunIntent:
    """Stop a run at the next step boundary. `steer resume` restarts it from its latest checkpoint."""
    check_can_ask(yes, "this ends the training")
    with connect() as client:
        chosen = active_run(client, run)
    confirm(yes, f"Stop {chosen}?", "not confirmed; the run was not stopped")
    return chosen, build_intent("stop", save=save)


def check_can_ask(yes: bool, because: str) -> None:
    """Raise `UsageError` if there is no terminal to ask for confirmation on and `--yes` was not given."""
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"{because}: confirm with --yes (stdin is not a terminal)")


def confirm(yes: bool, question: str, otherwise: str) -> None:
    """Ask for confirmation unless `yes`. Raises `UsageError` with the text `otherwise` if it is denied."""
    if not yes and not typer.confirm(question, err=True):
        raise UsageError(otherwise)


@steering_command
def save(
    run: Run = None,
    label: Annotated[str | None, typer.Option(help="A name for the checkpoint.")] = None,
    note: Annotated[str | None, typer.Option(help="A note that is stored with the checkpoint.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Protect it from deletion by the run's retention rules.")] = False,
) -> RunIntent:
    """Save a checkpoint at the next step boundary."""
    return run, build_intent("save_checkpoint", label=label, note=note, pin=pin)


@steering_command
def evaluate(run: Run = None) -> RunIntent:
    """Evaluate the model at the next step boundary."""
    return run, build_intent("evaluate")


@steering_command
def cancel(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] UUID", help=f"The command's uuid, or at least its first {MIN_UUID_CHARS} digits."
        ),
    ],
) -> RunIntent:
    """Cancel a command that has no outcome yet. One that was already applied stays applied."""
    run, given = run_and(words, "a command", "steer cancel RUN 1f0c9a7e")
    with connect() as client:
        chosen = active_run(client, run)
        return chosen, Cancel(command=uuid_of(client, chosen, given))


def uuid_of(client: "SteerwayClient", run: str, given: str) -> UUID:
    """Return the uuid of the only command of the run that starts with `given`. Raises `UsageError`, `NotFound`."""
    try:
        return UUID(given)
    except ValueError:
        digits = given.lower().replace("-", "")
    if len(digits) < MIN_UUID_CHARS or not set(digits) <= set("0123456789abcdef"):
        raise UsageError(
            f"{given!r} is not a uuid or its first {MIN_UUID_CHARS} digits; `steer journal {run}` lists them"
        )
    matching = [uuid for uuid in _commands(client, run) if uuid.hex.startswith(digits)]
    if not matching:
        raise NotFound(f"run {run} has no command whose uuid starts with {given!r}; `steer journal {run}` lists them")
    if len(matching) > 1:
        raise UsageError(f"{given!r} matches {len(matching)} commands of run {run}; give more digits")
    return matching[0]


def _commands(client: "SteerwayClient", run: str) -> list[UUID]:
    """Return the uuids of all commands that the run has accepted."""
    uuids: list[UUID] = []
    after = 0
    while page := client.journal(run, after=after, limit=JOURNAL_PAGE):
        uuids += [entry.record.command.uuid for entry in page if isinstance(entry.record, CommandAccepted)]
        after = page[-1].seq
    return uuids


def run_and(words: Sequence[str], what: str, example: str) -> tuple[str | None, str]:
    """Split `[RUN] WHAT`; the run is None if it was left out. Raises `UsageError`."""
    if not 1 <= len(words) <= 2:
        raise UsageError(f"expected {what}, with an optional run before it, for example: {example}")
    return (words[0] if len(words) == 2 else None), words[-1]


def submit_and_wait(run: str | None, intent: Intent, options: CommandOptions, wait_for: WaitFor | None = None) -> None:
    """Submit a command, wait for its outcome and print it. Exits with 6 if it was not applied."""
    from control_plane.cli.output.formatting import outcome

    if not intent.needs_ranks and not (options.not_before is options.not_after is None):
        raise UsageError("this command takes effect at once, at no step: remove --not-before and --not-after")
    with connect() as client:
        chosen = active_run(client, run)
        receipt = client.submit(
            chosen,
            intent,
            reason=options.reason,
            not_before_step=options.not_before,
            not_after_step=options.not_after,
            based_on_seq=options.based_on,
        )
        if options.detach:
            accepted = f"accepted by {receipt.run} as record {receipt.seq}, uuid {receipt.uuid}"
            tell(receipt.model_dump_json() if options.as_json else accepted)
            return
        until = time.monotonic() + options.timeout
        try:
            view = client.wait_settled(chosen, receipt.uuid, options.timeout)
        except KeyboardInterrupt:
            say(f"the command is durable and will still be applied; cancel it with: steer cancel {receipt.uuid}")
            raise
        members, sentence = dict[str, Any](), outcome(view)
        if wait_for is not None and view.status == "applied":
            say(sentence)
            members, sentence = wait_for(client, chosen, view, max(0.0, until - time.monotonic()))
    tell(json.dumps(json.loads(view.model_dump_json()) | members) if options.as_json else sentence)
    if view.status != "applied":
        raise typer.Exit(REJECTED)


def build_intent(kind: str, **body: Any) -> Intent:
    """Build an intent from its kind and fields. Raises `Invalid` with the reason."""
    try:
        return INTENT.validate_python({"kind": kind, **body})
    except ValidationError as error:
        raise Invalid(_reason(error, body)) from None


def _reason(error: ValidationError, body: dict[str, Any]) -> str:
    first = error.errors()[0]
    reason, loc = first["msg"].removeprefix("Value error, "), first["loc"][1:]
    if len(loc) > 1 and loc[0] == "changes":
        change = body["changes"][loc[1]]
        if "value" in loc:
            allowed = f"a finite number, true, false, or 1 to {MAX_VALUES} finite numbers separated by commas"
            return f"{change['knob']} = {change['value']!r}: expected {allowed}"
        return f"{change['knob']}: {reason[0].lower()}{reason[1:]}"
    return f"{loc[0]} = {first['input']!r}: {reason.lower()}" if loc else reason
