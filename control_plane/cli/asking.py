"""What changes a run: set, pause, stop, save, evaluate. Each waits until it is applied, unless told not to."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.refusals import REJECTED, Misused, say
from control_plane.cli.target import active_run, connect

if TYPE_CHECKING:
    from control_plane.core.commands import Intent

DEFAULT_TIMEOUT_S = 120.0
"""An evaluation or a checkpoint may stand before the command."""

Run = Annotated[
    str | None, typer.Argument(help="The run, or the beginning or the end of its id. Without it: the active one.")
]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the journal.")]
NotBefore = Annotated[
    int | None, typer.Option("--not-before", metavar="STEP", help="Apply after this step, no earlier.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return when the command is durable; do not wait for its end.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Wait this long for its end.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def set_knob(
    words: Annotated[list[str], typer.Argument(metavar="[RUN] KNOB=VALUE", help="lr=1e-4, lr*=0.5 or lr=x0.5")],
    group: Annotated[str | None, typer.Option(help="One parameter group, by index or name; otherwise all.")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the value; do not follow the schedule.")] = False,
    reason: Reason = None,
    not_before: NotBefore = None,
    detach: Detach = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Change the learning rate of a run while it trains."""
    assignments = [word for word in words if "=" in word]
    runs = [word for word in words if "=" not in word]
    if len(assignments) != 1 or len(runs) > 1:
        raise Misused("give one change and at most one run, for example: steer set RUN lr=1e-4, or: steer set lr*=0.5")
    intent = parse_assignment(assignments[0], group, hold)
    ask(runs[0] if runs else None, intent, reason, not_before, detach, timeout, as_json)


def parse_assignment(text: str, group: str | None = None, hold: bool = False) -> "Intent":
    """`lr=1e-4`, `lr*=0.5`, `lr=x0.5`. Raises `Misused` for no number or no knob, `Invalid` for one out of bounds."""
    knob, _, value = (part.strip() for part in text.partition("="))
    times = knob.endswith("*") or value[:1] in ("x", "X", "*")
    knob, value = knob.removesuffix("*").strip(), value.lstrip("xX*").strip()
    if knob not in ("lr", "learning_rate"):
        raise Misused(f"there is no knob {knob!r}; what can be set is: lr")
    try:
        amount = float(value)
    except ValueError:
        raise Misused(f"{value!r} in {text!r} is not a number; for example lr=1e-4, lr*=0.5 or lr=x0.5") from None
    chosen = int(group) if group is not None and group.isdecimal() else group
    schedule = "hold" if hold else "keep"
    return _intent(
        kind="set_learning_rate", group=chosen, schedule=schedule, **{"factor" if times else "value": amount}
    )


def pause(
    run: Run = None,
    reason: Reason = None,
    not_before: NotBefore = None,
    detach: Detach = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Hold every rank at the next step boundary."""
    ask(run, _intent(kind="pause"), reason, not_before, detach, timeout, as_json)


def stop(
    run: Run = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Save a last checkpoint.")] = False,
    reason: Reason = None,
    not_before: NotBefore = None,
    detach: Detach = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """End a run at the next step boundary. `steer resume` can have it go on later."""
    if not yes and not sys.stdin.isatty():
        raise Misused("a stop ends the training; say -y if that is meant")
    with connect() as client:
        chosen = active_run(client, run)
    if not yes and not typer.confirm(f"Stop {chosen}?", err=True):
        raise Misused("nothing was stopped")
    ask(chosen, _intent(kind="stop", save=save), reason, not_before, detach, timeout, as_json)


def save(
    run: Run = None,
    label: Annotated[str | None, typer.Option(help="A name for the checkpoint.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it, whatever the run's retention lets go.")] = False,
    reason: Reason = None,
    not_before: NotBefore = None,
    detach: Detach = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Save a checkpoint at the next step boundary."""
    ask(run, _intent(kind="save_checkpoint", label=label, pin=pin), reason, not_before, detach, timeout, as_json)


def evaluate(
    run: Run = None,
    reason: Reason = None,
    not_before: NotBefore = None,
    detach: Detach = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Evaluate at the next step boundary."""
    ask(run, _intent(kind="evaluate"), reason, not_before, detach, timeout, as_json)


def ask(
    run: str | None,
    intent: "Intent",
    reason: str | None,
    not_before: int | None,
    detach: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Send a command, wait for its end and say it. Exits with 6 if it was not applied."""
    from control_plane.cli.wording import outcome

    with connect() as client:
        chosen = active_run(client, run)
        receipt = client.submit(chosen, intent, reason=reason, not_before_step=not_before)
        if detach:
            seen = f"accepted by {receipt.run} as record {receipt.seq}, uuid {receipt.uuid}"
            typer.echo(receipt.model_dump_json() if as_json else seen)
            return
        try:
            view = client.wait_settled(chosen, receipt.uuid, timeout_s)
        except KeyboardInterrupt:
            say(f"the command is durable and goes on without you (uuid {receipt.uuid}); see: steer status {chosen}")
            raise
    typer.echo(view.model_dump_json() if as_json else outcome(view))
    if view.status != "applied":
        raise typer.Exit(REJECTED)


def _intent(**body: Any) -> "Intent":
    """Raises `Invalid` with a sentence where the core's words refuse a value."""
    from pydantic import ValidationError

    from control_plane.core.commands import INTENT
    from control_plane.core.errors import Invalid

    try:
        return INTENT.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        what = str(first["loc"][-1]) if first["loc"] else str(body["kind"])
        raise Invalid(f"{what} = {first['input']!r}: {first['msg'].lower()}") from None
