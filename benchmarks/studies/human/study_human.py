"""Study of interventions: a pre-trained GPT-2 on Wikitext-2 from a rate that is too low, left alone and steered.

The interventions were recorded on one seed, and frozen before the seeds of the study were trained; the tuned rate is
chosen on another one. Results are appended to a file (`--answers`, else in Steerway's home) as runs end; a call goes on
where the last one stopped. With all of its seeds the study writes its page and figure.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.studies import runs
from benchmarks.studies.human import plan
from benchmarks.studies.human.figure import draw
from benchmarks.studies.human.page import write
from benchmarks.studies.human.plan import ARMS, SEEDS, Trial
from benchmarks.studies.results import Row, place_of, results_of
from benchmarks.studies.wilcoxon import wilcoxon

PAGE = Path(__file__).parents[3] / "docs" / "studies" / "human.md"
RANK = "benchmarks.studies.human.human_rank"
RUN_LIMIT_S, PRETRAINING_LIMIT_S = 1800.0, 3600.0
QUICK_STEPS, QUICK_SWEEP = 50, (1e-3,)


@dataclass(frozen=True)
class Study:
    """Results of a study. `weights`: of the pre-training; `rows`: by arm, seeds in one order."""

    weights: Mapping[str, Any]
    interventions: Sequence[Mapping[str, Any]]
    tuned: float
    sweep: Mapping[float, float]
    spent: Sequence[Row]
    """Runs of the sweep."""

    again: Row
    """The run that was watched, trained again with its recorded interventions."""

    rows: Mapping[str, Sequence[Row]]
    steps: int

    def losses(self, arm: str) -> list[float]:
        """Return the losses at the end, one a seed."""
        return [row["eval_loss"] for row in self.rows[arm]]

    def p_value(self, arm: str, other: str) -> float:
        """Return Wilcoxon's p, paired by seed: exact, two-sided."""
        pairs = zip(self.losses(arm), self.losses(other), strict=True)
        return wilcoxon([one - another for one, another in pairs])

    def reached(self, arm: str, other: str) -> list[int | None]:
        """Return for each seed the first evaluation of `arm` at most as high as the last one of `other`, as a step."""
        pairs = zip(self.rows[arm], self.rows[other], strict=True)
        return [
            next((step for step, loss in one["evals"] if loss <= another["evals"][-1][1]), None)
            for one, another in pairs
        ]

    @property
    def all_applied(self) -> bool:
        """Return whether every intervention was applied at its step, in every run."""
        wanted = [one["step"] for one in self.interventions]
        return all(
            [one["step"] for one in row["applied"] if one["status"] == "applied"] == wanted
            for row in (*self.rows["steered"], self.again)
        )


def measure(n: int, quick: bool, say: Say, answers: str | None = None) -> Result:
    """Run the study on its first `n` seeds; `answers`: the file of results. Raises `SteerwayError` if a run fails."""
    study = carry_out(results_of(PAGE, answers), say, SEEDS[:n], quick=quick)
    result = result_of(study, n)
    page = place_of(PAGE, is_whole=n >= len(SEEDS) and not quick)
    write(page, study, result, draw(study, page.parent, say))
    say(f"study-human: {page} is written")
    return result


def carry_out(results: Path, say: Say, seeds: Sequence[int], quick: bool = False) -> Study:
    """Run what is not in the file of results yet, and return the study.

    Args:
        quick: all runs and the pre-training are cut to `QUICK_STEPS` steps, the steps of the interventions with them.
    """
    steps = QUICK_STEPS if quick else plan.STEPS
    sweep_rates = QUICK_SWEEP if quick else plan.SWEEP
    pretraining_steps = QUICK_STEPS if quick else plan.PRETRAINING_STEPS
    sent = scaled(plan.recorded()["interventions"], steps / plan.STEPS)
    weights = _weights(results, pretraining_steps, say)

    def train(trials: Sequence[Trial], what: str) -> list[Row]:
        options = {"pretraining_steps": pretraining_steps, "interventions": sent}
        rank = f"{RANK}:run_trials"
        return runs.run(trials, results, say, what, rank=rank, options=options, run_limit_s=RUN_LIMIT_S)

    digest = weights["digest"]
    swept = train([Trial("tuned", rate, plan.TUNING_SEED, digest, steps) for rate in sweep_rates], "sweep")
    sweep = {rate: row["eval_loss"] for rate, row in zip(sweep_rates, swept, strict=True)}
    tuned = min(sweep, key=sweep.__getitem__)
    again = train([Trial("steered", plan.START, plan.RECORDED_SEED, digest, steps)], "the run that was watched")[0]
    rates = {"static": plan.START, "steered": plan.START, "tuned": tuned}
    # Seed after seed: what is interrupted has whole seeds, which are pairs of all arms.
    rows = train([Trial(arm, rates[arm], seed, digest, steps) for seed in seeds for arm in ARMS], "study")
    by_arm = {arm: rows[index :: len(ARMS)] for index, arm in enumerate(ARMS)}
    return Study(weights, sent, tuned, sweep, swept, again, by_arm, steps)


def scaled(interventions: Sequence[Mapping[str, Any]], share: float) -> list[Mapping[str, Any]]:
    """Return the interventions for a run that is shorter by a share."""
    return [{**one, "step": max(1, round(one["step"] * share))} for one in interventions]


def _weights(results: Path, steps: int, say: Say) -> Mapping[str, Any]:
    say(f"pre-training: {steps} steps on the standard library's text, unless the weights are cached")
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        limit_s = PRETRAINING_LIMIT_S
        made: Mapping[str, Any] = run_ranks(f"{RANK}:pretrain", 1, {"steps": steps}, Path(folder), limit_s)[0]
    return made


def result_of(study: Study, n: int) -> Result:
    """Return the figures and their targets."""
    losses = {arm: fmean(study.losses(arm)) for arm in ARMS}
    below = [one < other for one, other in zip(study.losses("steered"), study.losses("static"), strict=True)]
    figures = {f"{arm}_loss": loss for arm, loss in losses.items()}
    figures["steered_below_static_share"] = fmean(below)
    figures["interventions_applied"] = float(study.all_applied)
    figures["p_steered_static"] = study.p_value("steered", "static")
    figures["p_steered_tuned"] = study.p_value("steered", "tuned")
    targets: dict[str, Bound] = {"steered_below_static_share": {"min": 1.0}, "interventions_applied": {"min": 1.0}}
    rows = tuple((ARMS[arm], f"{losses[arm]:.4f}") for arm in ARMS)
    return Result(figures, targets, n, (Table("at the end", ("loss, nats a token",), rows),))
