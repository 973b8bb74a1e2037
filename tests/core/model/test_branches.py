"""Branches: lineage, what belongs to a history, from where it can go on, and what new trainers are told of it."""

import pytest

from control_plane.core.model.branch_tree import belongs, candidates, free_name, lineage
from control_plane.core.model.records import BranchResumed, BranchStarted, CheckpointDiscarded, Record
from control_plane.core.model.state import RunState
from control_plane.core.rules.recovery import Replay, replay_after, resume_point
from tests.core.examples import accepted, committed, lost, running, settled, started, uuid

LR = "set_learning_rate"


def began(branch: str, step: int, parent: str = "main", generation: int = 1, rollback: int = 99) -> BranchStarted:
    """A branch leaves its parent at the checkpoint that this generation saved after this step."""
    name = f"step-{step}-g{generation}"
    return BranchStarted(branch=branch, parent=parent, checkpoint=name, step=step, rollback=uuid(rollback))


def back_to(branch: str) -> BranchResumed:
    return BranchResumed(branch=branch, rollback=uuid(98))


def changed(number: int, step: int, generation: int = 1, kind: str = LR) -> list[Record]:
    """Command `number` took effect after this step."""
    body = {"factor": 0.5} if kind == LR else {}
    return [accepted(number, kind, **body), settled(number, step=step, generation=generation)]


def names(state: RunState, head: str | None = None) -> list[str]:
    return [each.checkpoint for each in candidates(state.tree, state.checkpoints, head or state.tree.head)]


def history(state: RunState) -> list[int]:
    """The commands that are of the head's history, in order."""
    return [each.command.uuid.int for each in resume_point(state).decided if not each.elsewhere]


def replayed(state: RunState, *contained: int) -> Replay:
    point = resume_point(state)
    return replay_after(point.decided, {str(uuid(number)) for number in contained}, point.scheduled)


def repeats(replay: Replay) -> list[tuple[int, int]]:
    return [(each.command.uuid.int, each.step) for each in replay.repeats]


# Lineage


def test_lineage_goes_from_the_branch_to_the_root() -> None:
    state = running(
        committed(10),
        began("b", 10),
        started(901, 2, step=10, branch="b"),
        committed(20, 2, branch="b"),
        began("c", 20, parent="b", generation=2),
    )
    stretches = list(lineage(state.tree, state.checkpoints, "c"))
    assert [each.branch for each in stretches] == ["c", "b", "main"]
    assert [[cut.step for cut in each.cuts] for each in stretches] == [[], [20], [10, 20]]


def test_lineage_does_not_need_the_checkpoint_of_a_branch() -> None:
    """A replay may hear of a branch before it hears of the checkpoint."""
    state = running(*changed(1, 5), began("b", 10))
    assert history(state) == [1]
    assert names(state) == []


@pytest.mark.parametrize(
    ("taken", "name"),
    [([], "branch-2"), (["main", "branch-2"], "branch-3"), (["main", "x", "branch-3", "branch-2"], "branch-4")],
)
def test_free_name_is_the_first_number_that_is_not_taken(taken: list[str], name: str) -> None:
    assert free_name(taken) == name


# What belongs to a history


def test_what_the_parent_did_before_the_checkpoint_belongs_and_what_it_did_after_it_does_not() -> None:
    state = running(*changed(1, 5), *changed(2, 15), committed(10), began("b", 10))
    assert history(state) == [1]
    assert history(running(*changed(1, 5), *changed(2, 15), committed(10))) == [1, 2]


@pytest.mark.parametrize("told_before", [True, False])
def test_of_the_step_of_the_checkpoint_belongs_what_was_decided_before_the_save(told_before: bool) -> None:
    """Whichever of the two the journal was told first."""
    first, second = changed(1, 10), changed(2, 10)
    saved = committed(10, decided_here=(uuid(1),))
    story = [*first, *second, saved] if told_before else [*first, saved, *second]
    assert history(running(*story, began("b", 10))) == [1]


def test_what_the_parent_does_later_at_earlier_steps_does_not_belong() -> None:
    state = running(
        committed(5),
        committed(10),
        began("b", 10),
        back_to("main"),
        started(901, 2, step=5),
        *changed(1, 7, generation=2),
        back_to("b"),
    )
    assert history(state) == []
    assert not belongs(list(lineage(state.tree, state.checkpoints, "b")), "main", 7, 9, uuid(1))


def test_what_a_branch_did_not_reach_before_another_left_it_does_not_belong_to_that_one() -> None:
    """b began at 5, as the checkpoint of step 10 did not verify; c left it at 8, before it had repeated command 1."""
    state = running(
        committed(5),
        *changed(1, 9),
        committed(10),
        began("b", 10),
        started(901, 2, step=5, branch="b"),
        committed(8, 2, branch="b"),
        began("c", 8, parent="b", generation=2),
    )
    assert history(state) == []
    assert names(state) == ["step-8-g2", "step-5-g1"]


def test_what_an_earlier_generation_decided_at_the_step_of_the_checkpoint_belongs() -> None:
    saved = committed(10, 2, decided_here=(uuid(1), uuid(2)))
    state = running(
        *changed(1, 10),
        lost(11),
        started(901, 2, step=10),
        *changed(2, 10, generation=2),
        saved,
        began("b", 10, generation=2),
    )
    assert history(state) == [1, 2]


def test_what_a_branch_did_belongs_to_it_again_when_somebody_goes_on_with_it() -> None:
    state = running(committed(10), *changed(1, 15), began("b", 10), started(901, 2, step=10, branch="b"))
    assert history(state) == []
    went_on = [*changed(2, 12, generation=2), back_to("main")]
    state = running(committed(10), *changed(1, 15), began("b", 10), started(901, 2, step=10, branch="b"), *went_on)
    assert history(state) == [1]


def test_what_is_told_after_the_rollback_is_of_the_branch_of_its_generation() -> None:
    """A save that was asked for may end when the run is on its way to another branch."""
    state = running(
        accepted(1, "save_checkpoint"),
        committed(10),
        began("b", 10),
        settled(1, step=12),
        started(901, 2, step=10, branch="b"),
    )
    assert state.commands[uuid(1)].branch == "main"
    assert history(state) == []


def test_late_pause_of_the_branch_before_does_not_hold_the_next() -> None:
    state = running(accepted(1, "pause"), accepted(2, LR, factor=0.5), committed(10), began("b", 10), settled(1))
    assert not state.paused
    assert state.status == "switching"
    assert not replayed(state, 1).paused


# From where it can go on


def test_candidates_of_a_branch_are_its_own_then_its_base_then_what_the_parent_saved_before() -> None:
    state = running(
        committed(5),
        committed(10),
        committed(15),
        began("b", 10),
        started(901, 2, step=10, branch="b"),
        committed(12, 2, branch="b"),
        committed(14, 2, branch="b"),
    )
    assert names(state) == ["step-14-g2", "step-12-g2", "step-10-g1", "step-5-g1"]
    assert names(state, "main") == ["step-15-g1", "step-10-g1", "step-5-g1"]


def test_base_that_its_parent_has_abandoned_stays_a_candidate_of_its_branch() -> None:
    state = running(
        committed(5), committed(10), began("b", 10), back_to("main"), started(901, 2, step=5), committed(8, 2)
    )
    assert names(state) == ["step-8-g2", "step-5-g1"]
    assert names(state, "b") == ["step-10-g1", "step-5-g1"], "and what the parent saved later is none"


def test_base_is_no_candidate_any_more_when_its_branch_has_trained_from_before_it() -> None:
    state = running(committed(5), committed(10), began("b", 10), started(901, 2, step=5, branch="b"))
    assert names(state) == ["step-5-g1"]


def test_checkpoint_that_was_left_behind_before_the_base_was_saved_is_no_candidate() -> None:
    state = running(
        committed(5), committed(9), lost(9), started(901, 2, step=5), committed(10, 2), began("b", 10, generation=2)
    )
    assert names(state) == ["step-10-g2", "step-5-g1"]


def test_discarded_checkpoint_is_no_candidate() -> None:
    gone = CheckpointDiscarded(checkpoint="step-5-g1", reason="old")
    assert names(running(committed(5), committed(10), began("b", 10), gone)) == ["step-10-g1"]


# What new trainers are told


def test_pauses_and_stops_before_the_rollback_are_known_and_have_no_effect() -> None:
    state = running(*changed(1, 10, kind="pause"), committed(10, decided_here=(uuid(1),)), began("b", 10))
    for contained in ((1,), ()):
        replay = replayed(state, *contained)
        assert (replay.paused, replay.stopping, repeats(replay)) == (False, False, [])
        assert uuid(1) in replay.ledger, "or a cancel of it would be carried out"


def test_pause_on_the_branch_itself_is_repeated() -> None:
    state = running(
        committed(10),
        began("b", 10),
        started(901, 2, step=10, branch="b"),
        *changed(1, 12, generation=2, kind="pause"),
    )
    assert repeats(replayed(state)) == [(1, 12)]
    assert replayed(state, 1).paused


def test_replay_knows_what_was_decided_elsewhere_and_does_not_repeat_it() -> None:
    state = running(*changed(1, 5), *changed(2, 15), committed(10), began("b", 10))
    replay = replayed(state)
    assert repeats(replay) == [(1, 5)]
    assert replay.ledger == {uuid(2): settled(2, step=15)}


def test_resume_point_names_the_branch_and_the_record_that_took_the_run_there() -> None:
    state = running(committed(10), began("b", 10))
    point = resume_point(state)
    assert (point.branch, point.branched_seq, point.replays) == ("b", state.seq, False)
    assert [each.checkpoint for each in point.candidates] == ["step-10-g1"]
