"""Verdicts of the health trials: what counts as found, as in time, and as a false alert."""

from math import inf, isnan, nan

from benchmarks.health.health import Found, found, loss_shows, result_of
from benchmarks.health.trials import FAULTS, FIRST_SEED, ONSET, TUNING_SEEDS, Trial, faulty, healthy

TRIAL = Trial("spike", "classifier", 100, 1e-3, fault="loss_spike", onset=330)
CALM = [1.0 + 0.01 * (step % 7) for step in range(640)]


def alert(kind: str, step: int) -> list[object]:
    return [kind, "", step, step, "a sentence"]


def test_alert_of_the_kind_after_the_onset_is_found_and_one_before_is_false() -> None:
    answer = {"alerts": [alert("plateau", 200), alert("gradient_spike", 330), alert("loss_spike", 331)], "losses": CALM}
    result = found(TRIAL, answer)
    assert (result.after, result.false_alerts) == (2, 1)
    assert isnan(result.lead), "the loss never showed it"


def test_alert_of_another_kind_is_not_the_one() -> None:
    assert found(TRIAL, {"alerts": [alert("gradient_spike", 331)], "losses": CALM}).after == inf


def test_lead_is_counted_from_the_step_at_which_the_loss_shows_it() -> None:
    losses = [*CALM[:349], 5.0, *CALM[350:]]
    assert loss_shows(losses, 330) == 350
    assert found(TRIAL, {"alerts": [alert("loss_spike", 331)], "losses": losses}).lead == 350 - 332
    assert loss_shows([*CALM[:339], nan], 330) == 340


def test_verdict_needs_every_run_in_time_and_no_false_alert() -> None:
    trials = {kind: faulty(kind, 1)[0] for kind in FAULTS}
    results = [Found(trial, FAULTS[kind].latest_steps, nan, 0) for kind, trial in trials.items()]
    quiet = healthy(1)
    silent = {quiet[0].name: {"alerts": [], "losses": CALM}}
    assert result_of(1, results, quiet, silent).met
    late = [*results[:-1], Found(results[-1].trial, FAULTS["checkpoint_too_old"].latest_steps + 1, nan, 0)]
    assert not result_of(1, late, quiet, silent).met
    loud = {quiet[0].name: {"alerts": [alert("plateau", 9)], "losses": CALM}}
    assert not result_of(1, results, quiet, loud).met
    noisy = [*results[:-1], Found(results[-1].trial, 1, nan, 1)]
    assert not result_of(1, noisy, quiet, silent).met


def test_figures_come_from_other_seeds_than_those_of_the_tuning() -> None:
    seeds = {trial.seed for kind in FAULTS for trial in faulty(kind, 10)} | {
        trial.seed for trial in healthy(36, FIRST_SEED + 10)
    }
    assert not seeds & set(TUNING_SEEDS)
    assert min(seeds) == FIRST_SEED


def test_half_of_each_run_is_clean_and_healthy_runs_cover_every_stage() -> None:
    assert all(trial.onset >= ONSET for kind in FAULTS for trial in faulty(kind, 10))
    assert {trial.stage for trial in healthy(36)} == {None, 0, 1, 2, 3}
