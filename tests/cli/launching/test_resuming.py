"""`steer resume`: a command for trainers that are there, a new job where there are none."""

import json
import threading
from unittest.mock import AsyncMock, patch

import pytest

from control_plane.api.launching import JobStatus, JobView, ResumeRequest
from control_plane.cli.launching.job_watch import GRACE_S, JobWatch, job_is_gone
from control_plane.cli.launching.resume import reason_for_new_job, wait_until_ended
from control_plane.cli.select_run import connect
from control_plane.client import SteerwayClient
from control_plane.core.model.errors import Conflict
from tests.cli.conftest import Steer
from tests.cli.losses import save
from tests.cli.output.test_following import Clock, snapshot
from tests.core.examples import start
from tests.gateway.rig import RUN, LiveGateway


@pytest.fixture
def saved_idle(idle_gateway: LiveGateway) -> LiveGateway:
    """A run with a checkpoint, and no ranks that would answer."""
    idle_gateway.call(save(idle_gateway.server, "step-2-g1", 2))
    return idle_gateway


def asked(gateway: LiveGateway) -> list[ResumeRequest]:
    """What the gateway was asked to resume."""
    assert all(verb == "resume" and run == RUN for verb, run, _, _ in gateway.launches.asked)
    return [request for _, _, request, _ in gateway.launches.asked if isinstance(request, ResumeRequest)]


def test_resume_of_a_paused_run_is_a_command(gateway: LiveGateway, steer: Steer) -> None:
    steer("pause", RUN)
    answer = steer("resume", RUN)
    assert (answer.exit_code, answer.stdout) == (0, "applied at step 7 on 2 of 2 ranks: resume\n")
    assert not gateway.launches.asked


@pytest.mark.parametrize("ending", ["failed", "stopped"])
def test_resume_of_a_run_that_ended_early_submits_a_new_job(
    gateway: LiveGateway, steer: Steer, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    gateway.call(gateway.server.close(ending, "rank 1 ran out of memory"))
    monkeypatch.setenv("MY_KEY", "canary-secret")
    answer = steer("resume", RUN, "--trust", "--json", "--env", "MY_KEY")
    assert answer.exit_code == 0, answer.stderr
    assert f"run {RUN} has {ending} at step 4; submitting a new job" in answer.stderr
    assert json.loads(answer.stdout)["run"] == RUN
    (request,) = asked(gateway)
    assert (request.trust, request.secrets, request.back) == (True, {"MY_KEY": "canary-secret"}, None)
    assert "canary" not in answer.stdout + answer.stderr


def test_resume_with_a_variable_that_is_not_set_sends_nothing(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("failed", None))
    answer = steer("resume", RUN, "--env", "NO_SUCH_VARIABLE")
    assert answer.exit_code == 6
    assert "NO_SUCH_VARIABLE is not set in this shell" in answer.stderr
    assert not gateway.launches.asked


def test_resume_that_the_gateway_refuses_leaves_with_its_exit_code(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("finished", None))
    gateway.launches.error = Conflict(f"run {RUN} has finished at step 4: there is nothing left to resume")
    answer = steer("resume", RUN)
    assert answer.exit_code == 5
    assert "nothing left to resume" in answer.stderr
    assert "submitting" not in answer.stderr


def test_job_that_fails_at_once_is_reported_with_its_reason(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("failed", "the driver found no GPU"))
    failed = JobView(run=RUN, job=RUN, status="failed", message="exit code 1")
    with patch.object(gateway.launches, "job", AsyncMock(return_value=failed)):
        answer = steer("resume", RUN)
    assert answer.exit_code == 7
    assert f"run {RUN} failed: the driver found no GPU" in answer.stderr


def test_queued_run_is_said_to_wait(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("failed", None))
    queued = JobView(run=RUN, status="queued", message="needs 2 CPUs, 1 free")
    with patch.object(gateway.launches, "job", AsyncMock(return_value=queued)):
        answer = steer("resume", RUN)
    assert answer.exit_code == 0
    assert "is queued: needs 2 CPUs, 1 free" in answer.stderr


def test_resume_with_no_run_active_asks_for_a_name(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("failed", None))
    answer = steer("resume")
    assert answer.exit_code == 3
    assert "name the run to restart" in answer.stderr
    assert not gateway.launches.asked


def test_resume_of_a_run_without_a_job_submits_one(
    idle_gateway: LiveGateway, steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.cli.launching.resume.HEARD_LATELY_S", 0.0)
    idle_gateway.launches.jobs[RUN] = JobView(run=RUN, job=RUN, status="failed")
    answer = steer("resume", RUN)
    assert answer.exit_code == 0
    assert "its Ray job is gone" in answer.stderr
    assert len(asked(idle_gateway)) == 1


def test_resume_of_a_run_that_trains_is_refused(gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("resume", RUN)
    assert (answer.exit_code, "is not paused" in answer.stderr) == (5, True)
    assert not gateway.launches.asked


@pytest.mark.parametrize("words", [("resume", RUN), ("rollback", RUN, "step-2-g1", "-y")])
def test_run_whose_training_has_ended_is_waited_for_before_a_new_job_is_submitted(
    saved_idle: LiveGateway, steer: Steer, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Its script may still save something; whoever asked in these seconds got a job that could not begin."""
    server = saved_idle.server
    saved_idle.call(server.end_generation(1, "finished", 7, None))
    monkeypatch.setattr("control_plane.cli.launching.resume.LOOK_EVERY_S", 0.05)
    closing = threading.Timer(1.5, lambda: saved_idle.call(server.close("stopped", None)))
    closing.start()
    answer = steer(*words)
    closing.join()
    assert answer.exit_code == 0, answer.stderr
    ending, submitting = answer.stderr.index("is ending"), answer.stderr.index("submitting a new job")
    assert ending < submitting
    assert len(asked(saved_idle)) == 1


def test_run_that_does_not_end_or_trains_again_after_all_is_told_and_nothing_is_submitted(
    saved_idle: LiveGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    server = saved_idle.server
    saved_idle.call(server.end_generation(1, "finished", 7, None))
    slept: list[float] = []
    with connect() as client:
        with pytest.raises(Conflict, match="still ending after 3 s"):
            wait_until_ended(client, client.snapshot(RUN), 3.0, slept.append)
        assert len(slept) == 3

        def train_again(seconds: float) -> None:
            saved_idle.call(server.start_generation(start(901, 1)))

        assert wait_until_ended(client, client.snapshot(RUN), 3.0, train_again).status == "running"
    assert capsys.readouterr().err.count("is ending") == 2


def test_run_that_was_heard_lately_is_not_given_another_job(idle_gateway: LiveGateway) -> None:
    seen = idle_gateway.call(idle_gateway.server.snapshot())
    idle_gateway.launches.jobs[RUN] = JobView(run=RUN, job=RUN, status="failed")
    with connect() as client:
        assert reason_for_new_job(client, seen) is None
        silent = seen.model_copy(update={"progress_age_s": 60.0})
        assert "its Ray job is gone" in (reason_for_new_job(client, silent) or "")


@pytest.mark.parametrize(
    ("status", "gone"),
    [
        ("none", True),
        ("failed", True),
        ("stopped", True),
        ("succeeded", True),
        ("pending", False),
        ("running", False),
        ("queued", False),
        ("unknown", False),
    ],
)
def test_job_is_gone_when_it_is_not_at_work(idle_gateway: LiveGateway, status: JobStatus, gone: bool) -> None:
    idle_gateway.launches.jobs[RUN] = JobView(run=RUN, job=RUN, status=status)
    with connect() as client:
        assert job_is_gone(client, RUN) is gone


def test_job_behind_a_gateway_that_does_not_answer_is_not_called_gone() -> None:
    with SteerwayClient("http://127.0.0.1:9", "a-token") as client:
        assert job_is_gone(client, RUN) is False


def test_job_watch_calls_a_run_dead_after_a_while_and_only_without_a_later_job(idle_gateway: LiveGateway) -> None:
    jobs, clock = idle_gateway.launches.jobs, Clock()
    jobs[RUN] = JobView(run=RUN, job=RUN, status="failed")
    with connect() as client:
        watch = JobWatch(client, RUN, clock)
        assert watch.dead(snapshot(1)) is None
        clock.sleep(GRACE_S)
        assert "has ended (failed), but the run was never closed" in (watch.dead(snapshot(1)) or "")
        jobs[RUN] = JobView(run=RUN, job=f"{RUN}-r2", status="running")
        clock.sleep(GRACE_S)
        assert watch.dead(snapshot(1)) is None
