"""Live charts of a run: all panels in one ECharts component, whose zoom survives every refresh.

The component is mounted once under a fixed key and replaces only its series, so the user's zoom stays. See
docs/decisions/0002-live-charts.md for the alternatives that were measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.core.health.signs import own_name
from ui.charts.bins import bin_width
from ui.charts.canvas import Axis, Canvas, Options
from ui.charts.history import MetricsHistory
from ui.charts.layout import PANELS, Band, ChartPanel, Mark
from ui.charts.palette import DARK, LIGHT, Palette
from ui.charts.series import beside, panel_series

MAX_BINS = 600
"""Bins per chart. Two points per bin are more than a chart of half a screen has pixels."""

HEIGHT = "max(560px, calc(1420px - 140vw))"
"""Two rows of charts on a desktop; four rows, and taller, on a phone."""

NARROW_PX = 640
"""Below this width of the component the panels are in one column."""

FOOT_PX = 52
"""Height of the zoom slider's area below the charts."""

LEGEND_PX = 20
"""Height of the other branches' legend below the slider."""

MAX_NAMED = 3
"""Layers up to which a title names all of them."""

PIN_ZOOM = """
(event) => {
  if ((event.batch || [event])[0].start === undefined) return;
  const { start, end, startValue, endValue } = chart.getModel().getComponent('dataZoom', 0).option;
  if (start > 0 || end < 100) chart.dispatchAction({ type: 'dataZoom', dataZoomIndex: 0, startValue, endValue });
}
"""
"""Pins the zoom to values: ECharts keeps it in per cent of a growing axis, so the window would creep."""

SAY_RANGE = """
() => { chart.getDom().dataset.range = chart.getModel().getComponent('dataZoom', 0).getValueRange().join(' '); }
"""
"""Writes the drawn range of x to the element, since the content of a canvas cannot be read from outside."""

SHOW_ALL = "() => { chart.dispatchAction({ type: 'dataZoom', dataZoomIndex: 0, start: 0, end: 100 }); }"
"""Resets the zoom on a double click; the charts then follow the run again."""

EVENTS = {"datazoom": PIN_ZOOM, "finished": SAY_RANGE, "zr:dblclick": SHOW_ALL}


@dataclass(frozen=True, slots=True)
class View:
    """Display settings of the charts. `smoothing` is the weight of the moving average, from 0 (none) to 0.99."""

    smoothing: float = 0.0
    log_y: bool = False
    axis: Axis = "step"
    dark: bool = False

    @property
    def palette(self) -> Palette:
        """Colours for the page's theme."""
        return DARK if self.dark else LIGHT


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of titles and charts, for a wide and for a narrow component."""

    wide: Options
    narrow: Options
    narrow_px: int = NARROW_PX


def chart_options(
    history: MetricsHistory,
    marks: list[Mark],
    view: View,
    bands: Sequence[Band] = (),
    panels: Sequence[ChartPanel] = PANELS,
    layout: Layout | None = None,
) -> Options:
    """Return the ECharts options of all panels. `layout` is needed for other panels than `PANELS`."""
    extent = history.extent(view.axis) or (0.0, 1.0)
    others = beside(history)
    foot_px = LEGEND_PX if others else 0
    layout = layout or Layout(_two_columns(foot_px), _one_column())
    count = len(panels)
    series = [
        one
        for at, panel in enumerate(panels)
        for one in panel_series(history, panel, marks, list(bands), _canvas(at, count, panel, view, extent))
    ]
    is_one_tooltip = not any(panel.by_layer for panel in panels)
    return {
        "baseOption": {
            "animation": False,
            "textStyle": {"color": view.palette.text},
            "title": [_title(history, panel, view) for panel in panels],
            "grid": [{"id": f"grid {at}"} for at in range(count)],
            "xAxis": [_x_axis(at, view, extent) for at in range(count)],
            "yAxis": [_y_axis(at, panel, view) for at, panel in enumerate(panels)]
            + [_hidden_axis(at) for at in range(count)],
            "axisPointer": {"link": [{"xAxisIndex": "all"}] if is_one_tooltip else [], "label": {"show": False}},
            "legend": _legend(others, view.palette),
            "tooltip": {"trigger": "axis", "confine": True, "textStyle": {"fontSize": 12}},
            "dataZoom": _zoom(view.palette, foot_px, count),
            "toolbox": _toolbox(view.palette),
            "series": series,
        },
        "media": [
            {"query": {"maxWidth": layout.narrow_px}, "option": layout.narrow | _keep(series)},
            {"option": layout.wide | _keep(series)},
        ],
    }


def _keep(series: list[Options]) -> Options:
    """Return the series' ids for a layout's option, which would otherwise remove them."""
    return {"series": [{"id": one["id"], "type": one["type"]} for one in series]}


def _canvas(at: int, count: int, panel: ChartPanel, view: View, extent: tuple[float, float]) -> Canvas:
    """Return the canvas of a panel. Bins on a time axis are fractions of a minute: 1/64 of it is about a second."""
    span, cuts = extent[1] - extent[0], 1 if view.axis == "step" else 64
    return Canvas(
        at=at,
        count=count,
        bin_width=bin_width(span * cuts, MAX_BINS) / cuts,
        axis=view.axis,
        smoothing=view.smoothing,
        log_y=view.log_y and panel.may_be_log,
        palette=view.palette,
        extent=extent,
    )


def _title(history: MetricsHistory, panel: ChartPanel, view: View) -> Options:
    """Return the panel's title, with the newest value of each metric in the colour of its line.

    Of layers, the ones with the highest and the lowest value are named.
    """
    parts, styles, known = [panel.title], {}, history.series
    names = panel.metrics(known)
    shown = dict(zip(names, panel.colours(len(names), view.palette), strict=True))
    newest = {name: known[name].values[-1] for name in names}
    for number, (words, name) in enumerate(_named(panel, newest)):
        style = f"line{number}"
        parts.append(f"{{{style}|{words}{_own(name) if panel.by_layer else name} {newest[name]:.4g}}}")
        styles[style] = {"color": shown[name], "fontSize": 12}
    return {"text": "   ".join(parts), "textStyle": {"fontSize": 13, "fontWeight": 600, "rich": styles}, "padding": 0}


def _named(panel: ChartPanel, newest: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the metrics that a title names, each with a word before it."""
    if not panel.by_layer or len(newest) <= MAX_NAMED:
        return [("", name) for name in newest]
    finite = [name for name in newest if math.isfinite(newest[name])] or list(newest)
    return [("highest ", max(finite, key=newest.__getitem__)), ("lowest ", min(finite, key=newest.__getitem__))]


def _own(name: str) -> str:
    """Return the part of a name that tells the layer; braces and bars would end a style of ECharts."""
    return own_name(name).translate({ord(mark): "_" for mark in "{}|"})


def _legend(others: list[str], palette: Palette) -> Options:
    """Return the legend of the other branches; a click hides one. The current line is in the titles."""
    return {
        "data": others,
        "type": "scroll",
        "bottom": 0,
        "padding": 0,
        "itemWidth": 30,
        "itemStyle": {"opacity": 0},
        "textStyle": {"fontSize": 11, "color": palette.text},
        "inactiveColor": palette.grid,
        "pageIconSize": 9,
        "pageTextStyle": {"color": palette.text},
    }


def _x_axis(at: int, view: View, extent: tuple[float, float]) -> Options:
    return {
        "gridIndex": at,
        "type": "value",
        "min": extent[0],
        "max": max(extent[1], extent[0] + 1e-3),
        "splitLine": {"show": False},
        "axisLine": {"onZero": False, "lineStyle": {"color": view.palette.grid}},
        "axisTick": {"show": False},
        "axisLabel": {"color": view.palette.text, "fontSize": 11, "hideOverlap": True, "showMaxLabel": False},
        "splitNumber": 5,
        "axisPointer": {"label": {"precision": 0 if view.axis == "step" else 1}},
    }


def _y_axis(at: int, panel: ChartPanel, view: View) -> Options:
    return {
        "gridIndex": at,
        "type": "log" if view.log_y and panel.may_be_log else "value",
        "scale": True,
        "splitNumber": 4,
        "splitLine": {"lineStyle": {"color": view.palette.grid}},
        "axisLine": {"show": False},
        "axisLabel": {"color": view.palette.text, "fontSize": 11},
    }


def _hidden_axis(at: int) -> Options:
    """Return an axis from 0 at the bottom to 1 at the top of a chart, for marks without a value."""
    return {"gridIndex": at, "type": "value", "min": 0, "max": 1, "show": False}


def _zoom(palette: Palette, above_px: int, count: int) -> list[Options]:
    """Return the zoom of all panels: a slider below them; inside, drag moves it and Ctrl with the wheel changes it."""
    every = list(range(count))
    common = {"xAxisIndex": every, "filterMode": "filter"}
    slider = {
        "type": "slider",
        "height": 18,
        "bottom": 8 + above_px,
        "left": 56,
        "right": 16,
        "showDataShadow": False,
        "brushSelect": True,
        "borderColor": palette.grid,
        "fillerColor": palette.lines[0] + "2e",
        "handleSize": "120%",
        "textStyle": {"fontSize": 11, "color": palette.text},
        "labelPrecision": 0,
    }
    return [common | slider, common | {"type": "inside", "zoomOnMouseWheel": "ctrl", "moveOnMouseMove": True}]


def _toolbox(palette: Palette) -> Options:
    save = {"title": "Save as PNG", "name": "steerway-charts", "pixelRatio": 2}
    return {
        "right": 10,
        "top": 0,
        "padding": 0,
        "itemSize": 13,
        "showTitle": False,
        "iconStyle": {"borderColor": palette.text},
    } | {"feature": {"saveAsImage": save}}


def _two_columns(above_px: int) -> Options:
    """Return the layout with two charts per row."""
    titles, grids = [], []
    for at in range(len(PANELS)):
        row, column = divmod(at, 2)
        titles.append({"top": "49%" if row else 2, "left": 8 if column == 0 else "51%"})
        grids.append(
            {
                "top": "56%" if row else 40,
                "bottom": FOOT_PX + 18 + above_px if row else "57%",
                "left": 52 if column == 0 else "55.5%",
                "right": "53%" if column == 0 else 18,
            }
        )
    return {"title": titles, "grid": grids}


def _one_column() -> Options:
    """Return the layout with one chart per row."""
    titles, grids = [], []
    for at in range(len(PANELS)):
        titles.append({"top": f"{at * 23.5 + 0.2:g}%", "left": 4})
        grids.append({"top": f"{at * 23.5 + 4.2:g}%", "height": "16%", "bottom": "auto", "left": 46, "right": 14})
    return {"title": titles, "grid": grids}
