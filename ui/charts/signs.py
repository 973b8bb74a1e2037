"""Charts of the signs of a run's health: one chart for each sign of a group."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import get_args

from control_plane.core.health.signs import SIGNS, Sign, SignGroup
from ui.charts.canvas import Options
from ui.charts.charts import FOOT_PX, LEGEND_PX, Layout
from ui.charts.layout import PANELS, ChartPanel

GROUPS: tuple[SignGroup, ...] = get_args(SignGroup)
"""Groups in the order of the catalogue."""

STEPPED = ("schedule", "precision")
"""Groups of values that are set or counted: they jump, and are not smoothed."""

INDEXES = ("phase", "dynamics/state")
"""Signs whose values are numbers of names: a logarithm or an average of them has no meaning."""

ROW_PX, CHART_PX, TITLE_PX = 196, 136, 30
"""Height of a row with its title and its axis, of the chart in it, and of the title."""

NARROW_PX = 560
"""Below this width of the component the charts are in one column."""

STACKED_BELOW_PX = 760
"""Width of the window below which the component is narrower than `NARROW_PX`."""


def group_names(names: Iterable[str]) -> dict[SignGroup, dict[Sign, list[str]]]:
    """Return the metrics of a run that are signs, by group and sign; metrics of the main charts are left out."""
    by_sign: dict[Sign, list[str]] = {}
    for name in names:
        if any(panel.takes(name) for panel in PANELS):
            continue
        for sign in SIGNS:
            if sign.matches(name):
                by_sign.setdefault(sign, []).append(name)
    present = {
        group: {sign: by_sign[sign] for sign in SIGNS if sign.group == group and sign in by_sign} for group in GROUPS
    }
    return {group: signs for group, signs in present.items() if signs}


def sign_panels(signs: Mapping[Sign, Sequence[str]]) -> tuple[ChartPanel, ...]:
    """Return a chart for each sign."""
    return tuple(_panel(sign, frozenset(names)) for sign, names in signs.items())


def _panel(sign: Sign, names: frozenset[str]) -> ChartPanel:
    return ChartPanel(
        title(sign),
        names.__contains__,
        smooth=sign.group not in STEPPED and sign.pattern not in INDEXES,
        may_be_log=sign.pattern not in INDEXES,
        by_layer=sign.cadence in ("gather", "hooks") and bool(sign.prefix),
    )


def title(sign: Sign) -> str:
    """Return the name of a sign without its pattern: `update_ratio`, `eval loss`."""
    return sign.pattern.replace("/<", "<").partition("<")[0] + sign.suffix.replace("_", " ")


def shown_names(signs: Mapping[Sign, Sequence[str]]) -> list[str]:
    """Return the metrics that the charts of these signs draw."""
    return list(
        chain.from_iterable(panel.metrics(signs[sign]) for panel, sign in zip(sign_panels(signs), signs, strict=True))
    )


def height(count: int) -> str:
    """Return the height of `count` charts: of two columns, and of one in a narrow window."""
    wide, narrow = (rows * ROW_PX + FOOT_PX + LEGEND_PX for rows in ((count + 1) // 2, count))
    return f"clamp({wide}px, calc(({STACKED_BELOW_PX}px - 100vw) * 1000), {narrow}px)"


def layout(count: int) -> Layout:
    """Return the places of `count` charts; a single one takes the whole width."""
    return Layout(_columns(count, min(2, count)), _columns(count, 1), NARROW_PX)


def _columns(count: int, columns: int) -> Options:
    titles, grids = [], []
    for at in range(count):
        row, column = divmod(at, columns)
        top = row * ROW_PX
        titles.append({"top": top + 4, "left": 4 if column == 0 else "51%"})
        grids.append(
            {
                "top": top + TITLE_PX,
                "height": CHART_PX,
                "bottom": "auto",
                "left": 52 if column == 0 else "55.5%",
                "right": "53%" if column == 0 and columns == 2 else 18,
            }
        )
    return {"title": titles, "grid": grids}
