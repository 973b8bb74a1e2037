"""Figures of the agent's study: who is rescued, by start and arm; and losses and rates of one bad start."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import Say
from benchmarks.studies.drawing import open_pyplot
from benchmarks.studies.plan import CURVE_EVERY_STEPS

if TYPE_CHECKING:
    from benchmarks.studies.study_agent import Study

SHOWN_START = 100.0
SHOWN_ARMS = ("nothing", "cosine", "greedy-published", "random", "guarded", "probing")
DPI, WIDTH_IN = 110, 9.0
SMOOTHED_POINTS = 3


def draw(study: "Study", folder: Path, say: Say) -> list[str]:
    """Draw the figures into a folder, and return the names of their files; none without matplotlib."""
    pyplot = open_pyplot(say)
    if pyplot is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, make in (("agent-rescued", _rescued), ("agent-curves", _curves)):
        figure = make(study, pyplot)
        figure.savefig(folder / f"{name}.png", dpi=DPI)
        pyplot.close(figure)
        drawn.append(f"{name}.png")
    return drawn


def _rescued(study: "Study", pyplot: Any) -> Any:
    starts = sorted({start for _, start in study.rows}, key=lambda start: (start == 0, start))
    arms = study.arms
    shares = [[100 * fmean(study.rescued(arm.name, [start])) for start in starts] for arm in arms]
    figure, axes = pyplot.subplots(figsize=(WIDTH_IN, 0.42 * len(arms) + 1.4), layout="constrained")
    image = axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(starts)), [f"{start:g} x" if start else "5e-3" for start in starts])
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set_xlabel("learning rate at the start, as a multiple of the tuned one")
    for row, of_arm in enumerate(shares):
        for column, share in enumerate(of_arm):
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, label="runs within 5 % of the oracle, %")
    return figure


def _curves(study: "Study", pyplot: Any) -> Any:
    start = SHOWN_START if any(each == SHOWN_START for _, each in study.rows) else max(each for _, each in study.rows)
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(WIDTH_IN, 6), sharex=True, layout="constrained")
    shown = [("oracle", study.oracle)]
    shown += [(arm.label, study.rows[arm.name, start]) for arm in study.arms if arm.name in SHOWN_ARMS]
    for label, rows in shown:
        style: dict[str, Any] = {"label": label, "linewidth": 1.3}
        style |= {"color": "black", "linestyle": "--"} if label == "oracle" else {}
        losses = _mean([[loss if loss is not None else float("nan") for loss in row["losses"]] for row in rows])
        steps = [index * CURVE_EVERY_STEPS + 1 for index in range(len(losses))]
        upper.plot(steps, _smooth(losses), **style)
        lower.plot(steps, rows[0]["rates"], **style)
    upper.set_ylabel(f"training loss, mean of {len(study.oracle)} seeds")
    upper.set_ylim(top=6.0)
    upper.legend(fontsize=8)
    lower.set_ylabel("learning rate, first seed")
    lower.set_yscale("log")
    lower.set_xlabel(f"step; start {start:g} times the tuned rate")
    return figure


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(values) for values in zip(*rows, strict=True)]


def _smooth(values: Sequence[float]) -> list[float]:
    return [fmean(values[max(0, index - SMOOTHED_POINTS + 1) : index + 1]) for index in range(len(values))]
