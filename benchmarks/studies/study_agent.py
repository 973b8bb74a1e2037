"""Study of the agent: rules, chance, a learned policy and a language model at the learning rate, from bad starts too.

Real steered trainings of a small transformer on text, one CPU, a control server and a journal each, commands by the
boundary: see `agent_rank` and `pilot`. The tuned rate, and the options of the rules that have some, are chosen on seeds
that are not used again. Results are appended to a file (`--answers`, else in Steerway's home) as runs end; a call goes
on where the last one stopped. With all of its seeds the study writes its page and figures.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.catalogue import Say
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.studies import plan
from benchmarks.studies.figures import draw
from benchmarks.studies.outcome import is_rescued, loss_of
from benchmarks.studies.page import write
from benchmarks.studies.plan import ARMS, MODEL, ORACLE, Arm, Options, Trial
from benchmarks.studies.results import Row, place_of, results_of
from benchmarks.studies.runs import run
from benchmarks.studies.wilcoxon import wilcoxon

PAGE = Path(__file__).parents[2] / "docs" / "studies" / "agent.md"
OURS = "probing"
AGAINST = ("greedy-published", "greedy-shipped", "random")


@dataclass(frozen=True)
class Study:
    """Results of a study: of the sweep, of the tuning by arm, and of the arms by start, seeds in one order."""

    tuned: float
    sweep: Mapping[float, float]
    options: Mapping[str, Options]
    tuning: Mapping[str, Sequence[tuple[Options, float]]]
    oracle: Sequence[Row]
    rows: Mapping[tuple[str, float], Sequence[Row]]
    """By arm and start; a start is a multiple of the tuned rate, or 0 for the published one."""

    spent: Sequence[Row]
    """Runs of the sweep and of the tuning."""

    @property
    def arms(self) -> list[Arm]:
        """Return the arms that were run, in order."""
        known = dict.fromkeys(name for name, _ in self.rows)
        return [plan.arm_of(name) for name in known]

    def losses(self, arm: str, start: float) -> list[float]:
        """Return the losses at the end, one a seed."""
        return [loss_of(row) for row in self.rows[arm, start]]

    def rescued(self, arm: str, starts: Sequence[float]) -> list[bool]:
        """Return for each run from these starts whether it ended within 5 % of the oracle on its seed."""
        oracle = list(map(loss_of, self.oracle))
        return [
            is_rescued(loss, best)
            for start in starts
            for loss, best in zip(self.losses(arm, start), oracle, strict=True)
        ]

    def regret(self, arm: str, starts: Sequence[float]) -> float:
        """Return the mean loss above the oracle's, as a share of the one of doing nothing."""
        oracle = fmean(map(loss_of, self.oracle))
        above = {
            name: fmean(loss for start in starts for loss in self.losses(name, start)) - oracle
            for name in (arm, "nothing")
        }
        return above[arm] / above["nothing"]

    def by_seed(self, arm: str, starts: Sequence[float]) -> list[float]:
        """Return the mean loss over the starts, one a seed."""
        return [fmean(losses) for losses in zip(*(self.losses(arm, start) for start in starts), strict=True)]

    def p_value(self, arm: str, other: str, starts: Sequence[float]) -> float:
        """Return Wilcoxon's p of the mean losses over the starts, paired by seed."""
        pairs = zip(self.by_seed(arm, starts), self.by_seed(other, starts), strict=True)
        return wilcoxon([one - another for one, another in pairs])


def measure(n: int, quick: bool, say: Say, answers: str | None = None) -> Result:
    """Run the study on its first `n` seeds; `answers`: the file of results. Raises `SteerwayError` if a run fails."""
    study = carry_out(results_of(PAGE, answers), say, plan.SEEDS[:n], quick=quick)
    result = result_of(study, n)
    page = place_of(PAGE, is_whole=n >= len(plan.SEEDS))
    pictures = draw(study, page.parent, say)
    write(page, study, result, pictures)
    say(f"study-agent: {page} is written")
    return result


def carry_out(
    results: Path,
    say: Say,
    seeds: Sequence[int],
    arms: Sequence[str] = tuple(ARMS),
    starts: Sequence[float] = (*plan.STARTS, 0.0),
    steps: int = plan.STEPS,
    quick: bool = False,
) -> Study:
    """Run what is not in the file of results yet, and return the study.

    Args:
        quick: no options are tuned: those of `plan.CHOSEN`, from the last whole study, are taken.
    """
    peaks = [Trial(ORACLE.name, rate, seed, steps=steps) for rate in plan.SWEEP for seed in plan.TUNING_SEEDS]
    swept = run(peaks, results, say, "sweep for the tuned rate")
    sweep = {rate: fmean(loss_of(row) for row in swept if row["trial"]["rate"] == rate) for rate in plan.SWEEP}
    tuned = min(sweep, key=sweep.__getitem__)
    spent, tuning = list(swept), dict[str, list[tuple[Options, float]]]()
    for name in arms:
        if len(ARMS[name].configs) > 1 and not quick:
            rows = run(tuning_trials(ARMS[name], tuned, steps), results, say, f"tuning of {name}")
            spent += rows
            tuning[name] = _by_options(ARMS[name], rows)
    options = {name: min(tried, key=lambda each: each[1])[0] for name, tried in tuning.items()}
    options = dict(plan.CHOSEN) | options
    oracle = run([Trial(ORACLE.name, tuned, seed, steps=steps) for seed in seeds], results, say, "oracle")
    with_model = (*arms, MODEL.name) if os.environ.get("OPENAI_API_KEY") else arms
    keys = [(name, start) for name in with_model for start in starts]
    # Seed after seed: what is interrupted has whole seeds, which are pairs of all arms.
    trials = [
        Trial(name, rate_of(tuned, start), seed, options.get(name, {}), steps) for seed in seeds for name, start in keys
    ]
    rows = run(trials, results, say, "study")
    by_key = {key: rows[index :: len(keys)] for index, key in enumerate(keys)}
    return Study(tuned, sweep, options, tuning, oracle, by_key, spent)


def rate_of(tuned: float, start: float) -> float:
    """Return the rate of a start."""
    return float(f"{tuned * start:.6g}") if start else plan.PUBLISHED_START


def tuning_trials(arm: Arm, tuned: float, steps: int) -> list[Trial]:
    """Return the runs on which an arm's options are chosen: all of its options from a few bad starts."""
    return [
        Trial(arm.name, rate_of(tuned, start), plan.TUNING_SEEDS[0], options, steps)
        for options in arm.configs
        for start in plan.TUNING_STARTS
    ]


def _by_options(arm: Arm, rows: Sequence[Row]) -> list[tuple[Options, float]]:
    each = len(rows) // len(arm.configs)
    parts = [rows[index * each : (index + 1) * each] for index in range(len(arm.configs))]
    return [(options, fmean(map(loss_of, part))) for options, part in zip(arm.configs, parts, strict=True)]


def result_of(study: Study, n: int) -> Result:
    """Return the figures and their targets."""
    bad = [start for start in plan.BAD_STARTS if (OURS, start) in study.rows]
    figures: dict[str, float] = {}
    for arm in study.arms:
        name = arm.name.replace("-", "_")
        figures[f"{name}_rescued_share"] = fmean(study.rescued(arm.name, bad))
        figures[f"{name}_regret"] = study.regret(arm.name, bad)
    for other in AGAINST:
        if (other, bad[0]) in study.rows:
            figures[f"p_against_{other.replace('-', '_')}"] = study.p_value(OURS, other, bad)
    every = [row for rows in study.rows.values() for row in rows] + list(study.spent)
    figures["guard_violations"] = float(sum(len(row["violations"]) for row in every))
    targets: dict[str, Bound] = {
        f"{OURS}_rescued_share": {"min": 0.95},
        "nothing_rescued_share": {"max": 0.2},
        "guard_violations": {"max": 0},
    }
    heads = ("rescued", "regret", "changes a run")
    rows = tuple(
        (
            arm.label,
            f"{fmean(study.rescued(arm.name, bad)):.0%}",
            f"{study.regret(arm.name, bad):.2f}",
            f"{fmean(row['sent'] for start in bad for row in study.rows[arm.name, start]):.1f}",
        )
        for arm in study.arms
    )
    return Result(figures, targets, n, (Table("over the bad starts", heads, rows),))
