"""The agent's study: figures of made-up results, the audit of the guard, and real short runs, repeated bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.studies import learning, plan, study_agent
from benchmarks.studies.outcome import CHANCE, loss_of
from benchmarks.studies.page import write
from benchmarks.studies.pilot import violations
from benchmarks.studies.plan import Trial
from benchmarks.studies.runs import run
from benchmarks.studies.study_agent import Study, carry_out, result_of
from control_plane.agent.rules.learned import FEATURES
from control_plane.agent.rules.probing import ProbingOptions
from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, Record

SEEDS = range(8)


def row(loss: float, rate: float = 1e-3, **facts: Any) -> dict[str, Any]:
    return {
        "trial": {"rate": rate}, "eval_loss": loss, "losses": [4.0, None, loss], "rates": [rate] * 3, "looks": 10,
        "sent": 3, "refused": 1, "rule_s": 0.01, "violations": [], "cpu_s": 2.0, "seconds": 3.0,
    } | facts  # fmt: skip


def study(losses: Mapping[str, float], bend: float = 0.0) -> Study:
    """A study in which each arm ends at this loss from all starts, a little apart by seed."""
    starts = (*plan.STARTS, 0.0)
    rows = {
        (arm, start): [row(loss + bend * seed) for seed in SEEDS] for arm, loss in losses.items() for start in starts
    }
    return Study(
        6e-3, {3e-3: 2.1, 6e-3: 2.0}, {"probing": {"multiple": 8.0}}, {"probing": [({"multiple": 8.0}, 2.0)]},
        [row(2.0) for _ in SEEDS], rows, [row(2.0)] * 3,
    )  # fmt: skip


LOSSES = {"nothing": 3.0, "greedy-published": 2.5, "random": 2.8, "probing": 2.05}


def test_figures_follow_from_the_losses() -> None:
    result = result_of(study(LOSSES), 8)
    assert result.figures["probing_rescued_share"] == 1.0
    assert result.figures["nothing_rescued_share"] == 0.0
    assert result.figures["probing_regret"] == pytest.approx(0.05)
    assert result.figures["greedy_published_regret"] == pytest.approx(0.5)
    assert result.figures["p_against_greedy_published"] == pytest.approx(2 / 256)
    assert result.met


@pytest.mark.parametrize(("arm", "loss"), [("probing", 2.2), ("nothing", 2.05)])
def test_missed_target_is_not_met(arm: str, loss: float) -> None:
    assert not result_of(study(LOSSES | {arm: loss}), 8).met


def test_violation_of_the_guard_misses_the_target() -> None:
    made = study(LOSSES)
    made.rows["random", 1.0][0]["violations"].append("step 3: lr went from 1 to 9")  # type: ignore[attr-defined]
    result = result_of(made, 8)
    assert result.figures["guard_violations"] == 1
    assert not result.met


def test_loss_that_is_not_finite_counts_as_chance() -> None:
    assert {loss_of(row(loss)) for loss in (float("nan"), float("inf"), 99.0)} == {CHANCE}


def test_page_names_the_winner_misses_and_absence_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for losses, words in (
        (LOSSES, '"our probing rule, tuned" ends lowest'),
        (LOSSES | {"random": 2.0}, '"random double, halve, keep" ends lowest'),
    ):
        made = study(losses)
        write(tmp_path / "agent.md", made, result_of(made, 8), [])
        text = (tmp_path / "agent.md").read_text()
        assert words in text
        assert "No language model took part" in text
    write(tmp_path / "agent.md", study(LOSSES | {"probing": 2.5}), result_of(study(LOSSES | {"probing": 2.5}), 8), [])
    assert "`probing_rescued_share` at least 0.95: 0, **missed**" in (tmp_path / "agent.md").read_text()


def test_page_of_an_unfinished_study_is_written_into_steerway_s_home_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    monkeypatch.setattr(study_agent, "carry_out", lambda *given, **options: study(LOSSES))
    monkeypatch.setattr(study_agent, "draw", lambda *given: [])
    monkeypatch.setattr(study_agent, "PAGE", tmp_path / "docs" / "studies" / "agent.md")
    assert study_agent.measure(2, True, lambda line: None).n == 2
    assert "Unfinished: 2 of 8 seeds" in (tmp_path / "studies" / "agent.md").read_text()
    assert not (tmp_path / "docs").exists()


def test_figures_are_drawn_where_matplotlib_is_and_its_absence_is_said(tmp_path: Path) -> None:
    from benchmarks.studies.figures import draw

    said = list[str]()
    names = draw(study(LOSSES), tmp_path, said.append)
    assert (names == ["agent-rescued.png", "agent-curves.png"]) != any(
        "matplotlib is not installed" in one for one in said
    )
    assert all((tmp_path / name).stat().st_size < 300_000 for name in names)


# --- The audit of the guard ---


def journal(*changes: tuple[int, float, float]) -> list[Entry]:
    records: list[Record] = []
    for step, before, after in changes:
        command = Command(uuid=uuid4(), author="study", intent=SetLearningRate(value=after, schedule="keep"))
        records += [
            CommandAccepted(command=command),
            CommandSettled(
                uuid=command.uuid,
                status="applied",
                step=step,
                generation=1,
                before={"lr": [before]},
                after={"lr": [after]},
            ),
        ]
    return [Entry(seq=seq, time="2026-01-01T12:00:00Z", record=record) for seq, record in enumerate(records, 1)]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([(1, 1e-3, 2e-3), (1 + plan.COOL_DOWN_STEPS, 2e-3, 1e-3)], 0),
        ([(1, 1e-3, 2e-3), (plan.COOL_DOWN_STEPS, 2e-3, 1e-3)], 1),
        ([(1, 0.9, 1.1)], 1),
        ([(1, 1e-5, 1e-7)], 1),
        ([(1, 1e-2, 1e-6)], 1),
        ([(1, 4.0, 2.0)], 0),
        ([(10 * index, 1e-3, 2e-3) for index in range(plan.GUARD.max_changes + 1)], 1),
    ],
)
def test_planted_violations_of_the_guard_are_found(changes: list[tuple[int, float, float]], found: int) -> None:
    assert len(violations(journal(*changes))) == found


# --- Real runs ---


@pytest.mark.jobs
def test_real_runs_are_steered_by_their_rules_and_repeat_bit_for_bit(tmp_path: Path) -> None:
    """The second probing run says its default options: another key, and the same run."""
    trials = [
        Trial("nothing", 0.6, 100, steps=24),
        Trial("probing", 0.6, 100, steps=24),
        Trial("probing", 0.6, 100, {"multiple": ProbingOptions().multiple}, steps=24),
    ]
    said = list[str]()
    nothing, probing, again = run(trials, tmp_path / "results.jsonl", said.append, "runs")
    assert (nothing["sent"], nothing["looks"]) == (0, 0)
    assert probing["sent"] > 3
    assert probing["violations"] == []
    assert max(probing["rates"][1:]) < max(nothing["rates"]) / 10
    assert probing["eval_loss"] < CHANCE
    assert [again[name] for name in ("eval_loss", "losses", "rates", "sent")] == [
        probing[name] for name in ("eval_loss", "losses", "rates", "sent")
    ]
    trained = len(said)
    assert run(trials, tmp_path / "results.jsonl", said.append, "runs") == [nothing, probing, again]
    assert len(said) == trained


@pytest.mark.slow
@pytest.mark.jobs
def test_small_study_of_all_arms_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SWEEP", (6e-3,))
    monkeypatch.setattr(plan, "TUNING_SEEDS", (1,))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = carry_out(tmp_path / "all.jsonl", lambda line: None, (100,), starts=(100.0,), steps=40, quick=True)
    sent = {arm: rows[0]["sent"] for (arm, _), rows in made.rows.items()}
    assert set(sent) == set(plan.ARMS)
    assert sent["nothing"] == sent["cosine"] == 0
    assert sent["random"] > 0
    assert result_of(made, 1).figures["guard_violations"] == 0


# --- Learning ---


def test_learning_prefers_the_actions_of_runs_that_ended_low() -> None:
    """Made-up episodes: halving with a high second feature ends low."""
    rows = []
    for index in range(60):
        x, action = (index % 3) - 1.0, ("double", "halve", "keep")[index // 3 % 3]
        good = action == ("halve" if x > 0 else "keep")
        features = [1.0, x, *[0.0] * (len(FEATURES) - 2)]
        rows.append(row(2.0 if good else 3.0, rate=1e-3) | {"episodes": [{"features": features, "proposal": action}]})
    weights = learning.fit(*learning.examples(rows))
    high, low = ([float(w[0] + w[1] * x) for w in weights] for x in (1.0, -1.0))
    assert max(range(3), key=high.__getitem__) == 1
    assert max(range(3), key=low.__getitem__) == 2
    json.dumps(weights.tolist())
