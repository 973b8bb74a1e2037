"""Reflexes on real ranks: bad data, and a run that saves itself, without a person and without a language model."""

from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from control_plane.compare.replay_check import judge
from control_plane.core.model.health import AlertRaised
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.trials.reflex_trials import BAD_AT

pytestmark = [pytest.mark.jobs, pytest.mark.slow, pytest.mark.timeout(600)]

RESCUE = {"do": ["rollback trusted", "lr*=0.5", "skip_samples 2048"], "cool_down_steps": 50}
BAD = {"nan": "non_finite", "spike": "loss_spike"}
CLEAN_SEEDS = range(10)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("reflexes")
    trainings: list[dict[str, Any]] = [{"name": f"clean-{seed}", "seed": seed} for seed in CLEAN_SEEDS]
    for bad, kind in BAD.items():
        about = {"seed": 0, "bad": bad}
        trainings.append({"name": f"{bad}-alone", **about})
        trainings.append({"name": f"{bad}-saved", "reflexes": {kind: RESCUE}, **about})
        trainings.append({"name": f"{bad}-replayed", "replays": f"{bad}-saved", **about})
    spec = {"root": str(root), "trainings": trainings}
    answers, *_ = run_ranks("tests.ray_jobs.trials.reflex_trials:train_each", 2, spec, root / "ranks", 500)
    return root, {one["name"]: answer for one, answer in zip(trainings, answers, strict=True)}


def records(root: Path, name: str, kind: type) -> list[Any]:
    journal = RunFiles(root / "runs" / name).journal
    return [entry.record for entry in read(journal) if isinstance(entry.record, kind)]


@pytest.mark.parametrize("bad", BAD)
def test_run_with_bad_samples_saves_itself_and_ends_as_well_as_clean_ones(
    seen: tuple[Path, dict[str, Any]], bad: str
) -> None:
    root, answers = seen
    commands = [record.command for record in records(root, f"{bad}-saved", CommandAccepted)]
    by_reflex = [command for command in commands if command.author == f"reflex:{BAD[bad]}"]
    # After the rollback come the changes that the new branch began with.
    assert [command.intent.kind for command in by_reflex] == ["rollback", "set_learning_rate", "skip_samples"]
    settled = {record.uuid: record for record in records(root, f"{bad}-saved", CommandSettled)}
    assert [settled[command.uuid].status for command in by_reflex] == ["applied"] * 3
    assert BAD_AT <= (settled[by_reflex[0].uuid].step or 0) <= BAD_AT + 10
    assert answers[f"{bad}-saved"]["lives"] == 2
    worst = max(answers[f"clean-{seed}"]["loss"] for seed in CLEAN_SEEDS)
    assert isfinite(worst)
    assert answers[f"{bad}-saved"]["loss"] <= worst


def test_without_a_reflex_the_same_data_ruin_the_run(seen: tuple[Path, dict[str, Any]]) -> None:
    root, answers = seen
    assert not isfinite(answers["nan-alone"]["loss"])
    assert answers["nan-alone"]["lives"] == 1
    assert "non_finite" in {record.alert.kind for record in records(root, "nan-alone", AlertRaised)}


@pytest.mark.parametrize("bad", BAD)
def test_what_a_reflex_did_is_replayed_bit_for_bit(seen: tuple[Path, dict[str, Any]], bad: str) -> None:
    root, answers = seen
    verdict = judge(*(RunFiles(root / "runs" / f"{bad}-{name}") for name in ("replayed", "saved")))
    assert verdict.verdict == "identical", verdict.sentence()
    assert answers[f"{bad}-replayed"]["loss"] == answers[f"{bad}-saved"]["loss"]
