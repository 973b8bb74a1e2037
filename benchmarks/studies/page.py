"""Page of the agent's study, in Markdown: what was done, tables of all arms, and what they mean."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.harness.conditions import machine, versions
from benchmarks.harness.result import Result
from benchmarks.studies import plan
from benchmarks.studies.outcome import loss_of
from benchmarks.studies.plan import ARMS, BAD_STARTS, STARTS

if TYPE_CHECKING:
    from benchmarks.studies.study_agent import Study

NAME_OF_START = {0.0: f"{plan.PUBLISHED_START:g}"}


def write(path: Path, study: "Study", result: Result, pictures: Sequence[str]) -> None:
    """Write the page."""
    parts = [
        "# Study: rules, chance and models at the learning rate",
        "*Made by `python -m benchmarks study_agent`; nothing on this page was written by hand.*",
        *unfinished(result.n),
        headline(study, result),
        what_was_done(study, result.n),
        "## Rescued\n\nShare of the runs that end within 5 % of the oracle's loss on the same seed, in percent.",
        rescued_table(study),
        *(f"![{name}]({name})" for name in pictures[:1]),
        "## Over the bad starts\n\n" + OVER_BAD + f" {result.n} seeds: no p can be below {2 / 2**result.n:.2g}.",
        bad_table(study),
        *(f"![{name}]({name})" for name in pictures[1:]),
        "## Loss at the end\n\nOn held-out text, mean over the seeds, nats a character.",
        loss_table(study),
        "## What was tuned, and what it cost",
        tuned(study),
        LIMITS,
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


OVER_BAD = (
    "Starts of "
    + ", ".join(f"{start:g}" for start in BAD_STARTS)
    + " times the tuned rate. Regret: mean loss above the oracle's, as a share of the one of doing nothing; 0 is the "
    "oracle, 1 is doing nothing. p: Wilcoxon's signed-rank test, exact, two-sided, of the mean loss over the bad "
    "starts, paired by seed, against GreedyLR as published and against chance."
)

LIMITS = """## Not covered

- One model of 30 thousand weights, one text, runs of a few seconds. Large models differ, above all in how long a rate \
that is too high may act before the weights are lost.
- The tuned rate is the best of five, for a cosine schedule; in runs this short a rate that stays high can end below it.
- Every rule may act before the first step, and the probing rule does: it lowers the rate before a bad one has done \
much. A run that has trained at a far too high rate for a while needs a rollback, not a rule of this study.
- No rule here may roll back: all act by the learning rate, or by gradient clipping, alone.
- Our rules were written by people who looked at runs on the tuning seeds, beside the counted tuning; GreedyLR's and \
torch's authors did not know this model.
- The autopilot of `steer agent` looks when it polls; here rules look at fixed steps, in line with the training, so \
that every run can be repeated. Guard, history, commands and boundary are the same."""


def headline(study: "Study", result: Result) -> str:
    """Return who wins, and whether the targets are met."""
    bad = list(BAD_STARTS)
    ranked = sorted(study.arms, key=lambda arm: study.regret(arm.name, bad))
    best = ranked[0]
    at_tuned = sorted(study.arms, key=lambda arm: fmean(study.losses(arm.name, 1.0)))
    lines = [
        f'**Over the bad starts, "{best.label}" ends lowest**: {fmean(study.rescued(best.name, bad)):.0%} of its runs '
        f"are within 5 % of the oracle, regret {study.regret(best.name, bad):.2f}. Next: "
        + "; ".join(
            f'"{arm.label}", {fmean(study.rescued(arm.name, bad)):.0%} and {study.regret(arm.name, bad):.2f}'
            for arm in ranked[1:3]
        )
        + f". Doing nothing: {fmean(study.rescued('nothing', bad)):.0%}."
    ]
    harm = fmean(study.losses("probing", 1.0)) / fmean(study.losses("nothing", 1.0)) - 1
    lines.append(
        f'- **From the tuned rate "{at_tuned[0].label}" ends lowest**; our probing rule ends {harm:+.1%} from doing '
        f"nothing, {fmean(study.rescued('probing', [1.0])):.0%} of its runs within 5 % of the oracle"
    )
    for name, bound in result.targets.items():
        wanted = " and ".join(f"{'at least' if end == 'min' else 'at most'} {value:g}" for end, value in bound.items())
        verdict = "met" if result.verdict_on(name) == "met" else "**missed**"
        lines.append(f"- target `{name}` {wanted}: {result.figures[name]:.3g}, {verdict}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def unfinished(n: int) -> list[str]:
    """Return a warning if seeds are missing."""
    if n >= len(plan.SEEDS):
        return []
    return [f"**Unfinished: {n} of {len(plan.SEEDS)} seeds.** `python -m benchmarks study_agent` trains the others."]


def what_was_done(study: "Study", n: int) -> str:
    """Return a description of the runs."""
    facts = machine()
    libraries = versions()
    model = (
        "The language model's line is from the endpoint in `OPENAI_BASE_URL`."
        if os.environ.get("OPENAI_API_KEY")
        else "**No language model took part**: `OPENAI_API_KEY` was not set. With it, its line is added."
    )
    return (
        f"Each run: a transformer of two layers on {len(plan.CHARACTERS)} characters of Python's library, "
        f"AdamW, {plan.STEPS} steps of {plan.BATCH} samples, a warm-up of {plan.WARM_UP_STEPS} steps in all arms, "
        f"gradients clipped to 1; a control server and a journal of its own, every change a command that is voted on, "
        f"applied and read back at the step's boundary. {n} seeds, the same data and first weights in all arms of a "
        f"seed. The tuned rate is {study.tuned:g}. All rules pass one guard: rates from {plan.GUARD.min_lr:g} to "
        f"{plan.GUARD.max_lr:g}, at least {plan.COOL_DOWN_STEPS} steps between changes, at most "
        f"{plan.GUARD.max_changes} changes. {model}\n\n"
        f"The published study began at {plan.PUBLISHED_START:g}, far too high for its pre-trained model; for this one, "
        f"trained from nothing, it is {plan.PUBLISHED_START / study.tuned:.2g} times the tuned rate, a good start.\n\n"
        f"Machine: {facts['cpu']}, one thread, shared with other work; Python {libraries['python']}, torch "
        f"{libraries['torch']}, Transformers {libraries['transformers']}."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _starts(study: "Study") -> list[float]:
    return [start for start in (*STARTS, 0.0) if any(each == start for _, each in study.rows)]


def _heads(study: "Study") -> list[str]:
    return ["arm", *(NAME_OF_START.get(start) or f"{start:g} x" for start in _starts(study))]


def rescued_table(study: "Study") -> str:
    """Return the share of rescued runs by arm and start."""
    rows = [
        [arm.label, *(f"{100 * fmean(study.rescued(arm.name, [start])):.0f}" for start in _starts(study))]
        for arm in study.arms
    ]
    return _table(_heads(study), rows)


def loss_table(study: "Study") -> str:
    """Return the mean loss by arm and start."""
    oracle = fmean(map(loss_of, study.oracle))
    rows = [["oracle: cosine from the tuned rate", *([f"{oracle:.3f}"] * len(_starts(study)))]]
    for arm in study.arms:
        rows.append([arm.label, *(f"{fmean(study.losses(arm.name, start)):.3f}" for start in _starts(study))])
    return _table(_heads(study), rows)


def bad_table(study: "Study") -> str:
    """Return rescue range, regret, p, interventions and cost over the bad starts."""
    bad = list(BAD_STARTS)
    rows = []
    for arm in study.arms:
        runs = [row for start in bad for row in study.rows[arm.name, start]]
        against = [
            "" if arm.name == other else f"{study.p_value(arm.name, other, bad):.3f}"
            for other in ("greedy-published", "random")
        ]
        rows.append(
            [
                arm.label,
                f"{fmean(study.rescued(arm.name, bad)):.0%}",
                f"{study.regret(arm.name, bad):.2f}",
                *against,
                f"{fmean(row['sent'] for row in runs):.1f}",
                f"{fmean(row['refused'] for row in runs):.1f}",
                str(sum(len(row["violations"]) for row in runs)),
                f"{fmean(row['looks'] for row in runs):.0f}",
                f"{1000 * sum(row['rule_s'] for row in runs) / max(1, sum(row['looks'] for row in runs)):.2f}",
            ]
        )
    heads = [
        "arm",
        "rescued",
        "regret",
        "p, GreedyLR",
        "p, chance",
        "changes",
        "refused",
        "violations",
        "looks",
        "ms a look",
    ]
    return _table(heads, rows)


def tuned(study: "Study") -> str:
    """Return the sweep, the chosen options of the rules, and the cost of all of it."""
    sweep = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in study.sweep.items())
    lines = [
        f"The oracle is the best of {len(study.sweep)} peaks, {len(plan.TUNING_SEEDS)} seeds each ({sweep}). Who wants "
        f"it trains {len(study.sweep) * len(plan.TUNING_SEEDS)} runs for one. It needs no start; its runs in the study "
        "are on the study's seeds, as all are.",
    ]
    for name, tried in study.tuning.items():
        texts = "; ".join(f"{_options(options)}: {loss:.3f}" for options, loss in tried)
        lines.append(f"- {ARMS[name].label}: chosen {_options(study.options[name])}. Tried, by mean loss: {texts}")
    configs, starts = len(ARMS["probing"].configs), len(plan.TUNING_STARTS)
    lines.append(
        f"\nThe same budget for each: {configs} sets of options, from {starts} bad starts on one seed, "
        f"{configs * starts} runs. GreedyLR as shipped, "
        "ZClip and our guarded rule have the options that they are shipped with."
    )
    every = [row for rows in study.rows.values() for row in rows] + list(study.oracle)
    lines.append(
        f"\nCost: {len(every)} runs of the study, {sum(row['cpu_s'] for row in every) / 60:.0f} minutes of processor "
        f"time, {fmean(row['cpu_s'] for row in every):.1f} s a run; {len(study.spent)} runs of sweep and tuning, "
        f"{sum(row['cpu_s'] for row in study.spent) / 60:.0f} minutes. Calls of a language model, tokens, money: "
        + ("see its line." if os.environ.get("OPENAI_API_KEY") else "0.")
    )
    return "\n".join(lines)


def _options(options: object) -> str:
    assert isinstance(options, dict) or hasattr(options, "items")
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "its own"
