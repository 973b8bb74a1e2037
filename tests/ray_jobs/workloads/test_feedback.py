"""Feedback on episodes: what is learned from it, what is passed over, and the same training without it, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.compare.replay_check import judge
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.records import CommandSettled, GenerationStarted, Parent
from control_plane.core.model.state import fold
from control_plane.core.rules.branch_rules import Origin
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.transfer import transfer_shards, write_origin
from control_plane.storage.data.checking import BadRecord, check_record
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.config.run_config import load
from ray_jobs.data.mixture.dataset import mixture
from ray_jobs.data.mixture.sampler import MixtureSampler
from ray_jobs.workloads.episode_feedback import EpisodeReward, Feedback, Judgement, feedback_of, judgement_of
from ray_jobs.workloads.grid import FIELDS, Grid, Rewards
from ray_jobs.workloads.policy_gradient import build_policy
from ray_jobs.workloads.shown_episodes import KEPT_STEPS, ShownEpisodes, described
from tests.ray_jobs.rank.test_steering import command
from tests.ray_jobs.support.crashes import run_crashes
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.workloads import feedback_trial as trial

SHIPPED = Path(__file__).parents[3] / "configs" / "policy-gradient.yaml"
STEPS, SCORES_AT, PREFERENCES_AT, WEIGHT_AT = 8, 2, 4, 6
SETTINGS = {name: SourceSettings.model_validate(each) for name, each in trial.SOURCES.items()}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def games(count: int = 64) -> Any:
    torch.manual_seed(1)
    return Grid().play(build_policy(1e-2)[0], count, Rewards())


def learned(judgements: list[Judgement], steps: int = 250) -> EpisodeReward:
    reward = EpisodeReward()
    optimizer = torch.optim.Adam(reward.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        reward.losses(judgements).mean().backward()
        optimizer.step()
    return reward


# --- What is learned ---


def test_features_count_the_fields_that_are_entered_until_the_game_ends() -> None:
    played = games()
    features = played.features().float()
    assert torch.equal(features.sum(dim=1), played.alive.sum(dim=0))
    goal = features[:, FIELDS - 1]
    assert set(goal.tolist()) == {0.0, 1.0}
    assert float(goal.sum() + (played.starts == FIELDS - 1).sum()) / 64 == pytest.approx(played.reached)


def test_reward_of_the_moves_of_a_game_is_that_of_its_features_and_each_field_pays_once() -> None:
    played, reward = games(), EpisodeReward()
    with torch.no_grad():
        reward.rewards.copy_(torch.arange(FIELDS) / 10 + 1)
    features = played.features()
    assert int(features.max()) > 1
    of_games = reward.of_moves(played).sum(dim=0)
    assert torch.allclose(of_games, reward(features.float()), atol=1e-4)
    assert torch.allclose(of_games, (features > 0).float() @ reward.rewards.detach(), atol=1e-4)


def test_scores_teach_a_field_that_is_disliked_and_what_they_have_in_common_is_no_reward() -> None:
    features = games().features().float()
    reward = learned([Judgement(each, score=3.0 - 2.0 * float(each[12] > 0)) for each in features])
    rewards = reward.rewards.detach()
    assert float(rewards[12]) < -1.5
    goal = FIELDS - 1
    assert float(rewards[[each for each in range(goal) if each != 12]].abs().max()) < 0.7
    assert float(reward.offset.detach() + rewards[goal]) == pytest.approx(3.0, abs=0.7)  # almost every game gets there


def test_preferences_teach_a_field_that_is_disliked() -> None:
    ordered = sorted(games().features().float(), key=lambda each: float(each[12] > 0))
    reward = learned([Judgement(better, worse) for better, worse in zip(ordered[:8], ordered[-8:], strict=True)])
    assert int(reward.rewards.argmin()) == 12
    assert float(reward.offset.detach()) == 0.0


def test_weight_of_0_and_a_reward_that_knows_nothing_touch_nothing() -> None:
    feedback, played = Feedback(mixture(sources=trial.SOURCES, may_be_empty=True), weight=1.0), games()
    before = played.rewards
    assert feedback.add_to(played) == 0.0
    assert played.rewards is before
    with torch.no_grad():
        feedback.reward.rewards += 1.0
    feedback.set_weight(0.0)
    assert feedback.add_to(played) == 0.0
    assert played.rewards is before
    feedback.set_weight(0.5)
    assert feedback.add_to(played) == pytest.approx(0.5 * float((played.features() > 0).float().sum(dim=1).mean()))
    assert bool((played.rewards > before).any())


# --- Records ---


def test_record_is_a_score_or_a_preference_and_a_wild_score_is_bounded() -> None:
    seen, other = trial.features(3), trial.features(4)
    score, preference = (
        judgement_of({"features": seen, "score": 99}),
        judgement_of({"preferred": seen, "rejected": other}),
    )
    assert score is not None
    assert preference is not None
    assert (score.score, score.rejected, score.features.tolist()) == (10.0, None, seen)
    assert preference.rejected is not None
    assert (preference.features.tolist(), preference.rejected.tolist()) == (seen, other)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"features": trial.features(3)},
        {"features": trial.features(3), "score": float("nan")},
        {"features": trial.features(3), "score": True},
        {"features": trial.features(3)[:-1], "score": 1.0},
        {"features": [-1, *trial.features(3)[1:]], "score": 1.0},
        {"preferred": trial.features(3), "rejected": "nothing"},
    ],
)
def test_record_that_is_no_judgement_is_passed_over(record: dict[str, Any]) -> None:
    """Of a source that was added while the run trains, with a schema of another kind."""
    assert judgement_of(record) is None


def test_records_that_are_passed_over_leave_no_gradient_and_are_logged_once(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "other.jsonl").write_text('{"score": 1}\n' * 2)
    given = {"scores": {"format": "jsonl", "path": str(tmp_path / "other.jsonl"), "fields": {"score": "number"}}}
    feedback = Feedback(mixture(judgement_of, sources=given, may_be_empty=True))
    feedback.data.global_batch_samples = 2
    for number in (1, 2):
        losses, references = feedback.backward(feedback.data.batch(number))
        assert (len(losses), references) == (0, [])
    assert feedback.reward.rewards.grad is None
    assert caplog.text.count("are passed over: scores/") == 1


def test_sources_that_hold_no_feedback_are_refused() -> None:
    other = SourceSettings.model_validate({"format": "jsonl", "live": True, "fields": {"text": "text"}})
    with pytest.raises(Invalid, match="source web holds no feedback: records of scores have the fields features"):
        feedback_of({"scores": SETTINGS["scores"], "web": other}, 1.0)
    assert feedback_of({}, 1.0) is None


def test_shipped_config_has_sources_of_both_kinds() -> None:
    assert load(SHIPPED).sources == SETTINGS


# --- Episodes that are shown ---


def test_shown_line_with_a_score_is_a_record_and_without_one_it_is_refused(tmp_path: Path) -> None:
    shown = ShownEpisodes(tmp_path, "run", 3)
    shown.write(50, games())
    lines = [json.loads(line) for line in (tmp_path / "00000050.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines] == ["run/50/0", "run/50/1", "run/50/2"]
    schema = SETTINGS["scores"].schema_of_records
    for line in lines:
        record = check_record(line | {"score": -1}, schema)
        judgement = judgement_of(record | {"features": record["features"].tolist()})
        assert judgement is not None
        with pytest.raises(BadRecord, match="field 'score' is missing"):
            check_record(line, schema)


def test_path_is_that_of_the_game_until_its_end() -> None:
    played = games()
    for game, line in enumerate(described(played, "run", 1)):
        fields = str(line["path"]).split(" > ")
        assert len(fields) == int(played.alive[:, game].sum()) + 1
        assert all(field != "4,4" for field in fields[:-1])
        row, column = divmod(int(played.starts[game]), 5)
        assert fields[0] == f"{row},{column}"


def test_folder_holds_the_newest_steps_of_the_branch(tmp_path: Path) -> None:
    shown, played = ShownEpisodes(tmp_path, "run", 1), games(1)
    for step in range(1, KEPT_STEPS + 4):
        shown.write(step, played)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.jsonl")) == list(range(4, KEPT_STEPS + 4))
    shown.write(10, played)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.jsonl")) == list(range(4, 11))


def test_folder_that_cannot_be_written_is_logged_once_and_nothing_is_raised(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    shown, played = ShownEpisodes(tmp_path / "file", "run", 1), games(1)
    shown.write(1, played)
    shown.write(2, played)
    assert caplog.text.count("could not be written") == 1


# --- A mixture that may be empty ---


def test_mixture_may_be_empty_at_the_beginning_only_if_it_is_asked_for() -> None:
    with pytest.raises(Invalid, match="cannot begin without a sample"):
        mixture(sources=trial.SOURCES)
    data = mixture(sources=trial.SOURCES, may_be_empty=True)
    data.global_batch_samples = 4
    assert data.batch(1) == []
    assert data.digest(1) == ""
    with pytest.raises(Invalid, match="a Trainer needs a sample for each step"):
        MixtureSampler(data, 4)


# --- Real ranks ---


def commands(files: RunFiles, *, weight: float | None = None) -> list[dict[str, Any]]:
    given = [
        command(at, kind="add_shards", source=source, shards=[trial.write_shard(files, source, at)])
        for at, source in ((SCORES_AT, "scores"), (PREFERENCES_AT, "preferences"))
    ]
    if weight is not None:
        given.append(command(WEIGHT_AT, kind="set_knobs", changes=[{"knob": "feedback/weight", "value": weight}]))
    return given


@pytest.mark.jobs
def test_feedback_changes_the_policy_by_its_weight_and_without_it_nothing_changes(tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {
        "plain": {"sources": False},
        "silent": {},
        "unused": {"weight": 0.0, "commands": True},
        "used": {"weight": 1.0, "commands": True},
        "turned": {"weight": 0.0, "commands": True, "turned": 2.0},
    }
    ended = {}
    for ranks, names in {1: ["used"], 2: list(arms)}.items():
        trainings = {}
        for arm, about in ((name, arms[name]) for name in names):
            files = RunFiles(tmp_path / f"{arm}-{ranks}")
            given = commands(files, weight=about.get("turned")) if about.get("commands") else []
            trainings[arm] = {"root": str(files.root), "steps": STEPS} | about | {"commands": given}
        function = "tests.ray_jobs.workloads.feedback_trial:everything"
        ended[ranks] = run_ranks(function, ranks, {"trainings": trainings}, tmp_path / f"out-{ranks}")
    (one,), two = ended[1], ended[2]
    assert two[0] == two[1]
    policies = {name: seen["policy"] for name, seen in two[0].items()}
    assert policies["plain"] == policies["silent"] == policies["unused"]
    assert len({policies[name] for name in ("plain", "used", "turned")}) == 3
    # What is learned follows from the records and their order alone.
    rewards = {name: seen["reward"] for name, seen in two[0].items()}
    assert any(rewards["used"])
    assert not any(rewards["silent"])
    assert rewards["used"] == rewards["unused"] == rewards["turned"] == one["used"]["reward"]
    settled = [entry.record for entry in read(RunFiles(tmp_path / "turned-2").journal)]
    scores, preferences, knob = (each for each in settled if isinstance(each, CommandSettled))
    assert [each.status for each in (scores, preferences)] == ["applied"] * 2
    assert [(each.after or {})["first_step"] for each in (scores, preferences)] == [SCORES_AT + 1, PREFERENCES_AT + 1]
    assert (knob.status, knob.before, knob.after) == ("applied", {"feedback/weight": 0.0}, {"feedback/weight": 2.0})
    begun = [entry.record for entry in read(RunFiles(tmp_path / "silent-2").journal)]
    (facts,) = (each.facts["mixture"] for each in begun if isinstance(each, GenerationStarted))
    assert {name: (each["records"], each["live"]) for name, each in facts.items()} == dict.fromkeys(
        trial.SOURCES, (0, True)
    )
    files = RunFiles(tmp_path / "used-2")
    assert len(list((files.work / "episodes").glob("*.jsonl"))) == STEPS // 2
    told = {each.name: each.value for each in MetricsStore(files.metrics).read(0, 10_000).points}
    assert told["feedback_loss"] > 0
    assert told["feedback_return"] != 0


def crashed(root: Path, **more: Any) -> dict[str, Any]:
    """What the last life on two ranks saw."""
    spec = {"function": "tests.ray_jobs.workloads.feedback_trial:trained", "root": str(root / "runs" / "judged")}
    files = RunFiles(Path(spec["root"]))
    for source in trial.SOURCES:
        trial.write_shard(files, source, 0)
    spec |= {"steps": 14, "every_steps": 3} | more
    (answer,) = run_crashes([spec], 2, root / "out")
    assert answer["generations"] == len(more.get("kills", [])) + 1
    assert answer["ranks"][0] == answer["ranks"][1]
    return dict(answer["ranks"][0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_feedback_comes_it_ends_as_one_that_was_not(tmp_path: Path) -> None:
    given = commands(RunFiles(tmp_path / "shards"), weight=3.0)
    ended = {}
    for name, kills in {"whole": [], "parts": [[1, 4], [0, 8]]}.items():
        commands(RunFiles(tmp_path / name / "runs" / "judged"))
        ended[name] = crashed(tmp_path / name, commands=given, kills=kills)
    assert ended["parts"] == ended["whole"]
    assert any(ended["whole"]["reward"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_branch_has_the_feedback_of_its_own_history_and_a_replay_is_identical(tmp_path: Path) -> None:
    root, other = tmp_path / "source", tmp_path / "again"
    source, files = (RunFiles(each / "runs" / "judged") for each in (root, other))
    add = {
        name: {"kind": "add_shards", "source": name, "shards": [trial.write_shard(source, name, 0)]}
        for name in trial.SOURCES
    }
    weight = {"kind": "set_knobs", "changes": [{"knob": "feedback/weight", "value": 3.0}]}
    asked = [
        [2, add["scores"]],
        [7, add["preferences"]],
        [9, {"kind": "rollback", "checkpoint": "step-00000006-g1", "first": [weight]}],
        [9, add["preferences"]],
    ]
    ended = crashed(root, asked=asked)
    state = fold(list(read(source.journal)))
    assert {name: each["records"] for name, each in state.data.mixture.items()} == {"scores": 12, "preferences": 12}
    applied = [each.command.intent.kind for each in state.commands.values() if each.settled]
    assert sorted(applied) == ["add_shards"] * 3 + ["rollback", "set_knobs"]
    files.root.mkdir(parents=True)
    transfer_shards(source, files)
    scheduled = recorded(list(read(source.journal)), None)
    write_origin(files, Origin(parent=Parent(kind="replay", run=source.run), scheduled=scheduled))
    assert crashed(other, every_steps=0) == ended
    verdict = judge(files, source)
    assert verdict.verdict == "identical", verdict.sentence()
