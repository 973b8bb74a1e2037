"""Explanations of alerts, signs and knobs: meaning and advice, for the command line, the console and a document."""

from collections.abc import Mapping

from control_plane.core.health.advice.alerts import ALERTS
from control_plane.core.health.advice.entry import Explanation
from control_plane.core.health.advice.knobs import KNOBS
from control_plane.core.health.signs import SIGNS, Sign, sign_of


def _of_sign(sign: Sign) -> Explanation:
    see = tuple(alert.name for alert in ALERTS.values() if sign.pattern in alert.see)
    return Explanation(sign.pattern, "sign", f"{sign.pattern} ({sign.unit})", sign.meaning, (sign.advice,), see)


EXPLANATIONS: Mapping[str, Explanation] = {
    **ALERTS,
    **{sign.pattern: _of_sign(sign) for sign in SIGNS if sign.pattern not in KNOBS},
    **KNOBS,
}
"""All explanations: alerts, then signs, then knobs. `lr`, a sign and a knob, is explained as a knob."""


def explain(name: str) -> Explanation | None:
    """Return the explanation of an alert kind, a sign or a knob, or None if there is none.

    Args:
        name: as shown anywhere: `loss_spike`, `loss spike`, `dormant/h.3`, `max_grad_norm`, `*.attn.*:p`.
    """
    asked = name.strip()
    for known in (asked, asked.casefold().replace(" ", "_").replace("-", "_")):
        if known in EXPLANATIONS:
            return EXPLANATIONS[known]
    if (sign := sign_of(asked)) is not None:
        return EXPLANATIONS[sign.pattern]
    if ":" in asked:
        return KNOBS["PATTERN:ATTRIBUTE"]
    return KNOBS["loss/<name>"] if "/" in asked and asked.startswith("loss/") else None


def similar(name: str) -> tuple[str, ...]:
    """Return known names that share a word with this one, for the message about an unknown name."""
    words = {word for word in name.casefold().replace("/", "_").replace(" ", "_").split("_") if len(word) > 2}
    return tuple(known for known in EXPLANATIONS if any(word in known.casefold() for word in words))[:8]
