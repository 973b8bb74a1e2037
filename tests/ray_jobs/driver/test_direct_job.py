"""A run that the gateway did not submit: same folder and records, its own code, and found by its Ray job."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.api.launching import JobRequest, Submission
from control_plane.config import Settings
from control_plane.core.model.errors import Invalid, SteerwayError
from control_plane.gateway.launching.ray_access import RayJobs
from control_plane.storage.direct_jobs import run_of_job, write_job
from control_plane.storage.ownership import signed_config
from ray_jobs.config.run_config import RunConfig
from ray_jobs.driver.direct_job import JOB_CONFIG, begin, driver_environment, has_finished, ray_job
from ray_jobs.submit import jobs_of

CONFIG = """
name: direct
seed: 1
scaling: {ranks: 1, cpus_per_rank: 1, use_gpu: false}
workload: {kind: script, path: train.py, args: ["3"]}
"""
IN_JOB = json.dumps({"runtime_env": {"env_vars": {"MINE": "1"}}, "metadata": {"job_submission_id": "rayjob-abc"}})


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    code = tmp_path / "code"
    code.mkdir()
    (code / "run.yaml").write_text(CONFIG)
    (code / "train.py").write_text("import module\n")
    (code / "module.py").write_text("")
    return Settings(home=tmp_path / "home")


def config_of(where: Settings) -> str:
    return str(where.home.parent / "code" / "run.yaml")


def test_it_makes_the_folder_and_records_that_the_gateway_makes(
    where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_CONFIG, IN_JOB)
    files, request = begin(where, config_of(where), ["seed=5"], "mine")
    submission = Submission.model_validate_json(files.submission.read_text())
    assert (submission.via, submission.owner, submission.uuid) == ("ray-job", "ray-job", request.uuid)
    assert JobRequest.model_validate_json(files.request(request.uuid).read_text()) == request
    assert (request.author, request.resumes) == ("ray-job", False)
    text = signed_config(files)
    assert text is not None
    config = RunConfig.from_yaml(text, "config")
    assert (config.seed, config.bundle) == (5, submission.bundle)
    assert sorted(path.name for path in files.code.iterdir()) == ["module.py", "run.yaml", "train.py"]
    assert run_of_job(where.home, "rayjob-abc") == "mine"


def test_a_job_that_is_started_again_continues_its_run(where: Settings) -> None:
    files, first = begin(where, config_of(where), [], "mine")
    again, second = begin(where, config_of(where), [], "mine")
    assert again == files
    assert second.uuid != first.uuid
    assert second.resumes is False  # its driver had not even opened the journal
    assert not has_finished(where, "mine")
    assert not has_finished(where, None)


@pytest.mark.parametrize("overrides", [["sed=5"], ["workload.path=nowhere.py"], ["scaling.ranks=none"]])
def test_a_config_that_is_refused_leaves_nothing(where: Settings, overrides: list[str]) -> None:
    with pytest.raises(Invalid):
        begin(where, config_of(where), overrides, "mine")
    assert not where.runs_dir.exists() or list(where.runs_dir.iterdir()) == []


def test_code_that_cannot_be_packed_leaves_nothing(where: Settings) -> None:
    (where.home.parent / "code" / "link").symlink_to("/etc/passwd")
    with pytest.raises(SteerwayError):
        begin(where, config_of(where), [], "mine")
    assert not where.runs_dir.exists() or list(where.runs_dir.iterdir()) == []


def test_the_driver_gets_what_the_gateway_gives_beside_what_the_job_has(where: Settings) -> None:
    config = RunConfig.from_yaml((signed_config(begin(where, config_of(where), [])[0]) or ""), "config")
    environ = driver_environment(where, config, {"PATH": "/bin", JOB_CONFIG: IN_JOB})
    job = json.loads(environ[JOB_CONFIG])
    assert job["metadata"] == {"job_submission_id": "rayjob-abc"}
    assert job["runtime_env"]["env_vars"]["MINE"] == "1"
    assert job["runtime_env"]["env_vars"]["STEERWAY_HOME"] == str(where.home)
    assert environ["PATH"] == "/bin"
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" in environ


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metadata": 3}', '{"metadata": {"job_submission_id": 3}}'])
def test_a_process_of_no_ray_job_has_none(text: str) -> None:
    assert ray_job({JOB_CONFIG: text}) is None
    assert ray_job({}) is None


def test_names_of_jobs_are_never_paths(tmp_path: Path) -> None:
    write_job(tmp_path, "../../x", "mine")
    assert run_of_job(tmp_path, "../../x") == "mine"
    assert [path.parent.name for path in tmp_path.rglob("job-*")] == ["ray-jobs"]
    assert run_of_job(tmp_path, "other") is None


def test_the_gateway_finds_the_run_of_a_job_that_it_did_not_submit(where: Settings) -> None:
    write_job(where.home, "rayjob-abc", "mine")
    running = SimpleNamespace(value="RUNNING")
    listed = [
        SimpleNamespace(submission_id=name, metadata=metadata, status=running, message="")
        for name, metadata in (("rayjob-abc", None), ("rayjob-def", {}), ("x", {"steerway-run": "theirs"}))
    ]
    jobs = RayJobs(where)
    jobs._client = SimpleNamespace(list_jobs=lambda: listed)
    assert [job.run for job in asyncio.run(jobs.list())] == ["mine", None, "theirs"]


def test_jobs_of_a_run_hold_the_one_that_the_gateway_did_not_submit(where: Settings) -> None:
    write_job(where.home, "rayjob-abc", "mine")

    def job(submission_id: str | None, entrypoint: str = "") -> Any:
        return SimpleNamespace(submission_id=submission_id, entrypoint=entrypoint)

    bare = job(None, f"python -P -m ray_jobs.launch {where.runs_dir / 'bare'} --request 1")
    jobs = [job("rayjob-abc"), job("mine-r2"), job("mine-2"), bare]
    client = SimpleNamespace(list_jobs=lambda: jobs)
    assert {number: one.submission_id for number, one in jobs_of(client, where, "mine").items()} == {
        0: "rayjob-abc",
        2: "mine-r2",
    }
    assert jobs_of(client, where, "bare") == {0: bare}
    assert jobs_of(client, where, "bar") == {}
