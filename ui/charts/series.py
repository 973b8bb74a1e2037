"""ECharts series of one chart: lines, marks of commands and failures, marks of values that are not finite."""

import math

import numpy as np

from ui.charts.bins import Floats, extremes, last_of_bins
from ui.charts.canvas import Canvas, Options, Pairs, short
from ui.charts.history import MetricsHistory, Series
from ui.charts.layout import Band, ChartPanel, Mark
from ui.charts.marks import alerts, interventions

MAX_FAULTS = 60
"""Number of marks of values that are not finite, per metric: one per bin, the newest ones."""

MAX_BESIDE = 6
"""Number of other branches behind the line, the newest ones. More grey lines cannot be told apart."""

DASHES: tuple[str | list[int], ...] = ("solid", [6, 3], [2, 2], [10, 3, 2, 3])
"""Line styles of the other branches."""

EVALUATED = ("eval", "heldout/")
"""Beginnings of the names of metrics that are measured at evaluations: few points, each drawn as one."""


def panel_series(
    history: MetricsHistory, panel: ChartPanel, marks: list[Mark], bands: list[Band], canvas: Canvas
) -> list[Options]:
    """Return the ECharts series of one panel."""
    drawn: list[Options] = []
    names, known = panel.metrics(history.series), history.series
    for name, colour in zip(names, panel.colours(len(names), canvas.palette), strict=True):
        series = known[name]
        x = history.x(series, canvas.axis)
        drawn += _metric(name, panel, series, x, colour, canvas)
        if not panel.by_layer or not np.isfinite(series.values).all():
            drawn.append(_faults(name, series, x, canvas))
    for number, branch in enumerate([] if panel.by_layer else beside(history)):
        drawn += _beside(history, panel, branch, number, canvas)
    return [*drawn, interventions(marks, bands, canvas), alerts(marks, panel, canvas)]


def beside(history: MetricsHistory) -> list[str]:
    """Return the other branches that are drawn, the newest last."""
    others = history.others
    return sorted(others, key=lambda name: max(series.times_s[-1] for series in others[name].values()))[-MAX_BESIDE:]


def _beside(history: MetricsHistory, panel: ChartPanel, branch: str, number: int, canvas: Canvas) -> list[Options]:
    """Return the series of another branch, thin and grey behind the line. All have its name, for the legend."""
    others = history.others[branch]
    drawn = []
    for name in panel.metrics(others):
        series, x = others[name], history.x(others[name], canvas.axis)
        is_smooth = panel.smooth and canvas.smoothing > 0 and not name.startswith(EVALUATED)
        data = _smoothed(series, x, canvas) if is_smooth else _raw(series, x, canvas)
        style = {"width": 1, "color": canvas.palette.beside, "opacity": 0.7, "type": DASHES[number % len(DASHES)]}
        drawn.append(
            _line(branch, canvas.palette.beside, data, canvas)
            | {"id": f"{canvas.at}/{name}/of {branch}", "lineStyle": style, "tooltip": {"show": False}, "z": 1}
            | {"step": False if panel.smooth else "end", "symbol": "none"}
        )
    return drawn


def _metric(name: str, panel: ChartPanel, series: Series, x: Floats, colour: str, canvas: Canvas) -> list[Options]:
    sparse, may_be_smooth = name.startswith(EVALUATED), panel.smooth and not panel.by_layer
    drawn = metric(name, series, x, colour, canvas, may_be_smooth=may_be_smooth, sparse=sparse)
    drawn[0]["step"] = False if panel.smooth else "end"
    return drawn


def metric(
    name: str, series: Series, x: Floats, colour: str, canvas: Canvas, *, may_be_smooth: bool, sparse: bool
) -> list[Options]:
    """Return the measured line of a metric; with smoothing, that line is faint and the smooth one is above it."""
    raw = _line(name, colour, _raw(series, x, canvas), canvas) | {"showSymbol": sparse}
    if sparse or not may_be_smooth or canvas.smoothing <= 0:
        return [raw]
    raw |= {"lineStyle": {"width": 1, "color": colour, "opacity": 0.28}, "tooltip": {"show": False}, "z": 2}
    smooth = _line(name, colour, _smoothed(series, x, canvas), canvas)
    return [raw, smooth | {"id": f"{canvas.at}/{name}/smooth"}]


def _line(name: str, colour: str, data: Pairs, canvas: Canvas) -> Options:
    return {
        "id": f"{canvas.at}/{name}",
        "name": name,
        "type": "line",
        "xAxisIndex": canvas.at,
        "yAxisIndex": canvas.at,
        "data": data,
        "showSymbol": False,
        "symbol": "circle",
        "symbolSize": 6,
        "silent": True,
        "itemStyle": {"color": colour},
        "lineStyle": {"width": 1.6, "color": colour},
        "z": 3,
    }


def _raw(series: Series, x: Floats, canvas: Canvas) -> Pairs:
    y = _drawable(np.array(series.values), canvas)
    return _joined([extremes(x[cut], y[cut], canvas.bin_width) for cut in _pieces(series, canvas)])


def _smoothed(series: Series, x: Floats, canvas: Canvas) -> Pairs:
    y = _drawable(series.smoothed(canvas.smoothing), canvas)
    parts = []
    for cut in _pieces(series, canvas):
        finite = np.isfinite(y[cut])
        parts.append(last_of_bins(x[cut][finite], y[cut][finite], canvas.bin_width))
    return _joined(parts)


def _pieces(series: Series, canvas: Canvas) -> list[slice]:
    """Return the connected ranges of a line: over time it has a gap at each restart, over steps it has none."""
    return series.pieces() if canvas.axis == "time" else [slice(0, len(series.steps))]


def _drawable(y: Floats, canvas: Canvas) -> Floats:
    """Replace values that are not positive by NaN on a logarithmic axis."""
    return np.where(y > 0, y, np.nan) if canvas.log_y else y


def _joined(parts: list[tuple[Floats, Floats]]) -> Pairs:
    """Concatenate ranges, with a gap between them."""
    points: Pairs = []
    for x, y in parts:
        if points and len(x):
            points.append([short(float(x[0])), None])
        points += [[short(a), short(b)] for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return points


def _faults(name: str, series: Series, x: Floats, canvas: Canvas) -> Options:
    """Return the marks of values that are not finite: triangles at the top of the chart."""
    y = np.array(series.values)
    bad = np.flatnonzero(~np.isfinite(y))
    _, first = np.unique(np.floor_divide(x[bad], canvas.bin_width), return_index=True)
    shown = bad[np.sort(first)][-MAX_FAULTS:]
    return {
        "id": f"{canvas.at}/{name}/faults",
        "name": f"{name} not finite",
        "type": "scatter",
        "xAxisIndex": canvas.at,
        "yAxisIndex": canvas.count + canvas.at,
        "data": [{"value": [short(float(x[i])), 0.96], "name": _fault(float(y[i]))} for i in shown],
        "symbol": "triangle",
        "symbolRotate": 180,
        "symbolSize": 8,
        "itemStyle": {"color": canvas.palette.fault},
        "label": {"show": True, "formatter": "{b}", "position": "bottom", "fontSize": 10, "color": "inherit"},
        "labelLayout": {"hideOverlap": True},
        "tooltip": {"show": False},
        "silent": True,
        "z": 5,
    }


def _fault(value: float) -> str:
    return "NaN" if math.isnan(value) else "+inf" if value > 0 else "-inf"
