"""Lines, where they part, and what differs since: a small tree of branches, and runs that were forked from it.

one:    main 0 -------- 20 --------- 30 ---- 40
                      | first 20           (a rate was set at 10, 20 before the save, 20 after it, and 35)
            branch-2  +--- 25 --- 50
                           | first 25
                 branch-3  +------ 60
two:    main, a fork of one's branch-2 at 50, to 70
three:  best, adopted from two at 62, to 80, beside a main of its own
"""

from typing import Any
from uuid import UUID

import pytest

from control_plane.api.messages import (
    BranchView,
    Intervention,
    MeasuredValue,
    MetricSummary,
    RunSummary,
    StepRange,
    Trajectories,
    Trajectory,
)
from control_plane.compare.comparison import SideMetrics, choose, compare, interventions, knobs_at, parse, tree
from control_plane.compare.lineage import Selection, cut, depths, line, lineage, where_they_part
from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.records import CheckpointCommitted, Parent
from tests.core import examples


def done(number: int, step: int, was: float = 0.1, now: float = 0.2, first: bool = False) -> Intervention:
    """Weight decay was changed."""
    return Intervention(
        uuid=UUID(int=number),
        step=step,
        what=f"weight_decay = {now:g}",
        author="ann",
        first=first,
        before={"weight_decay": was},
        after={"weight_decay": now},
    )


def branch(
    name: str,
    parent: str | None = None,
    step: int = 0,
    reached: int = 0,
    changes: Any = (),
    decay: float = 0.1,
    origin: Parent | None = None,
) -> Trajectory:
    """A branch with its changes; its checkpoint is called after the step."""
    view = BranchView(
        branch=name,
        parent=parent,
        step=step,
        reached_step=reached,
        checkpoint=f"step-{step}-g1" if parent else None,
        origin=origin,
    )
    return Trajectory(branch=view, knobs={"lr": [1.0], "weight_decay": decay}, interventions=tuple(changes))


def saved(step: int, *contained: int) -> CheckpointCommitted:
    """A checkpoint whose state contains these decisions of its own step."""
    return examples.committed(step, decided_here=tuple(UUID(int=number) for number in contained))


ONE = Trajectories(
    run="one",
    status="running",
    head="branch-3",
    total_steps=100,
    branches=(
        branch("main", None, 0, 40, [done(1, 10), done(2, 20, 0.2, 0.3), done(3, 20, 0.3, 0.4), done(4, 35, 0.4, 0.5)]),
        branch("branch-2", "main", 20, 50, [done(5, 20, 0.3, 0.6, first=True), done(6, 45, 0.6, 0.7)], 0.7),
        branch("branch-3", "branch-2", 25, 60, [], 0.6),
    ),
    checkpoints=(saved(20, 2), saved(25)),
)
FORKED = Parent(kind="fork", run="one", branch="branch-2", checkpoint="step-50-g1", step=50)
TWO = Trajectories(
    run="two",
    status="running",
    head="main",
    total_steps=100,
    parent=FORKED,
    branches=(branch("main", None, 0, 70, [done(7, 55), done(8, 62)], origin=FORKED),),
    checkpoints=(saved(62, 8),),
)
ADOPTED = Parent(kind="adopted", run="two", branch="main", checkpoint="step-62-g1", step=62)
THREE = ONE.model_copy(
    update={
        "run": "three",
        "parent": None,
        "branches": (branch("main", None, 0, 40), branch("best", None, 62, 80, [done(9, 70)], origin=ADOPTED)),
    }
)
RUNS = {"one": ONE, "two": TWO, "three": THREE}


def chosen(text: str) -> Selection:
    """What the text means among these runs."""
    asked = parse(text)
    return choose(asked, RUNS[asked.run])


def stretches(text: str) -> list[tuple[str, str, int, int | None]]:
    """The line that leads to it."""
    found = line(chosen(text), RUNS)
    return [(each.run, each.stretch.branch, each.stretch.first, each.stretch.last) for each in found]


def numbers(text: str) -> list[int]:
    """The commands on the line that leads to it."""
    return [each.uuid.int for each in interventions(chosen(text), RUNS).values()]


def test_lineage_leads_from_the_root_to_the_branch() -> None:
    views = [each.branch for each in ONE.branches]
    assert lineage(views, "branch-3") == (
        StepRange(branch="main", first=0, last=20),
        StepRange(branch="branch-2", first=20, last=25),
        StepRange(branch="branch-3", first=25, last=None),
    )
    assert lineage(views, "main") == (StepRange(branch="main"),)
    assert depths(views) == {"main": 0, "branch-2": 1, "branch-3": 2}


def test_line_that_is_cut_before_its_branch_began_leaves_that_out() -> None:
    assert stretches("one@22") == [("one", "main", 0, 20), ("one", "branch-2", 20, 22)]
    assert stretches("one:branch-2@7") == [("one", "main", 0, 7)]


def test_line_of_a_fork_begins_with_its_parent_s() -> None:
    assert stretches("two") == [("one", "main", 0, 20), ("one", "branch-2", 20, 50), ("two", "main", 50, 70)]
    assert stretches("three:best") == [
        ("one", "main", 0, 20),
        ("one", "branch-2", 20, 50),
        ("two", "main", 50, 62),
        ("three", "best", 62, 80),
    ]
    alone = line(chosen("two"), {"two": TWO})
    assert [(each.run, each.stretch.first) for each in alone] == [("two", 50)]


@pytest.mark.parametrize(
    ("sides", "step", "branch"),
    [
        (("one", "one:main"), 20, "main"),
        (("one", "one:branch-2"), 25, "branch-2"),
        (("one", "one:branch-2", "one:main"), 20, "main"),
        (("one", "one"), 60, "branch-3"),
        (("one:main@30", "one:main"), 30, "main"),
        (("one", "two"), 25, "branch-2"),
        (("two", "one:branch-2"), 50, "branch-2"),
        (("two@60", "two"), 60, "main"),
        (("two", "three:best"), 62, "main"),
        (("one", "three:best"), 25, "branch-2"),
        (("three:main", "three:best"), 0, None),
    ],
)
def test_lines_part_at_the_last_step_that_they_have_in_common(sides: Any, step: int, branch: str) -> None:
    found = where_they_part([line(chosen(side), RUNS) for side in sides])
    assert (found.step, found.branch) == (step, branch)


def test_lines_of_strangers_part_before_the_first_step() -> None:
    stranger = ONE.model_copy(update={"run": "three"})
    lines = [line(chosen("one"), RUNS), line(Selection("", "three", "main", 40), {"three": stranger})]
    assert (where_they_part(lines).step, where_they_part(lines).run) == (0, None)


def test_cut_keeps_what_lies_behind_a_step() -> None:
    kept = cut(line(chosen("one"), RUNS), 22, 30)
    assert [(each.stretch.branch, each.stretch.first, each.stretch.last) for each in kept] == [
        ("branch-2", 23, 25),
        ("branch-3", 25, 30),
    ]


def test_interventions_of_a_line_are_those_that_its_checkpoints_contain() -> None:
    assert numbers("one:main") == [1, 2, 3, 4]
    assert numbers("one") == [1, 2, 5], "what main decided at step 20 after the save is no part of it"
    assert numbers("one:branch-2@44") == [1, 2, 5]
    assert numbers("two") == [1, 2, 5, 6, 7, 8]
    # 8 was decided at the step of the checkpoint that was adopted, before it was saved: that run's record says so.
    assert numbers("three:best") == [1, 2, 5, 6, 7, 8, 9]
    assert numbers("three:best@65") == [1, 2, 5, 6, 7, 8]
    assert numbers("three:main") == []


def test_knobs_at_a_step_take_back_what_was_changed_later() -> None:
    assert knobs_at(chosen("one:branch-2"), RUNS) == {"weight_decay": 0.7}
    assert knobs_at(chosen("one:branch-2@44"), RUNS) == {"weight_decay": 0.6}
    assert knobs_at(chosen("one:branch-2@15"), RUNS) == {"weight_decay": 0.2}
    assert knobs_at(chosen("one:branch-2@5"), RUNS) == {"weight_decay": 0.1}


def result(name: str, step: int, value: float, lowest: tuple[int, float] | None = None) -> MetricSummary:
    """What a metric came to."""
    at, low = lowest or (step, value)
    return MetricSummary(
        name=name,
        stretch=StepRange(),
        last=MeasuredValue(step=step, value=value),
        lowest=MeasuredValue(step=at, value=low),
    )


def test_compare_tells_knobs_commands_and_losses_since_the_lines_part() -> None:
    here = SideMetrics(
        (result("loss", 25, 3.0, (22, 2.0)), result("loss", 60, 2.5)), (result("loss", 40, 2.7), result("lr", 40, 0.1))
    )
    there = SideMetrics((result("loss", 40, 2.9),), (result("loss", 40, 2.9), result("lr", 40, 0.3)))
    found = compare([chosen("one"), chosen("one:main")], RUNS, [here, there])
    assert (found.common.step, found.last_common_step) == (20, 40)
    assert [[each.uuid.int for each in side.interventions] for side in found.sides] == [[5], [3, 4]]
    (loss,) = found.sides[0].outcomes
    assert loss.last == MeasuredValue(step=60, value=2.5)
    assert loss.best == MeasuredValue(step=22, value=2.0)
    assert loss.at_common == MeasuredValue(step=40, value=2.7)
    assert [(each.knob, each.values, each.step) for each in found.knobs] == [
        ("lr", (0.1, 0.3), 40),
        ("weight_decay", (0.6, 0.1), None),
    ]


def test_compare_with_itself_differs_in_nothing() -> None:
    measured = SideMetrics((), (result("lr", 60, 0.1),))
    found = compare([chosen("one"), chosen("one")], RUNS, [measured, measured])
    assert found.knobs == ()
    assert [side.interventions for side in found.sides] == [(), ()]


def test_tree_lists_parents_before_their_children_with_their_best_losses() -> None:
    of_two = RunSummary(
        run="two", name="two", status="running", step=70, total_steps=100, created_at="2026", world_size=2
    )
    results = [
        result("loss", 40, 2.0).model_copy(update={"stretch": StepRange(branch="branch-2", first=20)}),
        result("eval_loss", 40, 2.4).model_copy(update={"stretch": StepRange(branch="branch-2", first=20)}),
    ]
    mixed = ONE.model_copy(update={"branches": ONE.branches[::-1]})
    found = tree(mixed, results, [of_two])
    assert [each.branch.branch for each in found.branches] == ["main", "branch-2", "branch-3"]
    best = found.branches[1].best
    assert best is not None
    assert (best.name, best.value) == ("eval_loss", 2.4)
    assert [each.uuid.int for each in found.branches[1].changes] == [6], "it began with the other one"
    assert found.children == (of_two,)


@pytest.mark.parametrize("text", ["", ":main", "@3", "one:", "one@", "one@3:main", "one:a:b", "one@1@2"])
def test_parse_of_no_side_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(Invalid, match="RUN:BRANCH"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one:branch-9", "it has main, branch-2, branch-3"),
        ("one:main@41", "has reached step 40"),
        ("one@step-9-g1", "the newest are step-20-g1, step-25-g1"),
    ],
)
def test_choose_of_what_there_is_not_says_what_there_is(text: str, said: str) -> None:
    with pytest.raises(NotFound, match=said):
        chosen(text)


def test_choose_of_a_checkpoint_is_the_branch_that_saved_it() -> None:
    found = chosen("one@step-20-g1")
    assert (found.branch, found.step) == ("main", 20)
