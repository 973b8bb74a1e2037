"""Health checks on planted faults and on healthy runs: found in how many steps, and how many false alerts.

Real steered trainings of small models, on one or two CPU ranks: see `trial_rank`. Each fault has runs over seeds,
models and rates. It is found if an alert of its kind is raised at or after its onset; alerts of other kinds that it
causes do not count against it. Before the onset, and in healthy runs, every alert is a false one. Beside each kind:
when a person who watches the loss could have seen it (over mean plus six deviations of the last 128 steps, or not a
number), as the lead of the alert over that.

With `--answers FILE` each answer is added to the file as soon as its trial has ended, and trials that have one are not
run again. `--only KIND,KIND` measures these kinds of faults; `healthy` names the healthy runs.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import median
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.health.answers import KeptAnswers
from benchmarks.health.trials import FAULTS, FIRST_SEED, HOOK_STEPS, Fault, Trial, faulty, healthy
from control_plane.core.health.detectors import DETECTORS
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.errors import Invalid

HEALTHY_PER_FAULT_RUN = 3.6
"""Healthy runs for each run of a kind: 36 beside 10."""

START_LIMIT_S, TRIAL_LIMIT_S = 240.0, 90.0
LOSS_WINDOW_STEPS, LOSS_SIGMAS = 128, 6.0
STEPS_PER = 10_000
HEALTHY = "healthy"

GATHER_STEPS = 5
"""As `ray_jobs.health.rank_health.GATHER_STEPS`, which imports torch."""

URGENT = frozenset(kind for make in DETECTORS for kind in make(HealthSettings()).kinds if make(HealthSettings()).urgent)

Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """Result of one run with a fault.

    after: steps from the onset to the boundary at which the first alert of its kind is raised, see `told_at`; infinite:
        none is raised.
    lead: steps by which the alert came before the loss showed it; NaN: the loss never did, or no alert came.
    """

    trial: Trial
    after: float
    lead: float
    false_alerts: int


def measure(n: int, quick: bool, say: Say, *, answers: str | None = None, only: str | None = None) -> Result:
    """Measure `n` runs of each kind, and 3.6 times as many healthy ones.

    Args:
        answers: file of answers, which is read and added to.
        only: kinds to measure, separated by commas; None: all.

    Raises:
        SteerwayError: a training failed, or a kind is not known.
    """
    kinds = chosen(only)
    faults = [trial for kind in FAULTS if kind in kinds for trial in faulty(kind, n)]
    quiet = healthy(max(4, round(n * HEALTHY_PER_FAULT_RUN)), FIRST_SEED + n) if HEALTHY in kinds else []
    answered = run(faults + quiet, say, Path(answers).absolute() if answers else None)
    return result_of(n, [found(trial, answered[trial.name]) for trial in faults], quiet, answered)


def chosen(only: str | None) -> frozenset[str]:
    """Return the kinds to measure. Raises `Invalid` for one that is not planted."""
    known = {*FAULTS, HEALTHY}
    names = frozenset(name.strip() for name in only.split(",")) if only is not None else frozenset(known)
    if unknown := sorted(names - known):
        raise Invalid(f"health has no trials of kind {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return names


def run(trials: Sequence[Trial], say: Say, file: Path | None = None) -> Answers:
    """Run the trials that have no answer in the file, those of one number of ranks in one group of processes.

    Raises:
        SteerwayError: a training failed; the answers of those that ended are in the file.
    """
    kept = KeptAnswers.read(file)
    answers: dict[str, Mapping[str, Any]] = dict(kept.of(trials))
    if file is not None:
        say(f"health: {len(answers)} of {len(trials)} runs have answers; {kept.outdated()} are of other code")
    with tempfile.TemporaryDirectory(prefix="health-trials-") as name:
        for ranks in sorted({trial.ranks for trial in trials}):
            group = [trial for trial in trials if trial.ranks == ranks and trial.name not in answers]
            if not group:
                continue
            say(f"health: {len(group)} runs on {ranks} rank{'s' if ranks > 1 else ''} ...")
            folder = Path(name) / f"ranks-{ranks}"
            spec: dict[str, Any] = {"trials": [trial.spec() for trial in group], "folder": str(folder)}
            spec |= {"answers": str(file) if file is not None else None, "code": kept.code}
            limit_s = START_LIMIT_S + TRIAL_LIMIT_S * len(group)
            first, *_ = run_ranks("benchmarks.health.trial_rank:run_trials", ranks, spec, folder, limit_s)
            answers |= {answer["name"]: answer for answer in first}
    return answers


def found(trial: Trial, answer: Mapping[str, Any]) -> Found:
    """Return when a planted fault was found, and the false alerts before it."""
    steps = [step for kind, _, step, *_ in answer["alerts"] if kind == trial.fault and step >= trial.onset]
    at = told_at(trial.fault, min(steps)) if steps else inf
    shown = loss_shows(answer["losses"], trial.onset)
    false = sum(step < trial.onset for _, _, step, *_ in answer["alerts"])
    return Found(trial, at - trial.onset, shown - at if isfinite(shown) and isfinite(at) else nan, false)


def told_at(kind: str | None, step: int) -> int:
    """Return the boundary at which an alert of `step` is raised.

    It is the next one; of a kind that is not urgent, the one after the next step whose gather has ended, or which has
    hooks.
    """
    if kind in URGENT:
        return step + 1
    return next(look for look in count(step) if look % GATHER_STEPS == 1 or look % HOOK_STEPS == 0) + 1


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
        if not of_kind:
            continue
        in_time = sum(each.after <= fault.latest_steps for each in of_kind)
        figures[f"{kind}_in_time_share"] = in_time / len(of_kind)
        figures[f"{kind}_steps_worst"] = max(each.after for each in of_kind)
        targets[f"{kind}_in_time_share"] = {"min": 1.0}
        rows.append((kind, *_row(fault, of_kind, in_time)))
    if results:
        figures["clean_halves_steps"] = float(sum(each.trial.onset for each in results))
        figures["clean_halves_false_alerts"] = float(sum(each.false_alerts for each in results))
        targets["clean_halves_false_alerts"] = {"max": 0}
    alerts = [alert for trial in quiet for alert in answers[trial.name]["alerts"]]
    if quiet:
        figures |= _healthy_figures(quiet, len(alerts))
        targets["healthy_false_alerts"] = {"max": 0}
    heads = ("planted", "found in time", "steps p50", "worst", "bound", "lead over the loss")
    table = Table("planted faults, by kind of alert", heads, tuple(rows))
    false = tuple((str(kind), subject, str(step), sentence) for kind, subject, step, _, sentence in alerts[:20])
    tables = (
        (table, Table("false alerts of healthy runs", ("subject", "step", "sentence"), false)) if false else (table,)
    )
    return Result(figures, targets, n, tables)


def _healthy_figures(quiet: Sequence[Trial], alerts: int) -> dict[str, float]:
    steps = sum(trial.steps for trial in quiet)
    return {
        "healthy_runs": float(len(quiet)),
        "healthy_steps": float(steps),
        "healthy_false_alerts": float(alerts),
        "healthy_false_per_10000_steps": alerts / steps * STEPS_PER,
        # 95 %: with 0 events in so many steps the rate is below 3 / steps.
        "healthy_false_per_10000_steps_bound": 3.0 / steps * STEPS_PER if not alerts else inf,
    }


def _row(fault: Fault, of_kind: Sequence[Found], in_time: int) -> tuple[str, ...]:
    after = [each.after for each in of_kind]
    leads = [each.lead for each in of_kind if isfinite(each.lead)]
    lead = f"{median(leads):g} steps ({len(leads)} of {len(of_kind)})" if leads else "the loss never shows it"
    return (
        fault.planted,
        f"{in_time} of {len(of_kind)}",
        f"{median(after):g}",
        f"{max(after):g}",
        f"{fault.latest_steps}",
        lead,
    )
