"""Explanations of alerts, signs and knobs as Markdown, for what stands beside them."""

from control_plane.core.health.advice import explain
from ui.labels import plain, sentence


def meaning(name: str) -> str | None:
    """Return the explanation of an alert, a sign or a knob, in Markdown; None if there is none."""
    known = explain(name)
    if known is None:
        return None
    actions = "".join(f"\n- {sentence(action)}" for action in known.actions)
    return f"**{plain(known.title)}.** {sentence(known.meaning)}\n\nWhat people do:\n{actions}"
