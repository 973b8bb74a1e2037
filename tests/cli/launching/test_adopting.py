"""`steer adopt`: a branch, or a fork, goes on as the run's head; where nobody trains the run, by a new job."""

import json
from pathlib import Path

import pytest

from control_plane.core.model.intents import Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.cli.conftest import Steer, save
from tests.cli.launching.test_resuming import asked
from tests.core import examples
from tests.gateway.rig import RUN, LiveGateway, PointList
from tests.storage.checkpoint.kin import CONFIG, lay
from tests.storage.checkpoint.saved import name_of

FORK = "fork-1"


async def serve(files: RunFiles) -> ControlServer:
    return ControlServer(examples.created(files.run, "c" * 64), Journal.open(files.journal), PointList())


@pytest.fixture
def forked(gateway: LiveGateway, tmp_path: Path) -> LiveGateway:
    """The run, with a checkpoint of step 2, its fork with steps 7 and 9, and a run that is no kin."""
    gateway.call(save(gateway.server, 2))
    (gateway.runs.root / RUN / "config.yaml").write_text(CONFIG.format(run=RUN, stage=2, max_steps=100))
    for files in (
        lay(tmp_path, FORK, 7, 9, parent=RUN, max_steps=200),
        lay(tmp_path, "stranger", 3),
        lay(tmp_path, "untrained", parent=RUN),
    ):
        gateway.runs.handles[files.run] = gateway.call(serve(files))
    return gateway


def test_adopt_takes_the_fork_s_newest_checkpoint_as_a_branch_and_goes_on_there(
    forked: LiveGateway, steer: Steer
) -> None:
    answer = steer("adopt", RUN, FORK, "-y", "--reason", "lowest loss")
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout.startswith("on branch branch-2 at step 9, ")
    assert f"adopt the newest checkpoint of {FORK} as branch-2" in answer.stderr
    assert (
        "settings of the run that differ from the fork's are kept: training.max_steps = 100 (fork: 200)"
        in answer.stderr
    )
    snapshot = forked.call(forked.server.snapshot())
    assert [(view.what, view.command.reason) for view in snapshot.commands] == [
        (f"adopt the newest checkpoint of {FORK} as branch-2", "lowest loss"),
        ("switch to branch branch-2", "lowest loss"),
    ]
    assert (
        steer("tree", RUN)
        .stdout.splitlines()[2]
        .startswith(f"* branch-2  adopted from {FORK}, branch main, at step 9, to step 9")
    )


@pytest.mark.parametrize("named", [f"{FORK}@7", f"{FORK}:main@{name_of(7)}", f"{FORK}:main", "fork"])
def test_adopt_takes_a_step_a_checkpoint_a_branch_or_part_of_a_name(
    forked: LiveGateway, steer: Steer, named: str
) -> None:
    answer = steer("adopt", RUN, "--branch", "best", "-y", "--json", "--", named)
    told = json.loads(answer.stdout)
    assert (told["arrival"]["branch"], told["arrival"]["step"]) == ("best", 7 if "7" in named else 9)
    assert told["command"]["intent"] == {"kind": "rollback", "branch": "best", "checkpoint": None, "first": []}


REFUSED = [
    ((RUN, "nowhere", "-y"), 3, f"'nowhere' is neither a branch of {RUN} (it has main) nor a run"),
    ((RUN, "stranger", "-y"), 5, "no common ancestor"),
    ((RUN, "untrained", "-y"), 3, "has no checkpoint to adopt"),
    ((RUN, f"{FORK}@8", "-y"), 3, "no checkpoint 'step:8'"),
    ((RUN, f"{FORK}:other", "-y"), 3, "no branch 'other'; it has main"),
    ((RUN, FORK, "-y", "--branch", "main"), 5, "has a branch 'main' already"),
    ((RUN, FORK, "-y", "--branch", "Best!"), 2, "not a valid branch name"),
    ((RUN, "main", "-y", "--branch", "best"), 2, "remove --branch"),
    ((RUN, FORK), 2, "confirm with --yes"),
    ((RUN, RUN, "-y"), 6, "cannot adopt its own checkpoints"),
]


def test_adoption_that_cannot_be_says_why_and_leaves_the_run_alone(forked: LiveGateway, steer: Steer) -> None:
    for words, exit_code, said in REFUSED:
        answer = steer("adopt", *words)
        assert said in answer.stderr
        assert (answer.exit_code, answer.stdout) == (exit_code, "")
    assert not forked.call(forked.server.snapshot()).commands


def test_adopted_branch_to_which_nobody_went_is_told(forked: LiveGateway, steer: Steer) -> None:
    answer = steer("adopt", RUN, FORK, "-y", "--based-on", "1")
    assert answer.exit_code == 5
    assert "and resend" in answer.stderr
    assert f"branch branch-2 exists but is not trained yet: run steer switch {RUN} branch-2" in answer.stderr
    assert steer("switch", RUN, "branch-2", "-y").stdout.startswith("on branch branch-2 at step 9, ")


def test_adopt_by_a_run_that_has_ended_is_a_new_job_that_adopts_first(forked: LiveGateway, steer: Steer) -> None:
    forked.call(forked.server.close("finished", None))
    answer = steer("adopt", RUN, FORK, "-y", "--reason", "lowest loss", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert f"run {RUN} has finished at step 4; submitting a new job to continue from there" in answer.stderr
    (request,) = asked(forked)
    assert request.back == AdoptCheckpoint(run=FORK, branch="branch-2")
    assert request.reason == "lowest loss"


@pytest.mark.parametrize("verb", ["rollback", "switch"])
def test_ended_run_goes_back_by_a_new_job(forked: LiveGateway, steer: Steer, verb: str) -> None:
    if verb == "switch":
        steer("rollback", RUN, "step:2", "-y")
    forked.call(forked.server.close("stopped", None))
    answer = steer(verb, RUN, "step:2" if verb == "rollback" else "main", "-y")
    assert answer.exit_code == 0, answer.stderr
    (request,) = asked(forked)
    assert isinstance(request.back, Rollback)
    assert (request.back.checkpoint, request.back.branch) == (
        ("step-2-g1", None) if verb == "rollback" else (None, "main")
    )


def test_ended_run_does_not_go_back_at_a_later_step(forked: LiveGateway, steer: Steer) -> None:
    forked.call(forked.server.close("stopped", None))
    answer = steer("rollback", RUN, "step:2", "-y", "--not-before", "5")
    assert (answer.exit_code, "remove --not-before" in answer.stderr) == (2, True)
    assert not forked.launches.asked
