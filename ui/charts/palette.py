"""Colours of the charts, for a light and for a dark page."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours that are distinguishable on their background, also with the common kinds of colour blindness."""

    text: str
    grid: str
    mark: str
    fault: str
    loss: str
    band: str
    beside: str
    phases: tuple[str, ...]
    lines: tuple[str, ...]


LIGHT = Palette(
    text="#57534e",
    grid="#eceae8",
    mark="#be123c",
    fault="#b91c1c",
    loss="#292524",
    band="rgba(87, 83, 78, 0.14)",
    beside="#78716c",
    phases=("#b45309", "#4338ca", "#0f766e", "#a21caf"),
    lines=("#4338ca", "#b45309", "#0f766e", "#a21caf", "#57534e"),
)
DARK = Palette(
    text="#a8a29e",
    grid="#22262f",
    mark="#fb7185",
    fault="#fb7185",
    loss="#e7e5e4",
    band="rgba(214, 211, 209, 0.16)",
    beside="#a8a29e",
    phases=("#fbbf24", "#8b85ff", "#2dd4bf", "#f0abfc"),
    lines=("#8b85ff", "#fbbf24", "#2dd4bf", "#f0abfc", "#d6d3d1"),
)
