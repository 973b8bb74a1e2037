"""Results are appended and read back; what a crash cut off is trained again, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import plan, runs
from benchmarks.studies.plan import ARMS, Trial
from benchmarks.studies.results import append, read

TRIALS = [Trial(arm, 1e-3, seed, steps=10) for arm in ("nothing", "random") for seed in (1, 2)]


def test_results_are_read_back_by_key_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read(path) == {}
    append(path, {"key": "a", "eval_loss": 1.0})
    append(path, {"key": "b", "eval_loss": float("nan")})
    with path.open("a") as file:
        file.write('{"key": "c", "eval')
    append(path, {"key": "a", "eval_loss": 2.0})
    assert {key: row["eval_loss"] for key, row in read(path).items() if key == "a"} == {"a": 2.0}
    assert sorted(read(path)) == ["a", "b"]


def test_only_runs_without_a_result_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trained = tmp_path / "results.jsonl", list[str]()

    def train(function: str, ranks: int, spec: dict[str, Any], folder: Path, limit_s: float) -> list[int]:
        assert function.startswith("benchmarks.studies.agent_rank:")
        for given in spec["trials"]:
            if len(trained) == 3 and path.stat().st_size < 1000:
                raise KeyboardInterrupt
            trained.append(given["key"])
            append(path, {"key": given["key"], "eval_loss": 1.0})
        return [len(spec["trials"])]

    monkeypatch.setattr(runs, "run_ranks", train)
    with pytest.raises(KeyboardInterrupt):
        runs.run(TRIALS, path, lambda line: None, "study")
    assert len(trained) == 3
    path.write_text(path.read_text() + " " * 1000 + "\n")
    rows = runs.run(TRIALS, path, lambda line: None, "study")
    assert [row["key"] for row in rows] == [trial.key for trial in TRIALS] == trained
    runs.run(TRIALS, path, lambda line: None, "study")
    assert len(trained) == len(TRIALS)


def test_key_tells_arm_rate_seed_options_length_and_code_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Trial("probing", 1e-3, 1, {"multiple": 8.0})
    others = [
        Trial("guarded", 1e-3, 1, {"multiple": 8.0}),
        Trial("probing", 2e-3, 1, {"multiple": 8.0}),
        Trial("probing", 1e-3, 2, {"multiple": 8.0}),
        Trial("probing", 1e-3, 1, {"multiple": 4.0}),
        Trial("probing", 1e-3, 1, {"multiple": 8.0}, steps=10),
    ]
    assert len({one.key, *(other.key for other in others)}) == 1 + len(others)
    assert one.key == Trial("probing", 1e-3, 1, {"multiple": 8.0}).key
    before = one.key
    monkeypatch.setattr(plan, "BATCH", 99)
    plan.version.cache_clear()
    assert one.key != before
    monkeypatch.undo()
    plan.version.cache_clear()
    assert one.key == before


def test_an_arm_s_results_depend_on_its_own_rule_only() -> None:
    versions = {name: plan.version(name) for name, arm in ARMS.items() if arm.module}
    assert versions["greedy-shipped"] == versions["greedy-published"]
    assert len(set(versions.values())) == len(versions) - 1


def test_study_and_tuning_share_no_seed() -> None:
    from benchmarks.studies.learning import ROUNDS, RUNS_A_ROUND

    learning = range(plan.FIRST_LEARNING_SEED, plan.FIRST_LEARNING_SEED + ROUNDS * RUNS_A_ROUND)
    assert not {*plan.SEEDS} & {*plan.TUNING_SEEDS, *learning}
    assert len(plan.SEEDS) == 8


def test_arms_with_options_have_the_same_budget() -> None:
    assert {len(arm.configs) for arm in ARMS.values() if len(arm.configs) > 1} == {6}
