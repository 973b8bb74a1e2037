"""`steer explain`: what an alert, a sign or a knob means, and what people do."""

from typing import Annotated

import typer

from control_plane.cli.commands.show import AsJson
from control_plane.cli.output.printing import tell, tell_json
from control_plane.core.health.advice import EXPLANATIONS, similar
from control_plane.core.health.advice import explain as explanation_of
from control_plane.core.model.errors import NotFound


def explain(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="An alert, a sign or a knob: loss_spike, grad_norm, weight_decay."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain an alert, a sign or a knob: what it means, and what people do. Without a name: list all names."""
    if name is None:
        _list(as_json)
        return
    found = explanation_of(name)
    if found is None:
        near = ", ".join(similar(name))
        hint = f"; did you mean one of {near}?" if near else "; `steer explain` lists all names"
        raise NotFound(f"nothing is known of {name!r}{hint}")
    if as_json:
        tell_json(
            {
                "name": found.name,
                "topic": found.topic,
                "title": found.title,
                "meaning": found.meaning,
                "actions": list(found.actions),
                "see": list(found.see),
            }
        )
        return
    tell(f"{found.title} ({found.topic} {found.name})", "", found.meaning, "", "What people do:")
    tell(*(f"  - {action}" for action in found.actions))
    if found.see:
        tell("", f"See also: {', '.join(found.see)}")


def _list(as_json: bool) -> None:
    topics: dict[str, list[str]] = {}
    for known in EXPLANATIONS.values():
        topics.setdefault(known.topic, []).append(known.name)
    if as_json:
        tell_json(topics)
        return
    for topic, names in topics.items():
        tell(f"{topic}: {', '.join(names)}")
