"""A recorded run is done again, rollbacks and a lost rank included, and ends bit for bit as it did."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.compare.replay_check import ReplayVerdict, _inexact, judge
from control_plane.core.model.intents import SetLearningRate, SetSchedule
from control_plane.core.model.records import NOT_EXACT, Parent
from control_plane.core.model.state import RunState, fold
from control_plane.core.rules.branch_rules import Origin, first_commands
from control_plane.core.rules.effect.plan import plan
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.transfer import transfer_checkpoint, write_origin
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from tests.core.examples import started
from tests.ray_jobs.rank.test_recovery import assert_equal_ends, training
from tests.ray_jobs.steering.test_rollback import HALVED, HELD, WEIGHT_DECAY, losses, run_of
from tests.ray_jobs.support.crashes import run_crashes
from tests.storage.checkpoint.kin import record_of

pytestmark = pytest.mark.jobs

STEPS = 20


def knob(name: str, value: Any) -> dict[str, Any]:
    return {"kind": "set_knobs", "changes": [{"knob": name, "value": value}]}


SKIP = {"kind": "skip_samples", "samples": 30}
ASKED: list[list[Any]] = [
    [2, HALVED],
    [3, knob("gradient_clipping", 0.5)],
    [5, {"kind": "set_schedule", "shape": "cosine", "end": 0.1}, knob("dropout", 0.3)],
    [7, {"kind": "pause"}, knob("betas", [0.8, 0.95]), {"kind": "resume"}],
    [9, {"kind": "evaluate"}, {"kind": "freeze", "parameters": "transformer.wpe.*"}],
    [11, {"kind": "rollback", "checkpoint": "step-00000006-g1", "first": [HELD, WEIGHT_DECAY, SKIP]}],
    [9, {"kind": "save_checkpoint", "label": "by hand"}, knob("eps", 1e-6)],
    [12, {"kind": "reset_parameters", "modules": "transformer.h.0.mlp.c_fc", "seed": 3}],
    [14, {"kind": "rollback", "branch": "main"}],
    [13, {"kind": "set_learning_rate", "value": 0.002}, SKIP],
    [15, {"kind": "unfreeze", "parameters": "transformer.wpe.*"}],
]
"""More than a dozen interventions of all kinds; a rank is killed as well."""


def again(source: Path, root: Path, until_step: int | None = None) -> RunFiles:
    """A new run beside the source that is to do the same."""
    entries = writer.read(run_of(source).journal)
    files = run_of(root)
    files.root.mkdir(parents=True)
    write_origin(files, Origin(parent=Parent(kind="replay", run="crashed"), scheduled=recorded(entries, until_step)))
    return files


def state_of(root: Path) -> RunState:
    return fold(writer.read(run_of(root).journal))


def replayed(source: Path, root: Path, **spec: Any) -> tuple[dict[str, Any], ReplayVerdict]:
    """What the ranks of a replay saw, and what is said of it."""
    given = {"steps": STEPS, "every_steps": 0, "commands": [], "digest_every": 1} | spec
    (answer,) = run_crashes([training(root, 2, [], **given)], 2, root)
    return answer, judge(run_of(root), run_of(source))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("replay") / "source"
    spec = {"steps": STEPS, "patient": True, "asked": ASKED, "commands": [], "digest_every": 1}
    (answer,) = run_crashes([training(root, 2, [[1, 8, "backward"]], **spec)], 2, root)
    return root, answer


def test_replay_of_a_run_with_rollbacks_and_a_lost_rank_is_identical(
    source: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, answer = source
    kinds = {life.command.intent.kind for life in state_of(root).commands.values() if life.status == "applied"}
    assert len(kinds) >= 11
    assert len(answer["died"]) == 1
    again(root, tmp_path / "again")
    same, verdict = replayed(root, tmp_path / "again")
    assert_equal_ends(answer, same)
    assert verdict.verdict == "identical", verdict.sentence()
    assert verdict.first is None
    assert verdict.digests > STEPS
    assert verdict.losses == len(losses(root))
    assert losses(tmp_path / "again") == losses(root)
    theirs, ours = state_of(root), state_of(tmp_path / "again")
    assert ours.tree.branches.keys() == theirs.tree.branches.keys()
    assert {uuid: life.settled.step for uuid, life in ours.commands.items() if life.settled} == {
        uuid: life.settled.step for uuid, life in theirs.commands.items() if life.settled
    } | {
        uuid: life.settled.step
        for uuid, life in ours.commands.items()
        if life.command.author == "replay" and life.settled
    }


def test_replay_of_a_journal_in_which_one_value_was_changed_differs_from_that_step_on(
    source: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, _ = source
    files = again(root, tmp_path / "changed")
    text = files.origin.read_text()
    assert text.count('"value":0.5') == 1
    files.origin.write_text(text.replace('"value":0.5', '"value":0.25'))
    _, verdict = replayed(root, tmp_path / "changed")
    changed_at = next(
        life.settled.step or 0
        for life in state_of(root).commands.values()
        if life.settled and "gradient_clipping" in life.command.describe()
    )
    assert verdict.verdict == "divergent"
    assert verdict.first is not None
    assert (verdict.first.branch, verdict.first.step) == ("main", changed_at)
    assert {rank: names[0] for rank, names in verdict.first.ranks.items()} == dict.fromkeys(
        (0, 1), "knobs/gradient_clipping"
    )


def test_replay_in_which_one_bit_of_a_live_tensor_flips_names_step_rank_and_tensor(
    source: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, _ = source
    again(root, tmp_path / "flipped", 5)
    flip = {"rank": 1, "step": 4, "name": "weights/transformer.h.0.ln_1.weight"}
    _, verdict = replayed(root, tmp_path / "flipped", flips=[flip])
    assert verdict.first is not None
    assert (verdict.first.branch, verdict.first.step) == ("main", 4)
    assert verdict.first.ranks == {1: (flip["name"],)}


def test_replay_whose_script_builds_another_model_is_told_so(
    source: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, _ = source
    again(root, tmp_path / "other", 1)
    _, verdict = replayed(root, tmp_path / "other", model_seed=6)
    assert verdict.first is not None
    assert (verdict.first.step, sorted(verdict.first.ranks)) == (0, [0, 1])
    assert all(names[0].startswith("weights/") for names in verdict.first.ranks.values())
    assert "before any step" in verdict.sentence()
    assert "initial model is different" in verdict.sentence()


@pytest.mark.slow
def test_replay_without_one_command_is_the_run_until_there_and_later_commands_set_what_they_had_set(
    source: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, _ = source
    entries, theirs = writer.read(run_of(root).journal), state_of(root)
    halved = next(life for life in theirs.commands.values() if life.command.intent.describe() == "lr x 0.5")
    assert halved.settled is not None
    planned = plan(entries, halved.command.uuid)
    files = run_of(tmp_path / "without")
    files.root.mkdir(parents=True)
    parent = Parent(kind="replay", run="crashed", without=planned.without)
    write_origin(files, Origin(parent=parent, scheduled=planned.scheduled))
    _, verdict = replayed(root, tmp_path / "without")
    assert (verdict.verdict, verdict.until_step) == ("identical", halved.settled.step)
    assert verdict.losses == halved.settled.step
    ours = state_of(tmp_path / "without")
    assert {life.status for life in ours.commands.values()} == {"applied"}
    assert ours.tree.branches.keys() == theirs.tree.branches.keys()
    rewritten = 0
    for uuid, life in ours.commands.items():
        recorded_life = theirs.commands.get(uuid)
        if recorded_life is None or not life.command.intent.sets_knobs or not life.settled or not recorded_life.settled:
            continue
        rewritten += life.command != recorded_life.command
        assert life.settled.step == recorded_life.settled.step
        if isinstance(life.command.intent, SetLearningRate | SetSchedule):
            assert (life.settled.after or {})["lr"] == (recorded_life.settled.after or {})["lr"]
        else:
            assert life.settled.after == recorded_life.settled.after
    assert rewritten or any(each.becomes for each in planned.rewritten)
    assert losses(tmp_path / "without") != losses(root)


def test_verdict_names_what_the_run_said_is_not_exact() -> None:
    reason = "random numbers from train_dataset.rng"
    entry: Any = SimpleNamespace(record=started(facts={NOT_EXACT: [reason]}))
    assert _inexact([entry], [entry]) == (f"not exact after a failure: {reason}",)


def test_replay_until_a_step_stops_there(source: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, _ = source
    again(root, tmp_path / "until", 5)
    answer, verdict = replayed(root, tmp_path / "until")
    assert answer["ranks"][0]["step"] == 5
    assert (verdict.verdict, verdict.losses) == ("identical", 5)


def test_fork_goes_on_as_a_branch_with_the_same_changes_does(
    source: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A fork from the checkpoint, and a rollback to it, with the same change: the same losses."""
    root, _ = source
    parent, forked = run_of(root), run_of(tmp_path / "fork")
    forked.root.mkdir(parents=True)
    (base,) = [life for life in state_of(root).commands.values() if "step-00000006-g1" in life.command.describe()]
    origin = Origin(
        parent=Parent(kind="fork", run="source", checkpoint="step-00000006-g1", step=6),
        checkpoint=transfer_checkpoint(parent, record_of(parent, "step-00000006-g1"), forked),
        scheduled=tuple(first_commands(base.command, 6)),
    )
    write_origin(forked, origin)
    replayed(root, tmp_path / "fork", steps=10)
    mine, theirs = losses(tmp_path / "fork"), losses(root)
    assert min(step for _, step in mine) == 7
    for step in (7, 8):  # until the branch was given other commands
        assert mine["main", step] == theirs["branch-2", step]
    assert state_of(tmp_path / "fork").parent == origin.parent
    assert (parent.checkpoints / "step-00000006-g1" / "manifest.json").is_file()
