"""Rollbacks, switches, trees and comparisons on the command line, against ranks that go where they are told."""

import json
from collections.abc import Iterator
from uuid import UUID

import pytest

from control_plane.api.messages import BranchView, RunSummary
from control_plane.cli.commands.tree import describe
from control_plane.compare.comparison import RunTree, TreeBranch
from control_plane.core.model.records import Parent
from control_plane.core.model.values import LeftOut
from tests.cli.conftest import Steer, measure, save
from tests.gateway.rig import RUN, LiveGateway


@pytest.fixture
def saved(gateway: LiveGateway) -> Iterator[LiveGateway]:
    """The run, with checkpoints of its steps 2 and 4, and losses up to step 6."""
    gateway.call(save(gateway.server, 2, label="early"))
    gateway.call(save(gateway.server, 4))
    gateway.call(measure(gateway.server, 1, {1: 5.0, 2: 4.0, 5: 3.0, 6: 3.5}))
    gateway.call(measure(gateway.server, 1, {5: 2.5}, "eval_loss"))
    return gateway


def test_rollback_says_on_which_branch_and_where_it_goes_on(saved: LiveGateway, steer: Steer) -> None:
    answer = steer("rollback", RUN, "step-2-g1", "--set", "lr=1e-4", "--set", "weight_decay=0.3", "-y")
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout.startswith("on branch branch-2 at step 2, ")
    assert "back to step-2-g1, lr = 0.0001, weight_decay = 0.3" in answer.stderr
    snapshot = saved.call(saved.server.snapshot())
    assert [(view.what, view.status) for view in snapshot.commands[1:]] == [
        ("lr = 0.0001", "applied"),
        ("weight_decay = 0.3", "applied"),
    ]


def test_rollback_leaves_out_samples_before_the_first_step_of_the_new_branch(saved: LiveGateway, steer: Steer) -> None:
    answer = steer("rollback", RUN, "early", "--set", "lr=1e-4", "--skip", "200", "-y", "--json")
    assert answer.exit_code == 0, answer.stderr
    first = json.loads(answer.stdout)["command"]["intent"]["first"]
    assert [change["kind"] for change in first] == ["set_learning_rate", "skip_samples"]
    assert first[1]["samples"] == 200


@pytest.mark.parametrize("named", ["early", "step:2", "step-2"])
def test_rollback_takes_a_label_a_step_or_a_beginning(saved: LiveGateway, steer: Steer, named: str) -> None:
    answer = steer("rollback", named, "--branch", "calm", "--reason", "spiked", "-y", "--json")
    told = json.loads(answer.stdout)
    assert told["command"]["intent"]["checkpoint"] == "step-2-g1"
    assert (told["arrival"]["branch"], told["arrival"]["step"], told["command"]["reason"]) == ("calm", 2, "spiked")


def test_rollback_detached_answers_with_the_receipt(saved: LiveGateway, steer: Steer) -> None:
    answer = steer("rollback", RUN, "early", "-y", "--detach")
    assert answer.stdout.startswith(f"accepted by {RUN} as record ")


def test_switch_goes_back_to_the_branch_that_was_left(saved: LiveGateway, steer: Steer) -> None:
    steer("rollback", RUN, "early", "-y")
    assert steer("switch", RUN, "ma", "-y").stdout.startswith("on branch main at step 4, ")
    assert steer("adopt", RUN, "branch-2", "-y").stdout.startswith("on branch branch-2 at step 2, ")
    assert saved.call(saved.server.snapshot()).branch == "branch-2"


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("rollback", RUN, "step-9-g1", "-y"), 3, "it has step-2-g1 (early), step-4-g1"),
        (("rollback", RUN, "step:3", "-y"), 3, "no checkpoint 'step:3'"),
        (("rollback", RUN, "step-", "-y"), 2, "'step-' matches 2 checkpoints"),
        (("rollback", RUN, "early"), 2, "confirm with --yes"),
        (("rollback", RUN, "early", "-y", "--branch", "Calm!"), 2, "not a valid branch name"),
        (("rollback", RUN, "early", "-y", "--branch", "main"), 5, "has a branch 'main' already"),
        (("rollback", RUN, "early", "-y", "--set", "lr=1e4"), 6, "less than or equal to 10"),
        (("rollback", RUN, "early", "-y", "--set", "lr"), 2, "not a number"),
        (("rollback", RUN, "early", "-y", "--set", "weigth_decay=1"), 3, "did you mean weight_decay?"),
        (("rollback", RUN, "early", "-y", "--set", "lr=1e-4", "--set", "lr=1e-5"), 2, "set twice"),
        (("rollback", RUN, "early", "-y", "--hold"), 2, "--hold applies to the learning rate"),
        (("rollback", RUN, "early", "-y", "--skip", "0"), 2, "greater than or equal to 1"),
        (("rollback", "a", "b", "c", "-y"), 2, "steer rollback RUN"),
        (("switch", RUN, "branch-7", "-y"), 3, "no branch 'branch-7'; it has main"),
        (("switch", RUN, "main", "-y"), 5, "on branch main already"),
        (("switch", RUN, "main"), 2, "confirm with --yes"),
        (("compare", RUN), 2, "two or more"),
        (("compare", RUN, f"{RUN}:nowhere"), 3, "no branch 'nowhere'; it has main"),
        (("compare", RUN, f"{RUN}@99"), 3, "has reached step 5"),
        (("compare", RUN, f"{RUN}@step-9"), 3, "the newest are step-2-g1, step-4-g1"),
        (("compare", RUN, "run-9"), 3, "run-9"),
        (("compare", RUN, f"{RUN}::"), 6, "is none of RUN, RUN:BRANCH"),
        (("tree", "run-9"), 3, "run-9"),
    ],
)
def test_refusal_says_what_was_wrong_and_what_there_is(
    saved: LiveGateway, steer: Steer, words: tuple[str, ...], exit_code: int, said: str
) -> None:
    answer = steer(*words)
    assert said in answer.stderr
    assert (answer.exit_code, answer.stdout) == (exit_code, "")


def test_rollback_whose_trainers_do_not_come_says_so(idle_gateway: LiveGateway, steer: Steer) -> None:
    server = idle_gateway.server
    idle_gateway.call(save(server, 2))
    idle_gateway.call(server.end_generation(1, "failed", 7, "out of memory"))
    answer = steer("rollback", RUN, "step-2-g1", "-y", "--timeout", "0.3")
    assert "no trainer started there" in answer.stderr
    assert (answer.exit_code, answer.stdout) == (124, "")


def test_tree_shows_branches_their_changes_and_best_losses(saved: LiveGateway, steer: Steer) -> None:
    steer("rollback", RUN, "early", "--set", "lr=1e-4", "-y")
    steer("set", RUN, "weight_decay=0.2", "--reason", "overfits")
    saved.call(measure(saved.server, 2, {3: 3.9, 4: 2.0}))
    assert steer("tree", RUN).stdout.splitlines() == [
        f"{RUN}  running",
        "- main  to step 7  latest step-4-g1  best eval_loss 2.5 at step 5",
        "   * branch-2  from step 2 of main to step 7  no checkpoint of its own  best loss 2 at step 4",
        "       started with lr = 0.0001",
        "       step 7: weight_decay = 0.2, by test-operator because 'overfits'",
    ]
    told = json.loads(steer("tree", RUN, "--json").stdout)
    assert [each["branch"]["branch"] for each in told["branches"]] == ["main", "branch-2"]


def test_tree_of_a_fork_names_its_parent_and_lists_its_children() -> None:
    parent = Parent(kind="fork", run="one", branch="calm", checkpoint="step-8-g2", step=8)
    child = RunSummary(
        run="three", name="three", status="running", step=30, total_steps=99, created_at="2026", world_size=2
    ).model_copy(update={"parent": Parent(kind="fork", run="two", checkpoint="step-20-g1", step=20)})
    found = RunTree(
        run="two",
        status="paused",
        head="main",
        total_steps=99,
        parent=parent,
        branches=(TreeBranch(branch=BranchView(branch="main", reached_step=24, head=True)),),
        children=(child,),
    )
    assert describe(found) == [
        "two  paused, a fork of one:calm at step 8 (step-8-g2)",
        "* main  to step 24  no checkpoint of its own",
        "   > fork three at step 20: running, step 30",
    ]


@pytest.mark.parametrize(("placebo", "more"), [(None, ""), (-2e-6, ", with lr x 0.999998 in its place")])
def test_tree_says_what_a_replay_leaves_out(placebo: float | None, more: str) -> None:
    left_out = LeftOut(command=UUID("17947f53-0000-4000-8000-000000000000"), step=40, placebo=placebo)
    parent = Parent(kind="replay", run="one", step=99, without=left_out)
    child = RunSummary(
        run="three",
        name="three",
        status="running",
        step=30,
        total_steps=99,
        created_at="2026",
        world_size=2,
        parent=parent,
    )
    found = RunTree(
        run="two",
        status="finished",
        head="main",
        total_steps=99,
        parent=parent,
        branches=(TreeBranch(branch=BranchView(branch="main", reached_step=24, head=True)),),
        children=(child,),
    )
    first, _, last = describe(found)
    assert first == f"two  finished, a replay of one without command 17947f53 of step 40{more}"
    assert last == (f"   > replay three from the start without command 17947f53 of step 40{more}: running, step 30")


def test_compare_of_two_branches_begins_where_they_part(saved: LiveGateway, steer: Steer) -> None:
    steer("rollback", RUN, "early", "--set", "weight_decay=0.2", "-y")
    saved.call(measure(saved.server, 2, {3: 3.9, 4: 2.0}))
    shown = steer("compare", RUN, f"{RUN}:main").stdout.splitlines()
    assert shown[0] == f"in common up to step 2 of {RUN}:main; all have reached step 4"
    cells = [line.split("  ") for line in shown]
    rows = {cell[0]: [each.strip() for each in cell[1:] if each.strip()] for cell in cells}
    assert rows["best loss"] == ["2 (step 4)", "3 (step 5)"]
    assert rows["last loss"] == ["2 (step 4)", "3.5 (step 6)"]
    assert rows["last eval_loss"] == ["-", "2.5 (step 5)"]
    assert rows["weight_decay"] == ["0.2", "0.1, 0"]
    assert "  step 2: weight_decay = 0.2, by test-operator" in shown
    assert json.loads(steer("compare", RUN, f"{RUN}:main", "--json").stdout)["common"]["branch"] == "main"
