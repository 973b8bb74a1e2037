"""Figure of an effect: the curves of a run with and without a command, and their distance beside the placebos."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from control_plane.cli.errors import UsageError
from control_plane.compare.effect import EffectReport, MetricEffect
from control_plane.core.model.errors import Unavailable

FORMATS = (".png", ".svg")
ROWS = 3
"""Metrics in a figure: the training loss, an evaluation loss, and one more."""

WITH, WITHOUT, PLACEBO = "#c0392b", "#2471a3", "#9aa0a6"

Curves = Mapping[str, Mapping[int, float]]


def check_can_draw(path: Path) -> None:
    """Raise `UsageError` for another format or a missing folder, `Unavailable` without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--figure {path}: the file's name must end with {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--figure {path}: there is no folder {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Unavailable("--figure needs matplotlib: pip install 'steerway[figures]'") from None


def draw(path: Path, report: EffectReport, arms: Sequence[Curves]) -> None:
    """Draw a figure into a file.

    Args:
        arms: curves of the run, of its replay without the command, and of the placebos.

    Raises: `UsageError` if the file cannot be written.
    """
    from matplotlib.figure import Figure

    chosen = _chosen(report.metrics)
    figure = Figure(figsize=(10, 2.6 * len(chosen) + 0.6), layout="constrained")
    panels = figure.subplots(len(chosen), 2, squeeze=False, sharex=True)
    for row, name in zip(panels, chosen, strict=True):
        _curves(row[0], name, arms, report.without.step)
        _distances(row[1], name, arms, report.without.step)
    panels[0][0].legend(fontsize=8)
    panels[0][1].legend(fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    figure.suptitle(f"{report.what}, after step {report.without.step}", fontsize=11)
    try:
        figure.savefig(path, dpi=85)
    except OSError as error:
        raise UsageError(f"--figure {path} cannot be written: {error.strerror or error}") from None


def _chosen(metrics: Sequence[MetricEffect]) -> list[str]:
    """Return the metrics to draw: those with two points or more, in the order of the report."""
    names = [metric.name for metric in metrics if metric.points > 1 and metric.name != "loss_local"]
    return names[:ROWS] or [metrics[0].name]


def _curves(panel: Any, name: str, arms: Sequence[Curves], step: int) -> None:
    run, without, *placebos = (arm[name] for arm in arms)
    for number, points in enumerate(placebos):
        _line(panel, points, PLACEBO, "placebos" if number == 0 else None, 0.8)
    _line(panel, without, WITHOUT, "without the command", 1.4)
    _line(panel, run, WITH, "the run", 1.4)
    panel.axvline(step, color="black", linewidth=0.7, linestyle=":")
    panel.set_ylabel(name)


def _distances(panel: Any, name: str, arms: Sequence[Curves], step: int) -> None:
    """Draw on a logarithmic scale: placebos are nearer by orders of magnitude, and drift apart as quickly."""
    run, without, *placebos = (arm[name] for arm in arms)
    for number, points in enumerate(placebos):
        _line(panel, _distance(points, without), PLACEBO, "placebos from without" if number == 0 else None, 0.8)
    _line(panel, _distance(run, without), WITH, "the run from without", 1.4)
    panel.axvline(step, color="black", linewidth=0.7, linestyle=":")
    if any(_distance(arm, without) for arm in (run, *placebos)):
        panel.set_yscale("log")
    panel.set_ylabel(f"distance of {name}")


def _distance(points: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """Return where two curves differ, and by how much."""
    return {step: abs(value - other[step]) for step, value in points.items() if other.get(step, value) != value}


def _line(panel: Any, points: Mapping[int, float], colour: str, label: str | None, width: float) -> None:
    steps = sorted(points)
    marker = "o" if len(steps) <= 12 else None
    panel.plot(
        steps, [points[at] for at in steps], color=colour, label=label, linewidth=width, marker=marker, markersize=3
    )
