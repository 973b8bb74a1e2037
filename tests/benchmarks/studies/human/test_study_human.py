"""The study of interventions: figures follow from results, the page says who wins, real runs take the commands."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.human import plan, study_human
from benchmarks.studies.human.page import write
from benchmarks.studies.human.plan import Trial
from benchmarks.studies.human.savings import QUEUE_S, savings
from benchmarks.studies.human.study_human import Study, carry_out, result_of, scaled
from control_plane.core.model.errors import NotFound

STATIC, STEERED, TUNED = 4.0, 3.5, 3.4
SEEDS = range(6)


def row(loss: float, applied: bool = True) -> dict[str, Any]:
    done = [{"step": one["step"], "status": "applied"} for one in plan.recorded()["interventions"]]
    return {
        "eval_loss": loss, "evals": [[0, 5.0], [100, 3.9], [300, loss]], "losses": [5.0, loss], "rates": [1e-5, 0.0],
        "applied": done if applied else done[:-1], "seconds": 60.0, "cpu_s": 30.0,
    }  # fmt: skip


def study(steered: float = STEERED, applied: bool = True) -> Study:
    """A study in which each arm ends at its loss, a little apart by seed."""
    ends = {"static": STATIC, "steered": steered, "tuned": TUNED}
    rows = {arm: [row(loss + seed / 1000, applied) for seed in SEEDS] for arm, loss in ends.items()}
    weights = {"digest": "ab" * 32, "cpu_s": 99.0, "library_loss": 3.7, "wikitext_loss": 5.4}
    return Study(
        weights | {"untrained_wikitext_loss": 6.9}, plan.recorded()["interventions"], 1e-3, {1e-4: 3.9, 1e-3: 3.4},
        [row(3.9), row(3.4)], row(steered), rows, plan.STEPS,
    )  # fmt: skip


def page_of(made: Study, tmp_path: Path, n: int = 6) -> str:
    write(tmp_path / "human.md", made, result_of(made, n), ["human-curves.svg"])
    return (tmp_path / "human.md").read_text()


def test_figures_follow_from_the_losses() -> None:
    result = result_of(study(), 6)
    assert result.figures["tuned_loss"] == pytest.approx(TUNED + 0.0025)
    assert result.figures["p_steered_static"] == pytest.approx(2 / 64)
    assert result.met


@pytest.mark.parametrize(("steered", "applied"), [(4.1, True), (3.5, False)])
def test_missed_target_is_not_met(steered: float, applied: bool) -> None:
    assert not result_of(study(steered, applied), 6).met


@pytest.mark.parametrize(
    ("steered", "headline"),
    [
        (3.5, "**The tuned decay wins**: it ends at 3.402, "),
        (3.3, "**The run with interventions ends lowest**: at 3.302"),
    ],
)
def test_page_says_who_wins(steered: float, headline: str, tmp_path: Path) -> None:
    text = page_of(study(steered), tmp_path)
    assert headline in text
    assert "Unfinished" not in text
    assert plan.recorded()["made_by"] in text
    assert "Applied at these steps in every run" in text


def test_page_says_what_is_missing(tmp_path: Path) -> None:
    text = page_of(study(applied=False), tmp_path, n=2)
    assert "**Unfinished: 2 of 6 seeds, 300 of 300 steps.**" in text
    assert "**not in every run**" in text
    assert "evaluations **not the same**" in text


def test_savings_grow_with_the_queue_and_with_what_is_trained_again() -> None:
    made = study()
    at_once, queued, checkpoint, anew, queued_anew = savings(made)
    changes = len(made.interventions)
    assert (at_once.steps, anew.steps) == (0, sum(one["step"] for one in made.interventions))
    assert queued.seconds - at_once.seconds == pytest.approx(changes * QUEUE_S)
    assert queued.cpu_s == at_once.cpu_s < checkpoint.cpu_s < anew.cpu_s == queued_anew.cpu_s
    step_cpu_s = 30.0 / plan.STEPS
    starts_cpu_s = changes * sum(one["cpu_s"] for one in plan.recorded()["restarts"]) / len(plan.recorded()["restarts"])
    assert anew.cpu_s == pytest.approx(anew.steps * step_cpu_s + starts_cpu_s)


def test_what_was_recorded_is_whole() -> None:
    made = plan.recorded()
    steps = [one["step"] for one in made["interventions"]]
    assert steps == sorted(set(steps))
    assert 0 < steps[0] <= steps[-1] < plan.STEPS
    assert made["seed"] not in (*plan.SEEDS, plan.TUNING_SEED)
    assert plan.TUNING_SEED not in plan.SEEDS
    assert made["evals"][-1][0] == made["steps"] == plan.STEPS


def test_key_tells_weights_and_interventions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Trial("steered", 1e-5, 1, "a" * 64)
    before = one.key
    assert len({before, Trial("steered", 1e-5, 1, "b" * 64).key, Trial("static", 1e-5, 1, "a" * 64).key}) == 3
    monkeypatch.setattr(plan, "recorded", lambda: {"interventions": [{"step": 1}]})
    plan.version.cache_clear()
    try:
        assert one.key != before
    finally:
        plan.version.cache_clear()


def test_study_without_wikitext_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.studies.human import texts

    monkeypatch.setattr(texts, "WIKITEXT", tmp_path / "nothing")
    with pytest.raises(NotFound, match=r"there is no .*nothing"):
        texts.texts.__wrapped__()


def test_figure_is_drawn_where_matplotlib_is_and_its_absence_is_said(tmp_path: Path) -> None:
    from benchmarks.studies.human.figure import draw

    said = list[str]()
    names = draw(study(), tmp_path, said.append)
    assert (names == ["human-curves.svg"]) != any("matplotlib is not installed" in one for one in said)
    assert all((tmp_path / name).stat().st_size < 200_000 for name in names)


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.timeout(1500)
def test_quick_study_trains_and_applies_every_intervention_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.studies.human.texts import WIKITEXT

    if not WIKITEXT.is_dir():
        pytest.skip(f"no {WIKITEXT}")
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path / "home"))
    said = list[str]()
    made = carry_out(tmp_path / "human.jsonl", said.append, (plan.SEEDS[0],), quick=True)
    assert made.all_applied
    wanted = scaled(plan.recorded()["interventions"], study_human.QUICK_STEPS / plan.STEPS)
    assert [one["step"] for one in made.rows["steered"][0]["applied"]] == [one["step"] for one in wanted]
    rates = made.rows["steered"][0]["rates"]
    assert max(rates) > 50 * plan.START > max(made.rows["static"][0]["rates"])
    assert made.losses("steered")[0] < made.losses("static")[0] < made.weights["untrained_wikitext_loss"]
    trained = len(said)
    again = carry_out(tmp_path / "human.jsonl", said.append, (plan.SEEDS[0],), quick=True)
    assert again.rows == made.rows
    assert not any("to be trained" in one for one in said[trained:])
