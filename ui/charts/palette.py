"""Colours of the charts, for a light and for a dark page."""

from collections.abc import Mapping
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
    info: str
    warning: str

    @property
    def levels(self) -> Mapping[str, str]:
        """Colour of each level of alerts."""
        return {"info": self.info, "warning": self.warning, "critical": self.fault}

    def gradient(self, count: int) -> list[str]:
        """Return `count` colours from the first line's over the third's to the second's, for an order of layers."""
        stops = [_rgb(self.lines[at]) for at in (0, 2, 1)]
        places = [2 * at / max(1, count - 1) for at in range(count)]
        return [_between(stops, place) for place in places]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _between(stops: list[tuple[int, int, int]], place: float) -> str:
    """Return the colour at `place`, from 0 (the first stop) to the number of the last one."""
    at = min(int(place), len(stops) - 2)
    mixed = (round(low + (high - low) * (place - at)) for low, high in zip(stops[at], stops[at + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


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
    info="#0369a1",
    warning="#b45309",
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
    info="#7dd3fc",
    warning="#fbbf24",
)
