"""Page of the study of interventions, in Markdown: what was done, who intervened, losses, and what it saved."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

from benchmarks.harness.conditions import machine, versions
from benchmarks.harness.result import Result
from benchmarks.studies.human import plan
from benchmarks.studies.human.plan import ARMS
from benchmarks.studies.human.savings import savings

if TYPE_CHECKING:
    from benchmarks.studies.human.study_human import Study


def write(path: Path, study: "Study", result: Result, pictures: Sequence[str]) -> None:
    """Write the page."""
    parts = [
        "# Study: interventions at the learning rate of a fine-tuning",
        "*Made by `python -m benchmarks study_human`; nothing on this page was written by hand.*",
        *unfinished(result.n, study.steps),
        headline(study),
        what_was_done(study, result.n),
        *(f"![Evaluation loss and learning rate of the three arms]({name})" for name in pictures),
        "## Loss at the end\n\nOn the evaluation text, nats a token. p: Wilcoxon's signed-rank test, exact, "
        f"two-sided, paired by seed; with {result.n} seeds it cannot be below {2 / 2**result.n:.2g}.",
        losses(study),
        "## The interventions",
        interventions(study),
        "## Against stopping, queueing again and restarting",
        saved(study),
        "## Against tuning first",
        tuning(study),
        LIMITS,
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


LIMITS = """## Not covered

- One small model, one text, one recorded series of interventions. Another person, or the same at another hour, would \
have intervened elsewhere; the spread over the seeds says nothing of that.
- Whoever intervened knew that the rate at the start was meant to be too low, and had seen other studies of this \
project; not the results of the tuned rate on this model.
- `valid.txt` trains and `test.txt` evaluates: the losses cannot be compared with published ones of Wikitext-2, and \
the tokens are those of a small tokenizer of the standard library's text.
- The evaluation text was looked at while the run was steered, and judges the end: for all arms alike, and the rate of \
the sweep was chosen by it, too."""


def unfinished(n: int, steps: int) -> list[str]:
    """Return a warning if seeds or steps are missing."""
    if n >= len(plan.SEEDS) and steps >= plan.STEPS:
        return []
    return [
        f"**Unfinished: {n} of {len(plan.SEEDS)} seeds, {steps} of {plan.STEPS} steps.** "
        "`python -m benchmarks study_human` trains the others."
    ]


def headline(study: "Study") -> str:
    """Return who wins: the tuned decay where it does."""
    means = {arm: fmean(study.losses(arm)) for arm in ARMS}
    wins = sum(one < other for one, other in zip(study.losses("steered"), study.losses("tuned"), strict=True))
    seeds = len(study.losses("tuned"))
    if means["tuned"] < means["steered"]:
        first = (
            f"**The tuned decay wins**: it ends at {means['tuned']:.3f}, the run with interventions at "
            f"{means['steered']:.3f}, above it in {seeds - wins} of {seeds} seeds"
        )
    else:
        first = (
            f"**The run with interventions ends lowest**: at {means['steered']:.3f}, the tuned decay at "
            f"{means['tuned']:.3f}; below it in {wins} of {seeds} seeds"
        )
    gained = (means["static"] - means["steered"]) / (means["static"] - means["tuned"])
    return (
        f"{first} (p = {study.p_value('steered', 'tuned'):.3f}). Left alone, the decay from {plan.START:g} ends at "
        f"{means['static']:.3f}: the interventions took {gained:.0%} of the way from there to the tuned decay, in the "
        f"one run that was to be made, where tuning took {len(study.sweep)} runs first."
    )


def what_was_done(study: "Study", n: int) -> str:
    """Return a description of the runs."""
    weights, shape, facts, libraries = study.weights, plan.SHAPE, machine(), versions()
    same = "the same, bit for bit" if _is_same(study) else "**not the same**: other libraries or another machine"
    return (
        f"A GPT-2 of {shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}, dropout {shape.dropout:g}, "
        f"{plan.VOCABULARY} tokens: about a third of a million weights, so that a run takes {_cpu_s(study):.0f} s of "
        "processor time. It was "
        f"pre-trained once on the standard library's text, {plan.PRETRAINING_STEPS} steps with the tokenizer of the "
        f"workloads ({weights['cpu_s']:.0f} s of processor time): loss {weights['library_loss']:.3f} there; on "
        f"Wikitext-2 {weights['wikitext_loss']:.3f}, and {weights['untrained_wikitext_loss']:.3f} before. SHA-256 of "
        f"the weights: `{weights['digest'][:16]}`. They are cached; all runs begin with them, so that a fine-tuning's "
        f"rate of {plan.START:g} means what it meant.\n\n"
        f"Each run: AdamW, {study.steps} steps of {plan.BATCH} blocks of {plan.BLOCK_TOKENS} tokens of Wikitext-2's "
        f"`valid.txt`, a linear decay to 0, gradients clipped to {plan.CLIPPING:g}; `test.txt` evaluates. A control "
        "server and a journal of its own; the interventions are commands, accepted for their steps, voted on, applied "
        f"and read back at the boundary. {n} seeds, the same data order and dropout in all arms of a seed. The run "
        f"that was watched, trained again by the study with its interventions: evaluations {same}.\n\n"
        f"Machine: {facts['cpu']}, one thread, shared with other work; Python {libraries['python']}, torch "
        f"{libraries['torch']}, Transformers {libraries['transformers']}."
    )


def _cpu_s(study: "Study") -> float:
    return fmean(row["cpu_s"] for row in study.rows["steered"])


def _is_same(study: "Study") -> bool:
    watched = [tuple(one) for one in plan.recorded()["evals"]]
    return watched == [(step, loss) for step, loss in study.again["evals"] if step]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def losses(study: "Study") -> str:
    """Return the losses by arm: mean, spread, each seed."""
    rows = []
    for arm, label in ARMS.items():
        values = study.losses(arm)
        spread = f"{stdev(values):.4f}" if len(values) > 1 else ""
        p_value = f"{study.p_value(arm, 'steered'):.3f}" if arm != "steered" else ""
        rows.append([label, f"{fmean(values):.4f}", spread, p_value, ", ".join(f"{one:.4f}" for one in values)])
    heads = ["arm", "mean", "standard deviation", "p, against the interventions", "seeds"]
    reached = [step for step in study.reached("steered", "static") if step is not None]
    text = table(heads, rows)
    if reached:
        text += (
            f"\n\nThe steered runs are as low as the end of the one left alone at step {median(reached):g} (median; "
            f"{min(reached)} to {max(reached)}; evaluated every {plan.EVALUATE_EVERY_STEPS}) of {study.steps}: "
            f"{study.steps - median(reached):g} steps saved for whoever wanted only that loss."
        )
    return text


def interventions(study: "Study") -> str:
    """Return the interventions, and who made them."""
    made = plan.recorded()
    rows = [[str(one["step"]), one["time"], f"`{one['what']}`", one["reason"]] for one in study.interventions]
    applied = "in every run" if study.all_applied else "**not in every run**"
    return (
        f"{made['made_by']} Recorded on seed {made['seed']}, and frozen in `benchmarks/studies/human/"
        "interventions.json` before any seed of the study was trained. Applied at these steps "
        f"{applied}:\n\n" + table(["after step", "given at", "what", "reason, as journalled"], rows)
    )


def saved(study: "Study") -> str:
    """Return what live steering saved, by the way in which a run would have been changed without it."""
    starts = plan.recorded()["restarts"]
    rows = [
        [one.label, f"{one.steps:.0f}", f"{one.seconds:.0f}", f"{one.cpu_s:.0f}", f"{one.share:.0%}"]
        for one in savings(study)
    ]
    seconds = ", ".join(f"{one['seconds']:.0f}" for one in starts)
    cpu_s = fmean(one["cpu_s"] for one in starts)
    return (
        "Without live steering the same decisions mean to stop the run and start it again with another rate. Assumed: "
        "the same decisions at the same steps. Measured: "
        f"{len(starts)} real starts of this run by `steer submit`, from its creation to the start of training "
        f"{seconds} s on the busy machine, and {cpu_s:.0f} s of processor time of the rank until its first step (Ray "
        "and the driver not counted); and a step's share of the study's runs. Processor "
        "seconds stand for energy; a job that waits in a queue spends none.\n\n"
        + table(
            ["without live steering", "steps saved", "seconds saved", "processor seconds saved", "of a run's"], rows
        )
    )


def tuning(study: "Study") -> str:
    """Return the sweep and its cost."""
    tried = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in study.sweep.items())
    cost_s = sum(row["cpu_s"] for row in study.spent)
    one_s = _cpu_s(study)
    lower = sum(loss < fmean(study.losses("steered")) for loss in study.sweep.values())
    chosen = list(study.sweep).index(study.tuned)
    edge = " It is at the sweep's edge." if chosen in (0, len(study.sweep) - 1) else ""
    return (
        f"The tuned rate, {study.tuned:g}, is the best of {len(study.sweep)} peaks of the same decay on a seed that "
        f"is not used again ({tried}).{edge} The search took {len(study.sweep)} runs, {cost_s:.0f} s of processor "
        f"time; a run with interventions took {one_s:.0f} s, and somebody's attention. For one training the search "
        f"costs {cost_s / one_s:.1f} times what it improves; for many of a kind it is paid once. {lower} of the "
        f"{len(study.sweep)} peaks end lower than the interventions do: from such a start there is nothing to save."
    )
