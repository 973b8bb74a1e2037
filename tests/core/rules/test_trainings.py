"""Several trainings in one script: each has its own checkpoints, commands and branches, and is known again."""

import pytest

from control_plane.core.model.branch_tree import candidates
from control_plane.core.model.errors import Refused
from control_plane.core.model.records import BranchStarted, GenerationEnded, Record
from control_plane.core.model.state import RunState
from control_plane.core.rules.branch_rules import stands_on
from control_plane.core.rules.crash_loop import reason_to_give_up
from control_plane.core.rules.recovery import replay_after, resume_point
from control_plane.core.rules.trainings import which_training
from tests.core.examples import accepted, committed, lost, running, settled, started, uuid

LR = "set_learning_rate"


def ended(generation: int, step: int = 20) -> GenerationEnded:
    return GenerationEnded(generation=generation, ending="finished", step=step)


def second(*records: Record, steps: tuple[int, ...] = (10,)) -> RunState:
    """A first training of 20 steps, a second one that has saved after these steps, and then these records."""
    saved = [committed(step, 2, training=2) for step in steps]
    first = (committed(10), committed(20), ended(1))
    return running(*first, started(901, 2, training=2, training_sha256="two"), *saved, *records)


def names(state: RunState, training: int) -> list[str]:
    return [each.checkpoint for each in resume_point(state, training).candidates]


def test_each_training_goes_on_from_its_own_checkpoints() -> None:
    state = second()
    assert names(state, 1) == ["step-20-g1", "step-10-g1"]
    assert names(state, 2) == ["step-10-g2"]
    assert names(state, 3) == []


def test_going_through_the_first_training_again_leaves_the_second_ones_checkpoints_alone() -> None:
    state = second(lost(15, 2), started(902, 3, step=10, checkpoint="step-10-g1"))
    assert names(state, 1) == ["step-10-g1"]
    assert names(state, 2) == ["step-10-g2"]


def test_commands_are_repeated_in_the_training_that_they_were_of() -> None:
    change = [accepted(1, LR, factor=0.5), settled(1, step=15), committed(10), committed(20), ended(1)]
    state = running(*change, started(901, 2, training=2), accepted(2, LR, factor=0.5), settled(2, step=5, generation=2))
    repeats = [
        [(each.command.uuid.int, each.step) for each in replay_after(resume_point(state, each).decided, ()).repeats]
        for each in (1, 2)
    ]
    assert repeats == [[(1, 15)], [(2, 5)]]


def test_stop_in_one_training_stops_those_that_come_after_it_and_no_earlier_one() -> None:
    state = second(accepted(1, "stop"), settled(1, step=12, generation=2))
    assert [resume_point(state, each).stopped for each in (1, 2, 3)] == [False, False, True]


def branched(training: int) -> RunState:
    """A branch from step 10 of one of two trainings."""
    name = f"step-10-g{training}"
    branch = BranchStarted(branch="b", parent="main", checkpoint=name, step=10, rollback=uuid(99))
    return second(branch, steps=(10, 18))


def test_branch_of_the_second_training_has_all_of_the_first_one() -> None:
    state = branched(2)
    assert (names(state, 1), names(state, 2)) == (["step-20-g1", "step-10-g1"], ["step-10-g2"])


def test_branch_of_the_first_training_has_nothing_of_the_second_one() -> None:
    state = branched(1)
    assert (names(state, 1), names(state, 2)) == (["step-10-g1"], [])


def test_newest_of_each_training_is_kept_and_the_last_trainings_is_the_best() -> None:
    state = second()
    assert {"step-20-g1", "step-10-g2"} <= stands_on(state)
    assert candidates(state.tree, state.checkpoints, "main")[0].checkpoint == "step-10-g2"


def test_steps_of_a_later_training_are_progress() -> None:
    losses = [lost(20, 1), started(901, 2, training=2)]
    for number, step in enumerate((1, 2, 3), start=2):
        losses += [lost(step, number), started(900 + number, number + 1, training=2)]
    assert reason_to_give_up(running(*losses)) is None


# Which training it is


def known(*fingerprints: str, unfinished: int = 0) -> RunState:
    records: list[Record] = []
    for number, each in enumerate(fingerprints, start=1):
        records.append(started(900 + number, number + 1, training=number, training_sha256=each))
        records += [] if number == unfinished else [ended(number + 1)]
    return running(*records)


@pytest.mark.parametrize(
    ("state", "call", "fingerprint", "training"),
    [
        (known("a"), 2, "b", 2),
        (known("a", "b"), 1, "a", 1),
        (known("a", "a"), 2, "a", 2),
        (known("a", "b", unfinished=2), 1, "b", 2),
        (known("a", "b"), 1, "c", 3),
        (known("a", unfinished=1), 1, "c", 1),
        (known("a", "b"), 2, "", 2),
    ],
    ids=["new", "same", "same data twice", "left out", "all left out", "other data", "unknown"],
)
def test_training_is_the_one_in_its_place_unless_model_and_data_are_a_later_ones(
    state: RunState, call: int, fingerprint: str, training: int
) -> None:
    assert which_training(state, call, fingerprint)[0] == training


def test_training_that_nobody_can_tell_is_refused() -> None:
    with pytest.raises(Refused, match="it is unknown which one to resume"):
        which_training(known("a", "b", unfinished=2), 1, "c")
