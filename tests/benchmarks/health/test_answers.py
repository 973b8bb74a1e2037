"""Answers of trials in a file: a campaign that was killed goes on, and nothing is taken from other code or trials."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.health import health
from benchmarks.health.answers import MEASURED, KeptAnswers, code_digest, keep
from benchmarks.health.trials import FAULTS, faulty
from control_plane.core.model.errors import Invalid, SteerwayError

TRIALS = faulty("non_finite", 3)
QUIET = {"alerts": [], "losses": [1.0]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_answers_are_those_of_exactly_these_trials_and_this_code(file: Path) -> None:
    code = code_digest()
    keep(file, code, TRIALS[0], QUIET)
    keep(file, code, replace(TRIALS[1], rate=0.5), QUIET)
    keep(file, "other code", TRIALS[2], QUIET)
    kept = KeptAnswers.read(file)
    assert kept.of(TRIALS) == {TRIALS[0].name: QUIET}
    assert kept.outdated() == 1


def test_line_that_a_kill_has_torn_is_no_answer_and_spoils_no_other(file: Path) -> None:
    code = code_digest()
    keep(file, code, TRIALS[0], QUIET)
    whole = file.read_text()
    file.write_text(whole + whole[: len(whole) // 2])
    keep(file, code, TRIALS[1], QUIET)
    assert KeptAnswers.read(file).of(TRIALS).keys() == {TRIALS[0].name, TRIALS[1].name}


def test_digest_of_the_code_changes_with_a_detector_and_not_with_advice(tmp_path: Path) -> None:
    for package in MEASURED:
        (tmp_path / package).mkdir(parents=True)
    detector = tmp_path / "control_plane/core/health/spikes.py"
    advice = tmp_path / "control_plane/core/health/advice/alerts.py"
    advice.parent.mkdir()
    seen = []
    for path, text in ((detector, "one"), (advice, "one"), (advice, "two"), (detector, "two")):
        path.write_text(text)
        seen.append(code_digest(tmp_path))
    assert seen[0] == seen[1] == seen[2] != seen[3]


def test_campaign_that_was_killed_runs_only_what_has_no_answer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def ranks_that_die(function: str, ranks: int, spec: dict[str, Any], *_: object) -> list[Any]:
        for given in spec["trials"]:
            if len(ran) == 2:
                raise SteerwayError("rank 0 ended with exit code -9")
            trial = next(one for one in TRIALS if one.spec() == given)
            ran.append(trial.name)
            keep(Path(spec["answers"]), spec["code"], trial, QUIET | {"name": trial.name})
        return [[KeptAnswers.read(Path(spec["answers"])).of(TRIALS)[one["name"]] for one in spec["trials"]]]

    monkeypatch.setattr(health, "run_ranks", ranks_that_die)
    with pytest.raises(SteerwayError, match="-9"):
        health.run(TRIALS, print, file)
    first, ran = ran, []
    answers = health.run(TRIALS, print, file)
    assert (first, ran) == ([TRIALS[0].name, TRIALS[1].name], [TRIALS[2].name])
    assert answers.keys() == {trial.name for trial in TRIALS}
    ran = []
    health.run(TRIALS, print, file)
    assert ran == []


def test_chosen_kinds_are_measured_alone_and_have_the_only_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(trials: Sequence[Any], *_: object) -> dict[str, Any]:
        return {trial.name: QUIET for trial in trials}

    monkeypatch.setattr(health, "run", answer)
    faults = health.measure(2, False, print, only="non_finite, loss_spike")
    assert faults.targets.keys() == {
        "non_finite_in_time_share",
        "loss_spike_in_time_share",
        "clean_halves_false_alerts",
    }
    assert not faults.met
    healthy = health.measure(2, False, print, only="healthy")
    assert healthy.targets.keys() == {"healthy_false_alerts"}
    assert healthy.met
    assert len(health.measure(1, False, print).targets) == len(FAULTS) + 2
    with pytest.raises(Invalid, match="'spikes'"):
        health.measure(1, False, print, only="spikes")
