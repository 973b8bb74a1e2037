"""Page and figure of the study of automatic mixtures: losses at the end, paired differences, shares over the steps."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import Say
from benchmarks.harness.conditions import machine, versions
from benchmarks.harness.result import Result
from benchmarks.studies.data import mixture_plan as plan
from benchmarks.studies.data.mixture_plan import ARMS
from benchmarks.studies.drawing import open_pyplot
from benchmarks.studies.wilcoxon import wilcoxon

if TYPE_CHECKING:
    from benchmarks.studies.data.study_mixture import Study

NAME = "mixture-shares.svg"
COLORS = {"ado": "tab:blue", "odm": "tab:orange", "natural": "tab:gray", "uniform": "tab:green"}
WIDTH_IN, HEIGHT_IN = 9.0, 3.8


def write(path: Path, study: "Study", result: Result, pictures: Sequence[str]) -> None:
    """Write the page, in Markdown."""
    parts = [
        "# Study: weights of two sources, set while a model trains",
        "*Made by `python -m benchmarks study_mixture`; nothing on this page was written by hand.*",
        *unfinished(result.n, study),
        headline(study),
        what_was_done(study, result.n),
        *(f"![Share of the clean text over the steps, and the losses at the end, by arm]({name})" for name in pictures),
        "## Loss at the end\n\nOn the held-out clean text, nats a token; standard deviation over the seeds.",
        losses(study),
        "## Differences\n\nPaired by seed, with Student's 95 % intervals; below 0 the first one is better. p: "
        f"Wilcoxon's signed-rank test, exact, two-sided; with {result.n} seeds it cannot be below "
        f"{2 / 2**result.n:.2g}.",
        differences(study),
        "## Targets\n\nSet before the first run that counts.",
        targets(result),
        LIMITS,
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


LIMITS = """## Not covered

- One small model, two texts, a training of a minute. The papers that ADO and ODM are from train for tens of thousands \
of steps on many sources; what is better here need not be there.
- Noise by construction: words without an order. Sources that differ less are harder to tell apart.
- Policies and arms were compared at one set of weights to begin with, three quarters of them noise. ADO multiplies by \
these, its priors; from equal weights it begins elsewhere.
- The policies look when they ask the gateway, at most once a second: the steps of their looks depend on the machine's \
speed, so that a repeated run has not the same weights. (A replay has: it repeats the recorded ones.)"""


def unfinished(n: int, study: "Study") -> list[str]:
    """Return a warning if seeds or steps are missing."""
    if n >= len(plan.SEEDS) and study.size.steps >= plan.WHOLE.steps:
        return []
    short = "; too short for its figures to mean anything" if study.size.steps < plan.WHOLE.steps else ""
    return [
        f"**Unfinished: {n} of {len(plan.SEEDS)} seeds, {study.size.steps} of {plan.WHOLE.steps} steps{short}.** "
        "`python -m benchmarks study_mixture` runs the others."
    ]


def headline(study: "Study") -> str:
    """Return which arm ends lowest, and what ADO, the default, does beside the shares of the texts' sizes."""
    means = {arm: fmean(study.losses(arm)) for arm in ARMS}
    best = min(means, key=means.__getitem__)
    against = study.difference("ado", "natural")
    verdict = "lower" if against.high < 0 else "higher" if against.low > 0 else "not told apart from it"
    return (
        f"**{ARMS[best]} ends lowest**, at {means[best]:.3f} nats a token. ADO ends {against} beside the natural shares"
        f": {verdict}. It gave the clean text {fmean(study.clean_shares('ado')):.0%} of the samples, ODM "
        f"{fmean(study.clean_shares('odm')):.0%}; the natural share is {1 / (1 + plan.NOISY_COPIES):.0%}."
    )


def what_was_done(study: "Study", n: int) -> str:
    """Return a description of the runs."""
    size, model, facts, libraries = study.size, plan.MODEL, machine(), versions()
    batch = plan.RANKS * plan.SAMPLES_PER_RANK
    rows = [row for rows in study.rows.values() for row in rows]
    return (
        f"Two sources. `{plan.CLEAN}`: Wikitext-2's `valid.txt` in records of {plan.RECORD_WORDS} words. "
        f"`{plan.NOISY}`: {plan.NOISY_COPIES} copies of it with all of their words in a random order, by the seed: "
        "every word is as frequent as in the clean text, and none follows from those before it. The natural shares, "
        f"which all runs begin with, are those of the sizes: 0.25 and 0.75. Evaluated on the first "
        f"{plan.HELD_OUT_BYTES:,} bytes of `test.txt`.\n\n"
        f"A GPT-2 of {model['n_layer']} layers, {model['n_head']} heads, width {model['n_embd']}, "
        f"{plan.DATA['vocab_size']} tokens, on {plan.RANKS} CPU ranks with ZeRO 1: {size.steps} steps of {batch} "
        f"records, AdamW, a linear decay from {plan.TRAINING['learning_rate']:g}. {n} seeds, four arms of each. Each "
        "run was submitted to a real cluster; in all arms the policy was an agent's process beside the gateway, and "
        f"its weights were commands, applied at one step on both ranks ({sum(len(r['shares']) - 1 for r in rows)} in "
        f"all, {sum(r['failed'] for r in rows)} failed).\n\n"
        f"**Scaled to this length**: a look every {size.every_steps} steps (50 unless set; {_interval(study)}), the "
        f"floor until {size.least_batches} batches (200), a fit every {size.fit_every_steps} steps (1,000). The floor "
        f"of 0.01 is as shipped. Losses of the sources: every {plan.MEASURED_EVERY} steps.\n\n"
        f"A run took {median(row['seconds'] for row in rows):.0f} s (median, from submit to end). Machine: "
        f"{facts['cpu']}, {facts['cores']} cores, shared with other work; Python {libraries['python']}, torch "
        f"{libraries['torch']}, DeepSpeed {libraries['deepspeed']}."
    )


def _interval(study: "Study") -> str:
    gaps = [later - earlier for row in study.rows["ado"] for earlier, later in pairwise(row["looks"])]
    return f"ADO's proposals were {median(gaps):.0f} apart, {min(gaps)} to {max(gaps)}" if gaps else "ADO made one"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def losses(study: "Study") -> str:
    """Return the losses by arm: mean, spread, each seed."""
    rows = []
    for arm, label in ARMS.items():
        values, shares = study.losses(arm), study.clean_shares(arm)
        spread = f"{stdev(values):.4f}" if len(values) > 1 else ""
        changes = fmean(len(row["shares"]) - 1 for row in study.rows[arm])
        each = ", ".join(f"{one:.4f}" for one in values)
        rows.append([label, f"{fmean(values):.4f}", spread, f"{fmean(shares):.2f}", f"{changes:.1f}", each])
    return table(["arm", "mean", "standard deviation", "mean share of clean", "changes a run", "seeds"], rows)


def differences(study: "Study") -> str:
    """Return the paired differences of each arm to those after it."""
    arms, rows = list(ARMS), []
    for at, arm in enumerate(arms):
        for other in arms[at + 1 :]:
            pairs = zip(study.losses(arm), study.losses(other), strict=True)
            p_value = wilcoxon([one - another for one, another in pairs])
            rows.append([f"{arm} - {other}", str(study.difference(arm, other)), f"{p_value:.3f}"])
    return table(["", "nats a token", "p"], rows)


def targets(result: Result) -> str:
    """Return the table of targets and verdicts."""
    names = {
        "ado_minus_natural_high": "upper end of the interval of ADO's loss less that of the natural shares",
        "changes_failed": "changes of weights that were rejected or failed",
    }
    rows = [
        [label, f"{result.figures[name]:.3g}", f"{result.targets[name]['max']:g}", result.verdict_on(name)]
        for name, label in names.items()
    ]
    return table(["", "measured", "at most", ""], rows)


def draw(study: "Study", folder: Path, say: Say) -> list[str]:
    """Draw the figure into a folder, and return the name of its file; none without matplotlib."""
    pyplot = open_pyplot(say)
    if pyplot is None:
        return []
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained", width_ratios=(2, 1)
    )
    _shares(left, study)
    _ends(right, study)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / NAME, metadata={"Date": None})
    pyplot.close(figure)
    return [NAME]


def _shares(axes: Any, study: "Study") -> None:
    for arm, label in ARMS.items():
        for at, row in enumerate(study.rows[arm]):
            steps = [step for step, _ in row["shares"]] + [study.size.steps]
            shares = [share for _, share in row["shares"]]
            style = {"label": label} if at == 0 else {}
            axes.step(steps, [*shares, shares[-1]], where="post", color=COLORS[arm], linewidth=0.9, alpha=0.8, **style)
    axes.set_xlabel("step; one line a seed")
    axes.set_ylabel("share of the clean text")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)


def _ends(axes: Any, study: "Study") -> None:
    for at, arm in enumerate(ARMS):
        values = study.losses(arm)
        axes.plot([at] * len(values), values, "o", color=COLORS[arm], markersize=4, alpha=0.7)
        axes.plot([at - 0.25, at + 0.25], [fmean(values)] * 2, color=COLORS[arm], linewidth=2)
    axes.set_xticks(range(len(ARMS)), list(ARMS))
    axes.set_ylabel("held-out loss at the end, nats a token")
