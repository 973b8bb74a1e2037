"""Loops of the user's own on real ranks: plain PyTorch, a DeepSpeed engine, and a Trainer with knobs of its own."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.records import (
    CheckpointCommitted,
    CommandAccepted,
    CommandSettled,
    GenerationEnded,
    GenerationStarted,
    StateDigested,
)
from control_plane.core.rules.digests import compare
from control_plane.storage.digest_files import named
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.ray_jobs.rank.test_steering import command
from tests.ray_jobs.support.ranks import run_ranks

RATE_AT, WEIGHT_AT, ACTION_AT, PAUSE_AT, STUCK_AT, STOP_AT = 2, 3, 4, 5, 6, 8
LATE_RATE_AT, FAIL_AT, STEPS = 7, 8, 11
SHIPPED_AT = 2
ARMS = {"plain": False, "deepspeed": True}
SKIP_AT = 3
# Whether a scheduler halves the rate at each step, or a course lowers it from the skipped step on; and the rate of each
# step, of which a command halves those after the skipped one.
SKIPPING = {
    "skipping-with-a-course": (False, [0.25, 0.25, 0.25, 0.125, 0.09375, 0.0625, 0.03125]),
    "skipping-with-a-scheduler": (True, [0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]),
}
SHIPPED = {"layerwise_lr": ["--samples", "4", "--layers", "2"], "policy_gradient": ["--games", "4"]}


def change(knob: str, value: float) -> dict[str, Any]:
    return {"knob": knob, "value": value}


def steering() -> list[dict[str, Any]]:
    return [
        command(RATE_AT, kind="set_learning_rate", factor=0.5, group="head"),
        command(WEIGHT_AT, kind="set_knobs", changes=[change("loss/weight", 2.0)]),
        command(ACTION_AT, kind="run_action", name="reshuffle", arguments={"seed": 3}),
        command(ACTION_AT, kind="run_action", name="reshuffle", arguments={"seed": "three"}),
        command(ACTION_AT, kind="run_action", name="rewind"),
        command(WEIGHT_AT, kind="save_checkpoint", label="kept"),
        command(PAUSE_AT, kind="pause"),
        command(STUCK_AT, kind="set_knobs", changes=[change("loss/weight", 4.0), change("stuck", 2.0)]),
        command(STOP_AT, kind="stop"),
    ]


def losing() -> list[dict[str, Any]]:
    return [
        command(WEIGHT_AT, kind="set_knobs", changes=[change("loss/weight", 2.0)]),
        command(ACTION_AT, kind="run_action", name="reshuffle", arguments={"seed": 3}),
        command(LATE_RATE_AT, kind="set_learning_rate", factor=0.5, group="head"),
    ]


def trials(folder: Path) -> dict[str, Any]:
    every: dict[str, Any] = {}
    at = {"weight_at": WEIGHT_AT, "action_at": ACTION_AT}
    for arm, engine in ARMS.items():
        one = {"engine": engine, "steps": STEPS}
        root = str(folder / f"{arm}-steered")
        every[f"{arm}-steered"] = one | {"trial": "steered", "root": root, "commands": steering()}
        root = str(folder / f"{arm}-restored")
        every[f"{arm}-restored"] = one | {"trial": "restored", "root": root, "fail_at": FAIL_AT, "commands": losing()}
        every[f"{arm}-by-hand"] = one | at | {"trial": "by_hand", "steps": STOP_AT, "rate_at": RATE_AT}
        every[f"{arm}-by-hand-to-the-end"] = one | at | {"trial": "by_hand", "rate_at": LATE_RATE_AT}
    own = [
        command(2, kind="set_knobs", changes=[change("loss/weight", 3.0)]),
        command(2, kind="run_action", name="count", arguments={"by": 2}),
        command(3, kind="run_action", name="count"),
    ]
    every["trainer"] = {"trial": "trainer", "root": str(folder / "trainer"), "steps": 5, "commands": own}
    for name, (scheduled, _) in SKIPPING.items():
        skipping = {"trial": "skipping", "stage": 1, "scheduler": scheduled, "skip_at": SKIP_AT, "steps": SKIP_AT + 4}
        every[name] = skipping | {"root": str(folder / name), "commands": around_a_skipped_step(scheduled)}
    for script, arguments in SHIPPED.items():
        root = str(folder / script)
        shipped = {"trial": "shipped", "root": root, "script": script, "arguments": [*arguments, "--steps", "3"]}
        every[script] = shipped | {"commands": shipped_commands(script)}
    return every | steered_shipped(folder)


def steered_shipped(folder: Path) -> dict[str, Any]:
    """Both shipped loops: steered, with the script doing the same by itself, and left alone."""
    asked = {
        "layers": command(SHIPPED_AT, kind="set_learning_rate", factor=0.5, group="layer0"),
        "game": command(SHIPPED_AT, kind="set_knobs", changes=[change("reward/wall", -2.0)]),
    }
    every: dict[str, Any] = {}
    for loop, steering in asked.items():
        one = {"trial": loop, "steps": 4}
        every[f"{loop}-steered"] = one | {"root": str(folder / f"{loop}-steered"), "commands": [steering]}
        every[f"{loop}-by-hand"] = one | {"by_hand_at": SHIPPED_AT}
        every[f"{loop}-alone"] = one
    return every


def around_a_skipped_step(scheduled: bool) -> list[dict[str, Any]]:
    course = command(SKIP_AT - 1, kind="set_schedule", shape="linear", over_steps=4)
    return [
        *([] if scheduled else [course]),
        command(SKIP_AT, kind="set_learning_rate", factor=0.5),
        command(SKIP_AT + 1, kind="set_knobs", changes=[change("momentum", 0.25)]),
    ]


def shipped_commands(script: str) -> list[dict[str, Any]]:
    if script == "layerwise_lr":
        return [command(1, kind="set_learning_rate", factor=0.5, group="layer0")]
    return [
        command(1, kind="set_knobs", changes=[change("reward/wall", -2.0)]),
        command(1, kind="run_action", name="move_goal", arguments={"row": 0, "column": 4}),
        command(1, kind="run_action", name="move_goal", arguments={"row": 0, "column": 5}),
    ]


class Ranks:
    """What every rank saw of every trial, and what the journals say."""

    def __init__(self, folder: Path, seen: list[dict[str, Any]]) -> None:
        self._folder, self._seen = folder, seen

    def saw(self, trial: str) -> list[Any]:
        return [rank[trial] for rank in self._seen]

    def files(self, trial: str) -> RunFiles:
        return RunFiles(self._folder / trial)

    def records(self, trial: str, kind: type) -> list[Any]:
        return [entry.record for entry in read(self.files(trial).journal) if isinstance(entry.record, kind)]

    def settled(self, trial: str, what: str) -> list[CommandSettled]:
        """The outcomes of the commands of one kind, in the order of acceptance."""
        outcomes = {outcome.uuid: outcome for outcome in self.records(trial, CommandSettled)}
        asked = [record.command for record in self.records(trial, CommandAccepted)]
        return [outcomes[each.uuid] for each in asked if each.intent.kind == what]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("loops")
    seen = run_ranks("tests.ray_jobs.trials.loop_trials:everything", 2, {"trainings": trials(folder)}, folder / "ranks")
    return Ranks(folder, seen)


on_ranks = pytest.mark.jobs
each_arm = pytest.mark.parametrize("arm", ARMS)


@on_ranks
@each_arm
def test_the_start_tells_groups_knobs_and_actions(ranks: Ranks, arm: str) -> None:
    (started,) = ranks.records(f"{arm}-steered", GenerationStarted)
    assert (started.world_size, started.step, started.total_steps) == (2, 0, STEPS)
    assert started.knobs["groups"] == ["body", "head"]
    assert started.knobs["loss/weight"] == 1.0
    assert started.facts["zero_stage"] == (2 if ARMS[arm] else None)
    assert started.facts["knobs"]["loss/weight"]["most"] == 8.0
    assert started.facts["actions"]["reshuffle"]["arguments"] == {"seed": {"type": "int", "default": 0}}


@on_ranks
@each_arm
def test_one_groups_rate_is_set_at_one_step_on_all_ranks(ranks: Ranks, arm: str) -> None:
    (outcome,) = ranks.settled(f"{arm}-steered", "set_learning_rate")
    assert (outcome.status, outcome.step) == ("applied", RATE_AT)
    first, second = (rank["used"] for rank in ranks.saw(f"{arm}-steered"))
    assert first == second
    assert first[str(RATE_AT)][1] == 0.125 * (1 - (RATE_AT - 1) / 64)
    assert first[str(RATE_AT + 1)][1] == 0.125 * (1 - RATE_AT / 64) / 2
    assert first[str(RATE_AT + 2)] == [0.25 * (1 - (RATE_AT + 1) / 64), 0.125 * (1 - (RATE_AT + 1) / 64) / 2]


@on_ranks
@each_arm
def test_a_knob_of_the_scripts_own_is_set_and_read_back_from_every_rank(ranks: Ranks, arm: str) -> None:
    outcome, _ = ranks.settled(f"{arm}-steered", "set_knobs")
    assert (outcome.status, outcome.step) == ("applied", WEIGHT_AT)
    assert [outcome.before, *outcome.ranks] == [{"loss/weight": 1.0}, {"loss/weight": 2.0}, {"loss/weight": 2.0}]


@on_ranks
@each_arm
def test_a_knob_that_does_not_take_its_value_fails_the_command_and_all_of_it_is_undone(ranks: Ranks, arm: str) -> None:
    _, outcome = ranks.settled(f"{arm}-steered", "set_knobs")
    assert (outcome.status, outcome.step) == ("failed", STUCK_AT)
    assert "stuck was set to 2.0 and reads 1.0" in str(outcome.reason)
    assert [rank["weight"] for rank in ranks.saw(f"{arm}-steered")] == [2.0, 2.0]


@on_ranks
@each_arm
def test_an_action_is_carried_out_on_every_rank(ranks: Ranks, arm: str) -> None:
    outcome, *_ = ranks.settled(f"{arm}-steered", "run_action")
    assert (outcome.status, outcome.step, outcome.ranks) == ("applied", ACTION_AT, ({"seed": 3}, {"seed": 3}))
    assert [rank["seed"] for rank in ranks.saw(f"{arm}-steered")] == [3, 3]


@on_ranks
@each_arm
def test_a_wrong_argument_and_an_unknown_action_are_rejected_by_vote(ranks: Ranks, arm: str) -> None:
    _, wrong, unknown = ranks.settled(f"{arm}-steered", "run_action")
    assert (wrong.status, unknown.status) == ("rejected", "rejected")
    assert wrong.reason == "the argument 'seed' of reshuffle is 'three', but takes a whole number"
    assert unknown.reason == "there is no action 'rewind'; this run has reshuffle"


@on_ranks
@each_arm
def test_a_paused_loop_goes_on_when_it_is_resumed(ranks: Ranks, arm: str) -> None:
    (paused,), (resumed,) = (ranks.settled(f"{arm}-steered", kind) for kind in ("pause", "resume"))
    assert (paused.status, paused.step) == (resumed.status, resumed.step) == ("applied", PAUSE_AT)


@on_ranks
@each_arm
def test_a_stop_ends_the_loop_and_is_told(ranks: Ranks, arm: str) -> None:
    (ended,) = ranks.records(f"{arm}-steered", GenerationEnded)
    assert (ended.ending, ended.step) == ("stopped", STOP_AT)
    assert [rank["step"] for rank in ranks.saw(f"{arm}-steered")] == [STOP_AT, STOP_AT]


@on_ranks
@each_arm
def test_what_was_steered_ends_as_if_the_script_had_done_it_by_itself(ranks: Ranks, arm: str) -> None:
    steered = {rank["weights"] for rank in ranks.saw(f"{arm}-steered")}
    alone = {rank["weights"] for rank in ranks.saw(f"{arm}-by-hand")}
    assert len(steered) == 1
    assert steered == alone
    assert steered.isdisjoint(rank["weights"] for rank in ranks.saw(f"{arm}-by-hand-to-the-end"))


@on_ranks
@each_arm
def test_measurements_of_every_step_come_with_the_rate_that_it_used(ranks: Ranks, arm: str) -> None:
    points = MetricsStore(ranks.files(f"{arm}-steered").metrics).read(0, 10_000, ["loss", "lr"]).points
    told = {(point.name, point.step): point.value for point in points}
    used = ranks.saw(f"{arm}-steered")[0]["used"]
    assert all(told["loss", step] > 0 for step in range(1, STOP_AT + 1))
    assert [told["lr", step] for step in range(1, STOP_AT + 1)] == [used[str(s)][0] for s in range(1, STOP_AT + 1)]


@on_ranks
@each_arm
def test_a_checkpoint_is_saved_when_asked(ranks: Ranks, arm: str) -> None:
    (outcome,) = ranks.settled(f"{arm}-steered", "save_checkpoint")
    (saved,) = ranks.records(f"{arm}-steered", CheckpointCommitted)
    assert (outcome.status, outcome.step) == ("applied", WEIGHT_AT)
    assert (saved.step, saved.label) == (WEIGHT_AT, "kept")


@on_ranks
@each_arm
def test_a_lost_loop_goes_on_from_its_checkpoint_and_ends_bit_for_bit_as_without_the_loss(
    ranks: Ranks, arm: str
) -> None:
    saved = [record.step for record in ranks.records(f"{arm}-restored", CheckpointCommitted)]
    first, second = ranks.records(f"{arm}-restored", GenerationStarted)
    again = [rank[0] for rank in ranks.saw(f"{arm}-restored")]
    assert saved[:2] == [3, 6]
    assert (first.step, second.step) == (0, 6)
    assert second.knobs["loss/weight"] == 2.0
    assert [(rank["began_at"], rank["step"], rank["seed"]) for rank in again] == [(6, STEPS, 3)] * 2
    assert {rank["weights"] for rank in again} == {rank["weights"] for rank in ranks.saw(f"{arm}-by-hand-to-the-end")}


@on_ranks
@each_arm
def test_steps_that_are_made_again_after_a_loss_have_the_digests_that_they_had(ranks: Ranks, arm: str) -> None:
    told = ranks.records(f"{arm}-restored", StateDigested)
    assert [each.step for each in told] == [*range(FAIL_AT + 1), *range(7, STEPS + 1)]
    found = compare(told[: FAIL_AT + 1], told[FAIL_AT + 1 :])
    files = ranks.files(f"{arm}-restored")
    assert found.first is None, named(found.first, files, files)
    assert found.steps == (7, 8)
    assert len({root for each in told[FAIL_AT:] for root in each.ranks}) == 2 * (STEPS - 6)


@on_ranks
@each_arm
def test_a_loop_that_raises_is_told_as_failed(ranks: Ranks, arm: str) -> None:
    failed, finished = ranks.records(f"{arm}-restored", GenerationEnded)
    assert (failed.ending, failed.reason) == ("failed", "ZeroDivisionError: as planned")
    assert (finished.ending, finished.step) == ("finished", STEPS)


@on_ranks
def test_a_trainer_takes_knobs_and_actions_of_the_scripts_own(ranks: Ranks) -> None:
    (knob,), (action, refused) = (ranks.settled("trainer", kind) for kind in ("set_knobs", "run_action"))
    assert (knob.status, knob.after) == ("applied", {"loss/weight": 3.0})
    assert (action.status, action.after) == ("applied", {"result": 2})
    assert (refused.status, refused.reason) == ("rejected", "count needs the argument 'by'; it is count(by: int)")
    assert ranks.saw("trainer") == [{"weight": 3.0, "calls": 2}] * 2


@on_ranks
def test_a_layer_of_the_shipped_loop_is_steered_by_its_name(ranks: Ranks) -> None:
    (outcome,) = ranks.settled("layerwise_lr", "set_learning_rate")
    assert outcome.status == "applied"
    assert outcome.after["groups"] == ["embedding", "layer0", "layer1", "head"]
    halved = [after / before for before, after in zip(outcome.before["lr"], outcome.after["lr"], strict=True)]
    assert halved == [1.0, 0.5, 1.0, 1.0]


@on_ranks
def test_rewards_and_the_goal_of_the_shipped_game_are_steered(ranks: Ranks) -> None:
    (reward,) = ranks.settled("policy_gradient", "set_knobs")
    moved, outside = ranks.settled("policy_gradient", "run_action")
    assert (reward.status, reward.after) == ("applied", {"reward/wall": -2.0})
    assert (moved.status, moved.after) == ("applied", {"row": 0, "column": 4})
    assert outside.status == "failed"
    assert "must be from 0 to 4" in str(outside.reason)
    (ended,) = ranks.records("policy_gradient", GenerationEnded)
    assert (ended.ending, ended.step) == ("finished", 3)


@on_ranks
def test_a_steered_layer_of_the_shipped_loop_trains_as_if_its_script_had_changed_the_rate(ranks: Ranks) -> None:
    steered, by_hand, alone = (ranks.saw(f"layers-{arm}") for arm in ("steered", "by-hand", "alone"))
    assert [outcome.status for outcome in ranks.settled("layers-steered", "set_learning_rate")] == ["applied"]
    assert steered[0] == steered[1] == by_hand[0] == by_hand[1]
    assert list(steered[0]) == ["embedding", "layer0", "layer1", "head"]
    assert steered[0]["layer0"] != alone[0]["layer0"]


@on_ranks
def test_a_steered_reward_of_the_shipped_game_is_what_it_learns_from(ranks: Ranks) -> None:
    steered, by_hand, alone = (ranks.saw(f"game-{arm}") for arm in ("steered", "by-hand", "alone"))
    assert [outcome.status for outcome in ranks.settled("game-steered", "set_knobs")] == ["applied"]
    assert steered == by_hand
    assert steered[0]["policy"] == steered[1]["policy"] != alone[0]["policy"]
    for with_it, without in zip(steered, alone, strict=True):
        assert with_it["worth"][:SHIPPED_AT] == without["worth"][:SHIPPED_AT]
        assert with_it["worth"][SHIPPED_AT] < without["worth"][SHIPPED_AT]  # the same moves, and walls are worth less


@on_ranks
@pytest.mark.parametrize("trial", SKIPPING)
def test_a_command_at_a_step_that_deepspeed_skipped_says_so_and_a_later_one_counts_it(ranks: Ranks, trial: str) -> None:
    (rate,), (momentum,) = ranks.settled(trial, "set_learning_rate"), ranks.settled(trial, "set_knobs")
    assert (rate.status, rate.step, rate.after["lr"]) == ("applied", SKIP_AT, [rate.before["lr"][0] / 2])
    assert (rate.after["skipped_steps"], rate.after["step_was_skipped"]) == (1, True)
    assert momentum.after == {"momentum": [0.25], "skipped_steps": 1}
    measured = MetricsStore(ranks.files(trial).metrics).read(0, 10_000, ["skipped_steps"]).points
    assert {point.step for point in measured} == set(range(SKIP_AT, SKIP_AT + 5))


@on_ranks
@pytest.mark.parametrize("trial", SKIPPING)
def test_a_skipped_step_moves_neither_weights_nor_schedule(ranks: Ranks, trial: str) -> None:
    for rank in ranks.saw(trial):
        assert list(rank["rates"].values()) == SKIPPING[trial][1]
        before, skipped, after = (rank["weights"][str(step)] for step in (SKIP_AT - 1, SKIP_AT, SKIP_AT + 1))
        assert before == skipped != after
