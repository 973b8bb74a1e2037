"""`steer resume`: a command for trainers that are there, a new job where there are none."""

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from control_plane.cli.commands.resume import reason_for_new_job, resume_command, wait_until_ended
from control_plane.cli.job_watch import GRACE_S, JobWatch, job_is_gone, jobs_of
from control_plane.cli.select_run import connect
from control_plane.config import settings
from control_plane.core.model.errors import Conflict
from tests.cli.conftest import Steer
from tests.cli.losses import ray_with_jobs, save
from tests.cli.output.test_following import Clock, snapshot
from tests.core.examples import start
from tests.gateway.rig import RUN, LiveGateway


@pytest.fixture
def saved_idle(idle_gateway: LiveGateway) -> LiveGateway:
    """A run with a checkpoint, and no ranks that would answer."""
    idle_gateway.call(save(idle_gateway.server, "step-2-g1", 2))
    return idle_gateway


@pytest.fixture
def submitter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another program in the place of `python -m ray_jobs.submit`; answers the file where it writes how it was called.

    It refuses, with exit code 5, where the environment says so.
    """
    told = tmp_path / "told.json"
    program = tmp_path / "submit.py"
    program.write_text(
        "import json, os, sys\n"
        f"open({str(told)!r}, 'w').write(json.dumps([sys.argv[1:], os.environ['STEERWAY_HOME']]))\n"
        "sys.exit(5 if 'refused' in os.environ.get('SUBMITTER', '') else 0)\n"
    )

    def command(run: str, trust: bool, as_json: bool, env: Sequence[str] = ()) -> list[str]:
        return [sys.executable, str(program), *resume_command(run, trust, as_json, env)[4:]]

    monkeypatch.setattr("control_plane.cli.commands.resume.resume_command", command)
    monkeypatch.setattr("control_plane.cli.continue_run.resume_command", command)
    return told


def test_resume_of_a_paused_run_is_a_command(gateway: LiveGateway, steer: Steer, submitter: Path) -> None:
    steer("pause", RUN)
    answer = steer("resume", RUN)
    assert (answer.exit_code, answer.stdout) == (0, "applied at step 7 on 2 of 2 ranks: resume\n")
    assert not submitter.exists()


@pytest.mark.parametrize("ending", ["failed", "stopped"])
def test_resume_of_a_run_that_ended_early_submits_a_new_job(
    gateway: LiveGateway, steer: Steer, submitter: Path, tmp_path: Path, ending: str
) -> None:
    gateway.call(gateway.server.close(ending, "rank 1 ran out of memory"))
    answer = steer("resume", RUN, "--trust", "--json", "--env", "MY_KEY")
    assert answer.exit_code == 0
    assert f"run {RUN} has {ending} at step 4; submitting a new job" in answer.stderr
    assert json.loads(submitter.read_text()) == [["--resume", RUN, "--trust", "--env=MY_KEY", "--json"], str(tmp_path)]


def test_resume_that_the_submitter_refuses_leaves_with_its_exit_code(
    gateway: LiveGateway, steer: Steer, submitter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.call(gateway.server.close("finished", None))
    monkeypatch.setenv("SUBMITTER", "refused")
    answer = steer("resume", RUN)
    assert answer.exit_code == 5
    assert "submitting" not in answer.stderr


def test_resume_with_no_run_active_asks_for_a_name(gateway: LiveGateway, steer: Steer, submitter: Path) -> None:
    gateway.call(gateway.server.close("failed", None))
    answer = steer("resume")
    assert answer.exit_code == 3
    assert "name the run to restart" in answer.stderr
    assert not submitter.exists()


def test_resume_of_a_run_without_a_job_submits_one(
    idle_gateway: LiveGateway, steer: Steer, submitter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.cli.commands.resume.HEARD_LATELY_S", 0.0)
    with ray_with_jobs({RUN: "FAILED", "another": "RUNNING"}) as port:
        monkeypatch.setenv("STEERWAY_DASHBOARD_PORT", str(port))
        answer = steer("resume", RUN)
    assert answer.exit_code == 0
    assert "its Ray job is gone" in answer.stderr
    assert json.loads(submitter.read_text())[0] == ["--resume", RUN]


def test_resume_of_a_run_that_trains_is_refused(gateway: LiveGateway, steer: Steer, submitter: Path) -> None:
    answer = steer("resume", RUN)
    assert (answer.exit_code, "is not paused" in answer.stderr) == (5, True)
    assert not submitter.exists()


@pytest.mark.parametrize("words", [("resume", RUN), ("rollback", RUN, "step-2-g1", "-y")])
def test_run_whose_training_has_ended_is_waited_for_before_a_new_job_is_submitted(
    saved_idle: LiveGateway, steer: Steer, submitter: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Its script may still save something; whoever asked in these seconds got a job that could not begin."""
    server = saved_idle.server
    saved_idle.call(server.end_generation(1, "finished", 7, None))
    monkeypatch.setattr("control_plane.cli.commands.resume.LOOK_EVERY_S", 0.05)
    closing = threading.Timer(1.5, lambda: saved_idle.call(server.close("stopped", None)))
    closing.start()
    answer = steer(*words)
    closing.join()
    assert answer.exit_code == 0, answer.stderr
    ending, submitting = answer.stderr.index("is ending"), answer.stderr.index("submitting a new job")
    assert ending < submitting
    assert json.loads(submitter.read_text())[0][:2] == ["--resume", RUN]


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
    with ray_with_jobs({RUN: "FAILED", f"{RUN}-r2": "STOPPED"}) as port:
        where = settings(dashboard_port=port)
        assert reason_for_new_job(seen, where) is None
        silent = seen.model_copy(update={"progress_age_s": 60.0})
        assert "its Ray job is gone" in (reason_for_new_job(silent, where) or "")


@pytest.mark.parametrize(
    ("jobs", "gone"),
    [
        ({}, True),
        ({"run-1": "RUNNING"}, False),
        ({"run-1": "FAILED"}, True),
        ({"run-1": "FAILED", "run-1-r2": "PENDING"}, False),
        ({"run-1": "FAILED", "run-1-r2": "FAILED", "run-1-r10": "STOPPED"}, True),
        ({"run-1": "FAILED", "run-11": "RUNNING", "run-1-rest": "RUNNING"}, True),
    ],
)
def test_job_is_gone_when_none_of_the_runs_jobs_is_at_work(jobs: dict[str, str], gone: bool) -> None:
    with ray_with_jobs(jobs) as port:
        assert job_is_gone(settings(dashboard_port=port), RUN) is gone


def test_jobs_of_a_run_are_in_the_order_of_their_numbers() -> None:
    with ray_with_jobs({"run-1-r10": "PENDING", "run-1-r2": "FAILED", "run-1": "STOPPED"}) as port:
        assert list(jobs_of(settings(dashboard_port=port), RUN) or {}) == ["run-1", "run-1-r2", "run-1-r10"]


def test_job_of_a_ray_that_does_not_answer_is_not_called_gone() -> None:
    with ray_with_jobs({}) as port:
        pass
    assert job_is_gone(settings(dashboard_port=port), RUN) is False


def test_job_watch_calls_a_run_dead_after_a_while_and_only_without_a_later_job() -> None:
    jobs, clock = {RUN: "FAILED"}, Clock()
    with ray_with_jobs(jobs) as port:
        watch = JobWatch(settings(dashboard_port=port), RUN, clock)
        assert watch.dead(snapshot(1)) is None
        clock.sleep(GRACE_S)
        assert "has ended (failed), but the run was never closed" in (watch.dead(snapshot(1)) or "")
        jobs[f"{RUN}-r2"] = "RUNNING"
        clock.sleep(GRACE_S)
        assert watch.dead(snapshot(1)) is None
