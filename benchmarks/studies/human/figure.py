"""Figure of the study of interventions: loss on the evaluation text and learning rate of the three arms."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import Say
from benchmarks.studies.human.plan import ARMS, CURVE_EVERY_STEPS

if TYPE_CHECKING:
    from benchmarks.studies.human.study_human import Study

NAME = "human-curves.svg"
COLORS = {"static": "tab:gray", "steered": "tab:blue", "tuned": "tab:green"}
WIDTH_IN, HEIGHT_IN = 9.0, 6.0


def draw(study: "Study", folder: Path, say: Say) -> list[str]:
    """Draw the figure into a folder, and return the names of its files; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        say("no figure is drawn: matplotlib is not installed (it comes with steerway[dev])")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "steerway"  # the same file for the same results
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(WIDTH_IN, HEIGHT_IN), sharex=True, layout="constrained")
    for arm, label in ARMS.items():
        _curve(upper, [row["evals"] for row in study.rows[arm]], label, COLORS[arm])
        rates = study.rows[arm][0]["rates"]
        steps = [index * CURVE_EVERY_STEPS + 1 for index in range(len(rates))]
        lower.plot(steps, [rate or float("nan") for rate in rates], color=COLORS[arm], label=label, linewidth=1.3)
    for axes in (upper, lower):
        for one in study.interventions:
            axes.axvline(one["step"], color=COLORS["steered"], linewidth=0.6, linestyle=":")
    upper.set_ylabel("evaluation loss, nats a token")
    upper.legend(fontsize=8, title=f"mean and range of {len(study.rows['static'])} seeds", title_fontsize=8)
    lower.set_ylabel("learning rate")
    lower.set_yscale("log")
    lower.set_xlabel("step; dotted: the recorded interventions")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / NAME, metadata={"Date": None})
    pyplot.close(figure)
    return [NAME]


def _curve(axes: Any, curves: Sequence[Sequence[Sequence[float]]], label: str, color: str) -> None:
    steps = [int(step) for step, _ in curves[0]]
    losses = list(zip(*([loss for _, loss in curve] for curve in curves), strict=True))
    axes.plot(steps, [fmean(values) for values in losses], color=color, label=label, linewidth=1.3)
    axes.fill_between(
        steps, [min(values) for values in losses], [max(values) for values in losses], color=color, alpha=0.2
    )
