"""What is wrong with a submission is said before anything is started, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from control_plane.core.model.errors import Conflict, Invalid
from ray_jobs import submit
from ray_jobs.config.run_config import load
from tests.ports import free_ports
from tests.ray.cluster import REPOSITORY
from tests.storage.checkpoint.kin import lay

CONFIG = str(REPOSITORY / "configs" / "gpt2-local.yaml")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    monkeypatch.setenv("STEERWAY_DASHBOARD_PORT", str(free_ports(1)[0]))
    return tmp_path


def test_submit_without_a_cluster_says_so_and_leaves_no_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main([CONFIG, "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "cannot submit the job to a Ray cluster" in told.err
    assert "steer up" in told.err
    assert "Traceback" not in told.err
    assert not list((home / "runs").iterdir())


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.learning_rat=1e-3", "did you mean learning_rate"),
        ("training.lr_scheduler_type=linaer", "lr_scheduler_type"),
        ("scaling.rank=2", "ranks"),
        ("training.learning_rate=.nan", "finite"),
        ("scaling.ranks=-1", "scaling.ranks"),
        ("deepspeed=nowhere.json", "nowhere.json"),
    ],
)
def test_submit_with_a_wrong_key_names_it(
    home: Path, capsys: pytest.CaptureFixture[str], override: str, complaint: str
) -> None:
    assert submit.main([CONFIG, override]) == Invalid.exit_code
    told = capsys.readouterr().err
    assert complaint in told
    assert "Traceback" not in told
    assert not (home / "runs").exists()


def test_submit_with_a_taken_id_conflicts_and_keeps_the_first(home: Path) -> None:
    config = load(CONFIG)
    first = submit.prepare(config, home / "runs", "taken")
    with pytest.raises(Conflict, match="already"):
        submit.prepare(config, home / "runs", "taken")
    assert first.config.read_text() == config.to_yaml()


def test_run_ids_are_unique_and_valid_also_for_the_longest_name() -> None:
    ids = {submit.new_run_id("n" * 64) for _ in range(20)}
    assert len(ids) == 20
    assert all(len(run) <= 64 for run in ids)


def test_ray_environment_is_what_the_cluster_wrote_down(home: Path) -> None:
    where = submit.settings()
    assert submit.ray_environment(where) == {}
    where.cluster_file.write_text(json.dumps({"ray_environment": {"RAY_AUTH_MODE": "token"}}))
    assert submit.ray_environment(where) == {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"kind": "adopt_checkpoint", "run": "stranger", "branch": "best"}, 5, "no common ancestor"),
        ({"kind": "adopt_checkpoint", "run": "fork", "branch": "main"}, 5, "has a branch 'main' already"),
        ({"kind": "adopt_checkpoint", "run": "fork", "checkpoint": "no", "branch": "best"}, 3, "has no checkpoint no"),
        ({"kind": "adopt_checkpoint", "run": "fork"}, 6, "or an adoption with a branch, not 'adopt the newest"),
        ({"kind": "rollback", "checkpoint": "no"}, 3, "has no checkpoint 'no'"),
        ({"kind": "pause"}, 6, "not 'pause'"),
    ],
)
def test_resume_somewhere_else_is_refused_before_a_job_is_submitted(
    home: Path, capsys: pytest.CaptureFixture[str], asked: dict[str, str], code: int, said: str
) -> None:
    lay(home, "parent", 1)
    lay(home, "fork", 7, parent="parent")
    lay(home, "stranger", 7)
    command = json.dumps({"uuid": "0" * 32, "author": "ann", "intent": asked})
    assert submit.main(["--resume", "parent", "--back", command, "--json"]) == code
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""


class Jobs:
    """The part of Ray's Jobs API that lists the jobs; they end after so many looks."""

    def __init__(self, ends_after: int) -> None:
        self.looks, self._ends_after = 0, ends_after

    def list_jobs(self) -> list[JobDetails]:
        self.looks += 1
        status = JobStatus.RUNNING if self.looks <= self._ends_after else JobStatus.SUCCEEDED
        told = {"run-1": JobStatus.FAILED, "run-1-r2": status, "another": JobStatus.RUNNING}
        return [
            JobDetails(type=JobType.SUBMISSION, submission_id=name, status=each, entrypoint="x")
            for name, each in told.items()
        ]


def test_job_of_a_run_that_is_over_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Jobs(ends_after=3)
    assert submit.free_job_id(jobs, "run-1", lambda: True, lambda seconds: None) == "run-1-r3"
    assert (jobs.looks, capsys.readouterr().err.count("waiting for the end of its Ray job")) == (4, 1)


def test_job_that_does_not_end_or_is_at_work_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="has not ended within 60 s; try again"):
        submit.free_job_id(Jobs(ends_after=1000), "run-1", lambda: True, lambda seconds: None)
    with pytest.raises(Conflict, match="is still active as Ray job run-1-r2"):
        submit.free_job_id(Jobs(ends_after=1000), "run-1", lambda: False, lambda seconds: None)
    resumed = iter([True, True, False])
    with pytest.raises(Conflict, match="is still active"):
        submit.free_job_id(Jobs(ends_after=1000), "run-1", lambda: next(resumed), lambda seconds: None)
