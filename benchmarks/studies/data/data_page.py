"""Page and figures of the study of data that comes in: frames side by side, errors over the steps, and figures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.catalogue import Say
from benchmarks.harness.conditions import machine, versions
from benchmarks.harness.result import Result
from benchmarks.studies.drawing import mean_and_range, open_pyplot
from ray_jobs.workloads.desktop_screen import CHANNELS, HEIGHT, WIDTH

if TYPE_CHECKING:
    from benchmarks.studies.data.study_data import Study

FRAMES, CURVES = "data-frames.png", "data-errors.svg"
COLUMNS = {"last": "last frame", "next": "true next frame", "before": "predicted before", "after": "predicted after"}
SEEDS, STEPS = 3, 1000
"""Seeds and steps of the whole study."""

WEIGHTS = {"base": 0.8, "fresh": 0.2}
"""About the shares of the two sources in all records, so that old behaviours are not forgotten."""

DPI, WIDTH_IN = 110, 9.0


def write(path: Path, study: "Study", result: Result, pictures: Sequence[str]) -> None:
    """Write the page, in Markdown."""
    parts = [
        "# Study: records that come in while a run trains",
        "*Made by `python -m benchmarks study_data`; nothing on this page was written by hand.*",
        *unfinished(result.n, study),
        what_was_done(study, result.n),
        *(f"![{_caption(name)}]({name})" for name in pictures),
        "## Errors",
        "Mean absolute error of the sampled next frame over the pixels that change, as a share of full brightness; "
        "missing behaviours: held-out transitions that change more than the cursor. Whoever repeats the last frame has "
        "0.45 on these and 0.44 on old ones. Mean of the seeds, lowest and highest in brackets.",
        errors(study),
        "## Targets\n\nSet before the first run.",
        targets(result),
        "## From scratch",
        from_scratch(study),
        LIMITS,
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


LIMITS = """## Not covered

- One small model of a desktop that is drawn by code; the published study that this follows had 88,000 transitions of \
a real desktop, over 14 days. Here it is minutes.
- How much longer a step takes while records come in was not measured here.
- The arms differ in what the samples of later steps are: the one that gets records sees its old ones less often. At \
equal weights of both sources, in a series before this one on the same seeds, errors at the end were 0.039 on missing \
behaviours and 0.062 on old ones, against 0.031 without records; the weights were changed after that."""


def unfinished(n: int, study: "Study") -> list[str]:
    """Return a warning if seeds or steps are missing."""
    steps = study.size.steps
    if n >= SEEDS and steps >= STEPS:
        return []
    return [
        f"**Unfinished: {n} of {SEEDS} seeds, {steps} of {STEPS} steps; too short for its figures to mean anything.** "
        "`python -m benchmarks study_data` runs the others."
    ]


def what_was_done(study: "Study", n: int) -> str:
    """Return the conditions."""
    size, live = study.size, study.rows["live"]
    requests, records = (fmean(row[name] for row in live) for name in ("requests", "records"))
    megabytes, seconds = fmean(row["bytes"] for row in live) / 1e6, fmean(row["seconds"] for row in live)
    first = sorted(row["first_step"] for row in live)
    return (
        f"A diffusion model predicts the next frame of a simulated desktop from the last two frames and the input "
        f"event, on two CPU ranks, {size.samples} samples a step, {size.steps} steps. Its data has moves of the cursor "
        f"and of an icon; opening the browser and making a new folder are missing. After step {size.sent_from}, "
        f"{requests:.0f} sequences of these were sent to the running training, one request each, through a gateway of "
        f"a real cluster: {records:.0f} records, {megabytes:.1f} MB, in {seconds:.1f} s; the first ones were drawn "
        f"from step {first[0]} to {first[-1]} on, with a share of {WEIGHTS['fresh']:.0%}, "
        f"near that in all records. Seeds: {n}; two arms. Machine: "
        f"{', '.join(f'{key} {value}' for key, value in machine().items() if value is not None)}; "
        f"{', '.join(f'{name} {version}' for name, version in versions().items())}."
    )


def errors(study: "Study") -> str:
    """Return the table of errors."""
    lines = ["| | missing behaviours | old behaviours |", "|---|---|---|"]
    lines.append(f"| before the records | {_range(study.before('missing'))} | {_range(study.before('old'))} |")
    for arm, label in (("live", "at the end, with them"), ("alone", "at the end, without them")):
        ends = [_range(study.errors(arm, name)) for name in ("missing", "old")]
        lines.append(f"| {label} | {ends[0]} | {ends[1]} |")
    return "\n".join(lines)


def targets(result: Result) -> str:
    """Return the table of targets and verdicts."""
    names = {
        "missing_ratio": "error on missing behaviours after, over before; the worst seed",
        "forgetting": "error on old behaviours at the end, against the arm without records",
        "records_lost_or_doubled": "records lost or doubled",
    }
    lines = ["| | measured | at most | |", "|---|---|---|---|"]
    for name, label in names.items():
        bound = result.targets[name]["max"]
        lines.append(f"| {label} | {result.figures[name]:.3g} | {bound:g} | {result.verdict_on(name)} |")
    return "\n".join(lines)


def from_scratch(study: "Study") -> str:
    """Return what a new training would take, computed from steps and step time."""
    steps, step_s = study.size.steps, study.step_s
    since = steps - fmean(row["first_step"] - 1 for row in study.rows["live"])
    return (
        f"Computed, not measured: a step takes {1000 * step_s:.0f} ms (median). The running training made {since:.0f} "
        f"steps with the new records, {since * step_s:.0f} s. A new one on all records would make all {steps} steps "
        f"again, {steps * step_s:.0f} s, if it needs as many, and its start: {steps / since:.1f} times as long."
    )


def draw(study: "Study", folder: Path, say: Say) -> list[str]:
    """Draw the figures into a folder, and return the names of their files; none without matplotlib."""
    pyplot = open_pyplot(say)
    if pyplot is None:
        return []
    figure = _frames(study, pyplot)
    figure.savefig(folder / FRAMES, dpi=DPI)
    pyplot.close(figure)
    figure = _curves(study, pyplot)
    figure.savefig(folder / CURVES, metadata={"Date": None})
    pyplot.close(figure)
    return [FRAMES, CURVES]


def _frames(study: "Study", pyplot: Any) -> Any:
    row = study.rows["live"][0]
    parts = {name: pixels(row["frames"][name]) for name in COLUMNS}
    count = len(parts["next"])
    figure, axes = pyplot.subplots(
        count, len(COLUMNS), figsize=(WIDTH_IN, 1.8 * count), layout="constrained", squeeze=False
    )
    for column, (name, label) in enumerate(COLUMNS.items()):
        axes[0][column].set_title(label, fontsize=9)
        for line in range(count):
            axes[line][column].imshow(parts[name][line], interpolation="nearest")
            axes[line][column].set_axis_off()
    return figure


def pixels(hexadecimal: str) -> Any:
    """Return frames of a result as an array `(n, HEIGHT, WIDTH, CHANNELS)`, uint8."""
    flat = np.frombuffer(bytes.fromhex(hexadecimal), np.uint8)
    return flat.reshape(-1, CHANNELS, HEIGHT, WIDTH).transpose(0, 2, 3, 1)


def _curves(study: "Study", pyplot: Any) -> Any:
    figure, both = pyplot.subplots(1, 2, figsize=(WIDTH_IN, 3.4), sharey=True, layout="constrained")
    for axes, (name, title) in zip(both, {"missing": "missing behaviours", "old": "old ones"}.items(), strict=True):
        for arm, color in (("live", "tab:blue"), ("alone", "tab:gray")):
            label = "records sent while it trains" if arm == "live" else "without them"
            mean_and_range(axes, [row["evals"][name] for row in study.rows[arm]], label=label, color=color)
        axes.axvline(min(row["first_step"] for row in study.rows["live"]), color="black", linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step; dotted: the first that may draw sent records")
        axes.set_ylim(bottom=0)
    both[0].set_ylabel(f"error, mean and range of {len(study.rows['live'])} seeds")
    both[0].legend(fontsize=8)
    return figure


def _caption(name: str) -> str:
    return "Held-out frames and predictions side by side" if name == FRAMES else "Errors over the steps, by arm"


def _range(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
