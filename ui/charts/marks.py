"""ECharts series of the marks on a chart: commands, failures of the trainers, and alerts."""

from ui.charts.canvas import Canvas, Options, short
from ui.charts.layout import Band, ChartPanel, Mark

NEAR_THE_EDGE = 0.07
"""Distance from the right edge, as part of the width, within which a centred label would be cut off."""

NEAR_THE_END = 0.75
"""Place, as part of the width, beyond which an alert's label is left of its mark."""

ALERT_HEIGHT = 0.05
"""Height of an alert's mark above the bottom of a chart: commands are labelled at the top."""


def interventions(marks: list[Mark], bands: list[Band], canvas: Canvas) -> Options:
    """Return the marks: a dashed line where commands took effect, a solid one where trainers failed, with labels.

    The band beside a failure is its cost.
    """
    return {
        "id": f"{canvas.at}/interventions",
        "name": "interventions",
        "type": "line",
        "xAxisIndex": canvas.at,
        "yAxisIndex": canvas.at,
        "data": [],
        "markLine": {
            "symbol": "none",
            "silent": True,
            "animation": False,
            "lineStyle": {"type": [4, 3], "width": 1, "color": canvas.palette.mark},
            "label": {"formatter": "{b}", "position": "end", "fontSize": 10, "color": canvas.palette.mark},
            "data": [_mark(mark, canvas) for mark in marks if mark.level is None],
        },
        "markArea": {
            "silent": True,
            "animation": False,
            "itemStyle": {"color": canvas.palette.band},
            "data": [[{"xAxis": short(band.low)}, {"xAxis": short(band.high)}] for band in bands],
        },
    }


def _mark(mark: Mark, canvas: Canvas) -> Options:
    label: Options = {"show": bool(mark.label)}
    drawn: Options = {"xAxis": short(mark.x), "name": mark.label, "label": label}
    low, high = canvas.extent
    if mark.x > high - NEAR_THE_EDGE * (high - low):
        label["align"] = "right"
    if mark.loss:
        label |= {"color": canvas.palette.loss, "fontWeight": 600}
        drawn["lineStyle"] = {"type": "solid", "width": 1.4, "color": canvas.palette.loss}
    return drawn


def alerts(marks: list[Mark], panel: ChartPanel, canvas: Canvas) -> Options:
    """Return the marks of alerts: a dotted line from a triangle at the bottom, where the alert began.

    The charts that draw one of the alert's signs name it.
    """
    drawn = [mark for mark in marks if mark.level is not None]
    colours = canvas.palette.levels
    return {
        "id": f"{canvas.at}/alerts",
        "name": "alerts",
        "type": "scatter",
        "xAxisIndex": canvas.at,
        "yAxisIndex": canvas.count + canvas.at,
        "data": [_alert(mark, panel, canvas) for mark in drawn],
        "symbol": "triangle",
        "symbolSize": 9,
        "labelLayout": {"hideOverlap": True},
        "tooltip": {"show": False},
        "silent": True,
        "z": 6,
        "markLine": {
            "symbol": "none",
            "silent": True,
            "animation": False,
            "label": {"show": False},
            "data": [
                {
                    "xAxis": short(mark.x),
                    "lineStyle": {"type": [1, 3], "width": 1, "color": colours[mark.level or "info"]},
                }
                for mark in drawn
            ],
        },
    }


def _alert(mark: Mark, panel: ChartPanel, canvas: Canvas) -> Options:
    low, high = canvas.extent
    colour = canvas.palette.levels[mark.level or "info"]
    is_late = mark.x > low + NEAR_THE_END * (high - low)
    label = {
        "show": any(panel.takes(sign) for sign in mark.signs),
        "formatter": "{b}",
        "position": "left" if is_late else "right",
        "fontSize": 10,
        "color": colour,
        "fontWeight": 600,
    }
    return {
        "value": [short(mark.x), ALERT_HEIGHT],
        "name": mark.label,
        "itemStyle": {"color": colour},
        "label": label,
    }
