"""The study of feedback on episodes: what its person sees and says, figures that follow from results, the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.studies.data import feedback_page, study_feedback
from benchmarks.studies.data.person import DISLIKED, ERRS, Person, Seen, read_episodes
from benchmarks.studies.data.study_feedback import QUICK, SEEDS, WHOLE, Study, carry_out, curves_of, key_of, result_of
from benchmarks.studies.results import append
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import SteerwayError
from control_plane.storage.data.checking import check_record
from ray_jobs.workloads.episode_feedback import PREFERENCES, SCORES
from ray_jobs.workloads.grid import Grid, Rewards
from ray_jobs.workloads.policy_gradient import build_policy
from ray_jobs.workloads.shown_episodes import ShownEpisodes


@pytest.fixture
def shown(tmp_path: Path) -> tuple[Any, list[Seen]]:
    """Games of a policy, and what the person sees of them."""
    torch.manual_seed(2)
    played = Grid().play(build_policy(1e-2)[0], 200, Rewards())
    ShownEpisodes(tmp_path, "run", 200).write(20, played)
    return played, read_episodes(tmp_path)[20]


# --- The person ---


def test_return_and_entries_of_a_game_are_read_off_its_path(shown: tuple[Any, list[Seen]]) -> None:
    played, games = shown
    assert [one.returns for one in games] == pytest.approx(played.rewards.sum(dim=0).tolist(), abs=1e-5)
    features = played.features()[:, sorted(DISLIKED)].sum(dim=1)
    assert [one.entries for one in games] == features.tolist()
    assert sum(one.reached for one in games) / 200 == pytest.approx(played.reached)
    assert [one.wanted for one in games] == [one.returns - one.entries for one in games]


def test_person_says_what_a_source_takes_and_errs_one_time_in_ten(shown: tuple[Any, list[Seen]]) -> None:
    _, games = shown
    for kind, fields in {"scores": SCORES, "preferences": PREFERENCES}.items():
        body, looked_at = Person(1).lines(kind, games, 200)
        schema = SourceSettings.model_validate({"format": "jsonl", "live": True, "fields": fields}).schema_of_records
        records = [json.loads(line) for line in body.splitlines()]
        for record in records:
            check_record(record, schema)
        assert looked_at == 200
        assert Person(1).lines(kind, games, 200)[0] == body
    scores = [json.loads(line)["score"] for line in Person(1).lines("scores", games, 200)[0].splitlines()]
    wrong = sum((score > 0) != (one.entries == 0) for score, one in zip(scores, games, strict=True))
    assert 0 < wrong < 3 * ERRS * 200
    disliked = sorted(DISLIKED)
    better = [sum(r["preferred"][at] for at in disliked) < sum(r["rejected"][at] for at in disliked) for r in records]
    assert 0.8 < sum(better) / len(better) < 1.0


def test_person_looks_at_as_many_games_as_it_is_given_time_for(shown: tuple[Any, list[Seen]]) -> None:
    body, looked_at = Person(1).lines("scores", shown[1], 5)
    assert (len(body.splitlines()), looked_at) == (5, 5)
    assert Person(1).lines("preferences", shown[1], 5)[1] == 10


# --- Figures and page ---


def row(arm: str, seed: int, wanted: float, in_mixture: int = 200, reached: float = 1.0) -> dict[str, Any]:
    steps = range(WHOLE.show_every, WHOLE.steps + 1, WHOLE.show_every)
    ends = {"wanted": wanted + seed / 100, "returns": 0.7, "entries": 0.7 - wanted, "reached": reached}
    curves = {name: [[step, value if step > 200 else 0.0] for step in steps] for name, value in ends.items()}
    made = {"key": key_of(arm, seed, WHOLE), "arm": arm, "seed": seed, "curves": curves, "seconds": 60.0}
    sent = {"requests": 16, "looked_at": 256, "records": 200, "duplicates": 0, "in_mixture": in_mixture}
    return made | ({"first_step": WHOLE.steps + 1} if arm == "alone" else sent | {"first_step": 120})


def study(scores: float = 0.5, preferences: float = 0.4, **about: Any) -> Study:
    ends = {"alone": 0.1, "scores": scores, "preferences": preferences}
    return Study(WHOLE, {arm: [row(arm, seed, end, **about) for seed in SEEDS] for arm, end in ends.items()})


def test_figures_follow_from_the_results() -> None:
    result = result_of(study(), 5)
    assert result.met
    assert result.figures["scores_minus_alone"] == pytest.approx(0.4)
    assert result.figures["preferences_minus_alone_low"] == pytest.approx(0.3)
    assert result.figures["alone_wanted"] == pytest.approx(0.13)
    assert result.figures["records_a_run"] == 200


@pytest.mark.parametrize(
    ("changed", "target"),
    [
        ({"scores": 0.05}, "scores_minus_alone_low"),
        ({"preferences": 0.0}, "preferences_minus_alone_low"),
        ({"in_mixture": 199}, "records_lost_or_doubled"),
        ({"reached": 0.9}, "reached_least"),
    ],
)
def test_missed_target_is_not_met_and_the_page_says_so(changed: dict[str, Any], target: str, tmp_path: Path) -> None:
    missed = study(**changed)
    result = result_of(missed, 5)
    assert [name for name in result.targets if result.verdict_on(name) != "met"] == [target]
    feedback_page.write(tmp_path / "page.md", missed, result, [])
    assert (tmp_path / "page.md").read_text().count("not met |") == 1


def test_page_and_figure_are_made_of_the_results(tmp_path: Path) -> None:
    made = study()
    (name,) = feedback_page.draw(made, tmp_path, lambda line: None)
    feedback_page.write(tmp_path / "page.md", made, result_of(made, 5), [name])
    page = (tmp_path / "page.md").read_text()
    assert "Without feedback a game is worth 0.13 to the person; with scores 0.53, better by +0.4000" in page
    assert "| scores - alone | +0.4000 (+0.4000 to +0.4000) |" in page
    assert "0.062 |" in page
    assert "Unfinished" not in page
    assert (tmp_path / name).stat().st_size > 1000
    assert "2 of 5 seeds, 150 of 500 steps" in feedback_page.unfinished(2, Study(QUICK, made.rows))[0]


def test_curves_are_means_over_the_games_of_a_step(shown: tuple[Any, list[Seen]]) -> None:
    games = shown[1]
    curves = curves_of({40: games[:3], 20: games})
    assert [step for step, _ in curves["wanted"]] == [20, 40]
    assert curves["entries"][1][1] == pytest.approx(sum(one.entries for one in games[:3]) / 3, abs=1e-4)


def test_what_the_file_has_is_not_run_again(tmp_path: Path, monkeypatch: Any) -> None:
    def no_cluster(say: Any) -> Any:
        raise SteerwayError("a cluster was asked for")

    monkeypatch.setattr("benchmarks.studies.data.series.own_cluster", no_cluster)
    path = tmp_path / "results.jsonl"
    for arm in study_feedback.ARMS:
        append(path, row(arm, 1, 0.1))
    assert carry_out(path, lambda line: None, [1], WHOLE).ends("scores") == [pytest.approx(0.11)]
    with pytest.raises(SteerwayError, match="a cluster was asked for"):
        carry_out(path, lambda line: None, [1, 2], WHOLE)
