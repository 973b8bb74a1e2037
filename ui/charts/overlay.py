"""Charts of a comparison: the losses of all sides over the same steps, from their last common step."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.api.messages import StepRange
from control_plane.compare.comparison import Comparison, Side
from ui.charts.bins import bin_width
from ui.charts.canvas import Canvas, Options
from ui.charts.history import MetricsHistory, Series, x_of
from ui.charts.palette import Palette
from ui.charts.series import metric

CHARTS = (("loss", "Loss"), ("eval_loss", "Evaluation loss"))
MAX_BINS = 600
HEIGHT_PX = 340
"""Height of each chart."""

TITLE_PX, FOOT_PX, LEGEND_PX = 34, 30, 30


@dataclass(frozen=True, slots=True)
class Look:
    """Display settings of the charts."""

    smoothing: float
    log_y: bool
    palette: Palette


def along(side: Side, comparison: Comparison, history: MetricsHistory) -> dict[str, Series]:
    """Return the metrics of a side since the last common step. In `history` branches are named `RUN:BRANCH`."""
    line = [
        StepRange(
            branch=f"{piece.run}:{piece.stretch.branch}",
            first=max(piece.stretch.first, comparison.common.step),
            last=piece.stretch.last,
        )
        for piece in side.line
        if piece.stretch.last is None or piece.stretch.last >= comparison.common.step
    ]
    return history.along(side.name, line) if line else {}


def overlay_options(comparison: Comparison, sides: Sequence[dict[str, Series]], look: Look) -> Options:
    """Return the ECharts options of all charts."""
    charts = shown(sides)
    extent = (float(comparison.common.step), float(max(side.step for side in comparison.sides)))
    series = [
        one
        for at, (name, _) in enumerate(charts)
        for number, (side, measured) in enumerate(zip(comparison.sides, sides, strict=True))
        if name in measured
        for one in _line(side, number, name, measured[name], _canvas(at, len(charts), extent, look))
    ]
    text = {"color": look.palette.text, "fontSize": 12}
    every = list(range(len(charts)))
    return {
        "animation": False,
        "textStyle": {"color": look.palette.text},
        "title": [_title(at, title, look) for at, (_, title) in enumerate(charts)],
        "legend": {"data": [side.name for side in comparison.sides], "type": "scroll", "top": 4, "left": 4}
        | {"textStyle": text, "icon": "roundRect", "itemHeight": 4, "pageTextStyle": text},
        "grid": [_grid(at) for at in every],
        "xAxis": [_x_axis(at, extent, look) for at in every],
        "yAxis": [_y_axis(at, look) for at in every],
        "axisPointer": {"link": [{"xAxisIndex": "all"}], "label": {"show": False}},
        "tooltip": {"trigger": "axis", "confine": True, "textStyle": {"fontSize": 12}},
        "dataZoom": [{"type": "inside", "xAxisIndex": every, "zoomOnMouseWheel": "ctrl", "moveOnMouseMove": True}],
        "series": series,
    }


def shown(sides: Sequence[dict[str, Series]]) -> list[tuple[str, str]]:
    """Return the charts that have data."""
    return [(name, title) for name, title in CHARTS if any(name in side for side in sides)]


def height(sides: Sequence[dict[str, Series]]) -> str:
    """Return the height of all charts together."""
    return f"{LEGEND_PX + HEIGHT_PX * max(1, len(shown(sides)))}px"


def _line(side: Side, number: int, name: str, series: Series, canvas: Canvas) -> list[Options]:
    colour = canvas.palette.lines[number % len(canvas.palette.lines)]
    sparse = name != "loss"
    x = x_of(series, "step", 0.0)
    return metric(side.name, series, x, colour, canvas, may_be_smooth=True, sparse=sparse)


def _canvas(at: int, count: int, extent: tuple[float, float], look: Look) -> Canvas:
    width = bin_width(extent[1] - extent[0], MAX_BINS)
    return Canvas(at, count, width, "step", look.smoothing, look.log_y, look.palette, extent)


def _top(at: int) -> int:
    return LEGEND_PX + at * HEIGHT_PX


def _title(at: int, title: str, look: Look) -> Options:
    style = {"fontSize": 13, "fontWeight": 600, "color": look.palette.text}
    return {"text": title, "top": _top(at) + 6, "left": 4, "padding": 0, "textStyle": style}


def _grid(at: int) -> Options:
    return {"top": _top(at) + TITLE_PX, "height": HEIGHT_PX - TITLE_PX - FOOT_PX, "left": 52, "right": 18}


def _x_axis(at: int, extent: tuple[float, float], look: Look) -> Options:
    return {
        "gridIndex": at,
        "type": "value",
        "min": extent[0],
        "max": max(extent[1], extent[0] + 1),
        "splitLine": {"show": False},
        "axisLine": {"onZero": False, "lineStyle": {"color": look.palette.grid}},
        "axisTick": {"show": False},
        "axisLabel": {"color": look.palette.text, "fontSize": 11, "hideOverlap": True},
    }


def _y_axis(at: int, look: Look) -> Options:
    return {
        "gridIndex": at,
        "type": "log" if look.log_y else "value",
        "scale": True,
        "splitNumber": 4,
        "splitLine": {"lineStyle": {"color": look.palette.grid}},
        "axisLine": {"show": False},
        "axisLabel": {"color": look.palette.text, "fontSize": 11},
    }
