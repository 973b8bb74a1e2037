"""What the console begins through the gateway: runs that have ended go on, and forks start."""

from control_plane.api.launching import ForkRequest, ResumeRequest
from control_plane.core.model.errors import Conflict
from control_plane.core.model.intents import Rollback
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.test_branches import branched
from tests.ui.test_console import press, text

__all__ = ["branched"]


def labels(visit: Visit) -> list[str]:
    return [button.label for button in visit(run="gpt2-1").button]


def test_run_that_was_stopped_is_resumed_from_its_page(
    visit: Visit, cluster: FakeCluster, branched: FakeTrainer
) -> None:
    assert "Resume" not in labels(visit)
    cluster.do(branched.server.close("stopped", None))
    app = press(visit(run="gpt2-1"), "Resume")
    assert not app.exception
    ((verb, run, request, by),) = cluster.launches.asked
    assert isinstance(request, ResumeRequest)
    assert (verb, run, request.back, by.id) == ("resume", "gpt2-1", None, "ada")
    assert "restarting" in text(app)
    assert "Resume" not in [button.label for button in app.button], "one press is one job"


def test_finished_run_is_not_resumed(visit: Visit, cluster: FakeCluster, branched: FakeTrainer) -> None:
    cluster.do(branched.server.close("finished", None))
    assert "Resume" not in labels(visit)


def test_refusal_of_the_gateway_is_shown(visit: Visit, cluster: FakeCluster, branched: FakeTrainer) -> None:
    cluster.do(branched.server.close("failed", None))
    cluster.launches.error = Conflict("needs 8 GPUs, the cluster has 4")
    app = press(visit(run="gpt2-1"), "Resume")
    assert "needs 8 GPUs, the cluster has 4" in text(app)


def test_ended_run_rolls_back_by_a_new_job(visit: Visit, cluster: FakeCluster, branched: FakeTrainer) -> None:
    cluster.do(branched.server.close("finished", None))
    app = visit(run="gpt2-1")
    app = next(button for button in app.button if button.key == "back/step-00000040-g1").click().run()
    app.text_input(key="back_name").input("again")
    app = press(app, "Roll back")
    assert not app.exception
    ((verb, _, request, _),) = cluster.launches.asked
    assert isinstance(request, ResumeRequest)
    assert verb == "resume"
    assert request.back == Rollback(checkpoint="step-00000040-g1", branch="again")


def test_fork_starts_from_a_checkpoint(visit: Visit, cluster: FakeCluster, branched: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    app = next(button for button in app.button if button.key == "fork/step-00000040-g1").click().run()
    app.text_input(key="fork_rate").input("3e-4")
    app = press(app, "Start the fork")
    assert not app.exception
    ((verb, run, request, _),) = cluster.launches.asked
    assert isinstance(request, ForkRequest)
    assert (verb, run, request.checkpoint) == ("fork", "gpt2-1", "step-00000040-g1")
    assert [[intent.describe() for intent in first] for first in request.firsts] == [["lr = 0.0003"]]
    assert "Run new-run was started" in text(app)
