"""Settings of one chart that its series share, and the rounding of what they draw."""

from dataclasses import dataclass
from typing import Any, Literal

from ui.charts.palette import Palette

Axis = Literal["step", "time"]
Options = dict[str, Any]
Pairs = list[list[float | None]]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Settings of one chart: its number, the number of charts, the width of its bins, its x axis and its style."""

    at: int
    count: int
    bin_width: float
    axis: Axis
    smoothing: float
    log_y: bool
    palette: Palette
    extent: tuple[float, float] = (0.0, 1.0)


def short(value: float) -> float:
    """Round to six digits, which is more than a screen shows; whole steps stay exact."""
    return value if float(value).is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")
