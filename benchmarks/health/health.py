"""Health checks on planted faults and on healthy runs: found in how many steps, and how many false alerts.

Real steered trainings of small models, on one or two CPU ranks: see `trial_rank`. Each fault has runs over seeds,
models and rates. It is found if an alert of its kind is raised at or after its onset; alerts of other kinds that it
causes do not count against it. Before the onset, and in healthy runs, every alert is a false one. Beside each kind:
when a person who watches the loss could have seen it (over mean plus six deviations of the last 128 steps, or not a
number), as the lead of the alert over that.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import median
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.health.trials import FAULTS, FIRST_SEED, Fault, Trial, faulty, healthy

HEALTHY_PER_FAULT_RUN = 3.6
"""Healthy runs for each run of a kind: 36 beside 10."""

START_LIMIT_S, TRIAL_LIMIT_S = 240.0, 90.0
LOSS_WINDOW_STEPS, LOSS_SIGMAS = 128, 6.0
STEPS_PER = 10_000

Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """Result of one run with a fault.

    after: steps from the onset to the boundary at which the first alert of its kind is raised, which is one step after
        the one that it speaks of; infinite: none is raised.
    lead: steps by which the alert came before the loss showed it; NaN: the loss never did, or no alert came.
    """

    trial: Trial
    after: float
    lead: float
    false_alerts: int


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` runs of each kind, and 3.6 times as many healthy ones. Raises `SteerwayError` if a training fails."""
    faults = [trial for kind in FAULTS for trial in faulty(kind, n)]
    quiet = healthy(max(4, round(n * HEALTHY_PER_FAULT_RUN)), FIRST_SEED + n)
    answers = run(faults + quiet, say)
    return result_of(n, [found(trial, answers[trial.name]) for trial in faults], quiet, answers)


def run(trials: Sequence[Trial], say: Say) -> Answers:
    """Run trials, those of one number of ranks in one group of processes. Raises `SteerwayError` if one fails."""
    answers: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="health-trials-") as name:
        for ranks in sorted({trial.ranks for trial in trials}):
            group = [trial for trial in trials if trial.ranks == ranks]
            say(f"health: {len(group)} runs on {ranks} rank{'s' if ranks > 1 else ''} ...")
            folder = Path(name) / f"ranks-{ranks}"
            spec = {"trials": [trial.spec() for trial in group], "folder": str(folder)}
            limit_s = START_LIMIT_S + TRIAL_LIMIT_S * len(group)
            first, *_ = run_ranks("benchmarks.health.trial_rank:run_trials", ranks, spec, folder, limit_s)
            answers |= {answer["name"]: answer for answer in first}
    return answers


def found(trial: Trial, answer: Mapping[str, Any]) -> Found:
    """Return when a planted fault was found, and the false alerts before it."""
    steps = [step for kind, _, step, *_ in answer["alerts"] if kind == trial.fault and step >= trial.onset]
    at = min(steps, default=inf)
    shown = loss_shows(answer["losses"], trial.onset)
    false = sum(step < trial.onset for _, _, step, *_ in answer["alerts"])
    return Found(trial, at + 1 - trial.onset, shown - (at + 1) if isfinite(shown) and isfinite(at) else nan, false)


def loss_shows(losses: Sequence[float], onset: int) -> float:
    """Return the first step from the onset at which the loss alone shows a fault; infinite: it never does."""
    for step in range(onset, len(losses) + 1):
        loss, window = losses[step - 1], losses[max(0, step - 1 - LOSS_WINDOW_STEPS) : step - 1]
        if not isfinite(loss):
            return step
        if all(map(isfinite, window)) and loss > fmean(window) + LOSS_SIGMAS * pstdev(window):
            return step
    return inf


def result_of(n: int, results: Sequence[Found], quiet: Sequence[Trial], answers: Answers) -> Result:
    """Return the figures, their targets, and a row for each kind."""
    figures: dict[str, float] = {}
    targets: dict[str, Bound] = {}
    rows = []
    for kind, fault in FAULTS.items():
        of_kind = [each for each in results if each.trial.fault == kind]
        in_time = sum(each.after <= fault.latest_steps for each in of_kind)
        figures[f"{kind}_in_time_share"] = in_time / len(of_kind) if of_kind else nan
        figures[f"{kind}_steps_worst"] = max((each.after for each in of_kind), default=nan)
        targets[f"{kind}_in_time_share"] = {"min": 1.0}
        rows.append((kind, *_row(fault, of_kind, in_time)))
    clean = sum(each.trial.onset for each in results)
    alerts = [alert for trial in quiet for alert in answers[trial.name]["alerts"]]
    steps = sum(trial.steps for trial in quiet)
    before = sum(each.false_alerts for each in results)
    figures |= {
        "healthy_runs": float(len(quiet)),
        "healthy_steps": float(steps),
        "healthy_false_alerts": float(len(alerts)),
        "healthy_false_per_10000_steps": len(alerts) / steps * STEPS_PER,
        # 95 %: with 0 events in so many steps the rate is below 3 / steps.
        "healthy_false_per_10000_steps_bound": 3.0 / steps * STEPS_PER if not alerts else inf,
        "clean_halves_steps": float(clean),
        "clean_halves_false_alerts": float(before),
    }
    targets |= {"healthy_false_alerts": {"max": 0}, "clean_halves_false_alerts": {"max": 0}}
    heads = ("planted", "found in time", "steps p50", "worst", "bound", "lead over the loss")
    table = Table("planted faults, by kind of alert", heads, tuple(rows))
    false = tuple((str(kind), subject, str(step), sentence) for kind, subject, step, _, sentence in alerts[:20])
    tables = (
        (table, Table("false alerts of healthy runs", ("subject", "step", "sentence"), false)) if false else (table,)
    )
    return Result(figures, targets, n, tables)


def _row(fault: Fault, of_kind: Sequence[Found], in_time: int) -> tuple[str, ...]:
    after = [each.after for each in of_kind]
    leads = [each.lead for each in of_kind if isfinite(each.lead)]
    lead = f"{median(leads):g} steps ({len(leads)} of {len(of_kind)})" if leads else "the loss never shows it"
    return (
        fault.planted,
        f"{in_time} of {len(of_kind)}",
        f"{median(after):g}" if after else "-",
        f"{max(after):g}" if after else "-",
        f"{fault.latest_steps}",
        lead,
    )
