"""Figure of the study of interventions: loss on the evaluation text and learning rate of the three arms."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.catalogue import Say
from benchmarks.studies.drawing import mean_and_range, open_pyplot
from benchmarks.studies.human.plan import ARMS, CURVE_EVERY_STEPS

if TYPE_CHECKING:
    from benchmarks.studies.human.study_human import Study

NAME = "human-curves.svg"
COLORS = {"static": "tab:gray", "steered": "tab:blue", "tuned": "tab:green"}
WIDTH_IN, HEIGHT_IN = 9.0, 6.0


def draw(study: "Study", folder: Path, say: Say) -> list[str]:
    """Draw the figure into a folder, and return the names of its files; none without matplotlib."""
    pyplot = open_pyplot(say)
    if pyplot is None:
        return []
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(WIDTH_IN, HEIGHT_IN), sharex=True, layout="constrained")
    for arm, label in ARMS.items():
        mean_and_range(upper, [row["evals"] for row in study.rows[arm]], label=label, color=COLORS[arm])
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
