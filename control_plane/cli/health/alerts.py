"""`steer alerts`, `steer ack` and `steer snooze`: what a run's checks have found, and who has seen it."""

from typing import Annotated

import typer

from control_plane.api.messages import Alerts, AlertView
from control_plane.cli.commands.lifecycle import RunIntent, build_intent, run_and, steering_command
from control_plane.cli.commands.show import AsJson, Run
from control_plane.cli.errors import UsageError
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import active_run, any_run, connect
from control_plane.core.model.characters import one_line

Words = Annotated[
    list[str], typer.Argument(metavar="[RUN] ALERT", help="Number of the alert, as `steer alerts` prints it.")
]


def alerts(
    run: Run = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were seen, are snoozed, have cleared, or of a branch left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what a run's checks have found, with the values and a suggested command. Exits with 0 in any case."""
    with connect() as client:
        found = client.alerts(any_run(client, run), attention=not everything)
    if as_json:
        tell_json(found)
        return
    if not found.alerts:
        tell(f"no alerts in {found.run} at step {found.step}" + ("" if everything else " need attention"))
    for view in found.alerts:
        tell(*lines_of(found, view))


def lines_of(found: Alerts, view: AlertView) -> list[str]:
    """Return the lines about one alert: what, the values behind it, what to do, what the reflex did."""
    alert = view.alert
    stage = {
        "open": "",
        "acknowledged": f" [seen by {view.acknowledged_by}{f': {view.note}' if view.note else ''}]",
        "snoozed": f" [snoozed{'' if view.snoozed_until is None else f' until step {view.snoozed_until}'}]",
        "cleared": f" [cleared at step {view.cleared_step}]",
    }[view.stage]
    subject = f" of {alert.subject}" if alert.subject else ""
    left = "" if view.current else f" (on branch {alert.branch}, which was left)"
    lines = [
        f"{view.seq:>6}  {alert.level:<8} step {alert.step}: {alert.kind}{subject}{left}{stage}",
        f"        {alert.sentence}",
    ]
    for each in alert.evidence:
        compared = [] if each.threshold is None else [f"threshold {each.threshold:.6g}"]
        compared += [f"mean {each.mean:.6g} of {each.window_steps} steps"] if each.mean is not None else []
        lines.append(f"        {each.sign} {each.value:.6g}" + (f" ({', '.join(compared)})" if compared else ""))
    if view.reflex:
        lines.append(f"        reflex {view.reflex} " + (f"did nothing: {view.declined}" if view.declined else "acted"))
    if alert.suggestion:
        lines.append(f"        try: steer {alert.suggestion}")
    lines.append(f"        more: steer explain {alert.kind}")
    return [one_line(line) for line in lines]


@steering_command
def ack(
    words: Words,
    note: Annotated[str | None, typer.Option(help="What you have found out; shown beside the alert.")] = None,
) -> RunIntent:
    """Acknowledge an alert: you have seen it, and it leaves the list."""
    run, number = run_and(words, "an alert", "steer ack RUN 17")
    return run, build_intent("acknowledge_alert", alert=_numbered(number), note=note)


@steering_command
def snooze(
    words: Words,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, metavar="N", help="For so many steps. Default: until it clears."),
    ] = None,
) -> RunIntent:
    """Snooze an alert, and later ones of its kind and subject. They are still recorded, and reflexes answer them."""
    run, number = run_and(words, "an alert", "steer snooze RUN 17 --steps 500")
    alert = _numbered(number)
    if steps is None:
        return run, build_intent("snooze_alert", alert=alert)
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    return snapshot.run, build_intent("snooze_alert", alert=alert, until_step=snapshot.step + steps)


def _numbered(word: str) -> int:
    if not word.isdecimal() or not 0 < int(word) < 2**53:
        raise UsageError(f"{word!r} is no number of an alert; `steer alerts` prints them")
    return int(word)
