"""Runs begin, resume, fork and replay through the launch service: refused before anything is made, or exactly once."""

import json
import stat
from glob import glob
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from ray.job_submission import JobStatus

from control_plane.api.launching import JobRequest, Submission
from control_plane.core.model.commands import Command, Pause
from control_plane.core.model.errors import Conflict, Invalid, NotAllowed, NotFound, Refused, SteerwayError, Unavailable
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.storage import failpoints
from control_plane.storage.code.uploads import bundle_path
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import signed_config
from ray_jobs.config.bundled_paths import located
from ray_jobs.config.own_config import own_config
from tests.ray_jobs.service.fake_cluster import Desk
from tests.storage.checkpoint.kin import lay
from tests.storage.checkpoint.saved import name_of
from tests.storage.code.bundles import bytes_of, folder_of, sha256_of

UUID_1 = UUID(int=1)
GPT2 = """name: parent
seed: 7
workload: {kind: gpt2}
model: {n_layer: 1, n_head: 1, n_embd: 8}
data: {source: stdlib}
deepspeed: {zero_optimization: {stage: 2}}
"""
POINTS = tuple(point for point in failpoints.POINTS if point.startswith("launch."))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    # Importing Transformers takes seconds, and its part has tests of its own.
    monkeypatch.setattr("ray_jobs.submit._check_training", lambda config: None)
    return Desk(tmp_path / "home")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("print('trains')\n")
    return path


def config_of(script: Path, more: str = "") -> str:
    return f"name: mine\nseed: 1\nworkload: {{kind: script, path: {script}}}\n{more}"


def test_launch_makes_the_folder_and_one_job_that_tells_nothing(desk: Desk, script: Path) -> None:
    request = {
        "config": config_of(script, "env: {HF_TOKEN: {secret: true}, MODE: fast}\n"),
        "secrets": {"HF_TOKEN": "hf_canary_0123456789"},
        "priority": 3,
        "client": "1.2",
    }
    launched = desk.call("launch", request, uuid=UUID_1)
    assert "this client is Steerway 1.2 and the gateway is" in launched.notes[0]
    [run] = launched.runs
    assert run.run.startswith("mine-20")
    assert (run.run.rpartition("-")[2], run.job) == (UUID_1.hex[-6:], run.run)
    files = RunFiles(desk.home / "runs" / run.run)
    submission = Submission.model_validate_json(files.submission.read_text())
    assert (submission.uuid, submission.owner, submission.role) == (UUID_1, "ann-operator", "operator")
    assert (submission.priority, submission.client, submission.via) == (3, "1.2", "gateway")
    assert signed_config(files) == files.config.read_text()
    assert json.loads(files.secrets.read_text()) == {"HF_TOKEN": "hf_canary_0123456789"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.root.rglob("*") if path.is_file()} == {0o600}
    asked = JobRequest.model_validate_json(files.request(UUID_1).read_text())
    assert (asked.author, asked.role, asked.resumes, asked.back) == ("ann-operator", "operator", False, None)
    everywhere = [
        *desk.cluster.entrypoints,
        json.dumps(desk.cluster.environments),
        *(path.read_text() for path in (desk.home / "launching").iterdir() if path.is_file()),
        files.submission.read_text(),
        files.config.read_text(),
    ]
    assert not [text for text in everywhere if "canary" in text]
    assert f"--request {UUID_1}" in desk.cluster.entrypoints[0]
    assert (desk.leftovers(), list(desk.cluster.jobs)) == ([], [run.run])


@pytest.mark.parametrize("point", POINTS)
def test_service_that_dies_between_two_steps_is_repeated_and_makes_one_run_and_one_job(
    desk: Desk, script: Path, point: str
) -> None:
    request = {"config": config_of(script)}
    failpoints.arm(f"{point}=error:EIO")
    try:
        with pytest.raises(OSError, match="Input/output"):
            desk.call("launch", request, uuid=UUID_1)
    finally:
        failpoints.arm("")
    second = desk.call("launch", request, uuid=UUID_1)
    assert second == desk.call("launch", request, uuid=UUID_1)
    [run] = second.runs
    assert (desk.runs(), list(desk.cluster.jobs), desk.leftovers()) == ([run.run], [run.run], [])
    assert len(desk.cluster.entrypoints) == 1


@pytest.mark.parametrize("point", POINTS)
def test_fork_of_three_that_dies_half_way_is_three_forks_once_it_is_repeated(desk: Desk, point: str) -> None:
    lay(desk.home, "parent", 3, config=GPT2)
    request = {"checkpoint": name_of(3), "firsts": [[], [{"kind": "set_learning_rate", "value": 1e-3}], []]}
    failpoints.arm(f"{point}=error:EIO{'' if 'answer' in point or 'record' in point else '@2'}")
    try:
        with pytest.raises(OSError, match="Input/output"):
            desk.call("fork", request, "parent", uuid=UUID_1)
    finally:
        failpoints.arm("")
    launched = desk.call("fork", request, "parent", uuid=UUID_1)
    names = sorted(run.run for run in launched.runs)
    assert len(set(names)) == 3
    assert (desk.runs(), sorted(desk.cluster.jobs), desk.leftovers()) == (sorted([*names, "parent"]), names, [])
    origins = [json.loads(RunFiles(desk.home / "runs" / run.run).origin.read_text()) for run in launched.runs]
    assert [len(origin["scheduled"]) for origin in origins] == [0, 1, 0]
    command = origins[1]["scheduled"][0]["command"]
    assert (command["author"], command["role"]) == ("ann-operator", "operator")


def test_request_that_is_repeated_on_the_next_day_is_the_same_run(
    desk: Desk, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failpoints.arm("launch.after_rename=error:EIO")
    try:
        with pytest.raises(OSError, match="Input/output"):
            desk.call("launch", {"config": config_of(script)}, uuid=UUID_1)
    finally:
        failpoints.arm("")
    monkeypatch.setattr("ray_jobs.service.launches.new_run_id", lambda name, uuid: f"{name}-20991231-{uuid.hex[-6:]}")
    [run] = desk.call("launch", {"config": config_of(script)}, uuid=UUID_1).runs
    assert desk.runs() == [run.run]
    assert "2099" not in run.run


def test_resume_that_dies_half_way_is_one_job(desk: Desk) -> None:
    lay(desk.home, "run-1", 3, config=GPT2)
    for point in ("launch.after_record", "launch.after_submit", "launch.after_answer"):
        uuid = uuid4()
        failpoints.arm(f"{point}=error:EIO")
        try:
            with pytest.raises(OSError, match="Input/output"):
                desk.call("resume", {}, "run-1", uuid=uuid)
        finally:
            failpoints.arm("")
        before = len(desk.cluster.entrypoints)
        launched = desk.call("resume", {}, "run-1", uuid=uuid)
        assert launched == desk.call("resume", {}, "run-1", uuid=uuid)
        assert len(desk.cluster.entrypoints) == before + (point == "launch.after_record")
        [run] = launched.runs
        assert desk.cluster.jobs[str(run.job)].metadata == {
            "steerway-request": str(uuid),
            "steerway-run": "run-1",
        }
        desk.cluster.jobs[str(run.job)].status = JobStatus.FAILED
    assert list(desk.cluster.jobs) == ["run-1", "run-1-r2", "run-1-r3"]


def test_answer_that_ray_lost_is_found_and_a_job_that_it_did_not_take_leaves_no_run(desk: Desk, script: Path) -> None:
    desk.cluster.loses = 1
    [run] = desk.call("launch", {"config": config_of(script)}).runs
    assert list(desk.cluster.jobs) == [run.job]
    desk.cluster.refuses = 1
    with pytest.raises(Unavailable, match="no agent"):
        desk.call("launch", {"config": config_of(script)}, uuid=UUID_1)
    assert (desk.runs(), desk.leftovers()) == ([run.run], [])
    assert desk.call("launch", {"config": config_of(script)}, uuid=UUID_1).runs[0].job


def test_uuid_of_another_request_is_a_conflict(desk: Desk, script: Path) -> None:
    desk.call("launch", {"config": config_of(script)}, uuid=UUID_1)
    with pytest.raises(Conflict, match="another request"):
        desk.call("launch", {"config": config_of(script), "overrides": ["seed=2"]}, uuid=UUID_1)
    with pytest.raises(Conflict, match="another request"):
        desk.call("launch", {"config": config_of(script)}, uuid=UUID_1, role="admin")
    assert len(desk.runs()) == 1


@pytest.mark.parametrize(
    ("request_body", "kind", "complaint"),
    [
        ({"config": "name: [", "source": "my.yaml"}, Invalid, "my.yaml"),
        ({"config": ""}, Invalid, "is empty"),
        ({"config": "name: a\nseed: 1\nsteps: 3\nworkload: {kind: script, path: /x.py}"}, Invalid, "steps"),
        ({"config": "name: a\nseed: 1\nworkload: {kind: script, path: /x.py}"}, Invalid, "there is no such file"),
        ({"config": "name: a\nseed: 1\nworkload: {kind: script, path: x.py}"}, Invalid, "the cluster does not see"),
        (
            {"config": "name: a\nseed: 1\ndeepspeed: /etc/passwd\nworkload: {kind: script, path: /x.py}"},
            Invalid,
            "was not sent",
        ),
        ({"config": "name: a\nseed: 1\nworkload: {kind: gpt2}", "script": "train.py"}, Invalid, "no bundle is named"),
        (
            {
                "config": "name: a\nseed: 1\nworkload: {kind: script, path: ../x.py}",
                "bundle": "0" * 64,
            },
            Invalid,
            "leads out of the code bundle",
        ),
    ],
)
def test_what_a_config_names_and_is_not_there_is_said_and_nothing_is_made(
    desk: Desk, request_body: dict[str, object], kind: type[SteerwayError], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        desk.call("launch", request_body)
    assert (desk.runs(), desk.leftovers(), desk.cluster.jobs) == ([], [], {})


def test_code_travels_into_the_run(desk: Desk, tmp_path: Path) -> None:
    data = bytes_of(folder_of(tmp_path / "script", {"src/train.py": "print('trains')"}))
    sha256 = sha256_of(data)
    path = bundle_path(desk.home, sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    config = "name: mine\nseed: 1\nworkload: {kind: script, path: /elsewhere/train.py}\n"
    body = {"config": config, "bundle": sha256, "script": "src/train.py"}
    with pytest.raises(Invalid, match=r"workload.path is src/other.py, but the code bundle has no such file"):
        desk.call("launch", body | {"script": "src/other.py"})
    with pytest.raises(NotFound, match="no code bundle 00000"):
        desk.call("launch", body | {"bundle": "0" * 64})
    assert (desk.runs(), desk.leftovers(), desk.cluster.jobs) == ([], [], {})
    [run] = desk.call("launch", body).runs
    files = RunFiles(desk.home / "runs" / run.run)
    assert (files.code / "src" / "train.py").read_text() == "print('trains')"
    assert f"bundle: {sha256}" in files.config.read_text()
    submission = Submission.model_validate_json(files.submission.read_text())
    assert submission.bundle == sha256


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "good"}', None),
        ('{"text": 3}', r"parent: sources.web: b.jsonl, line 1: field 'text' is a whole number"),
        ("", r"sources.web.path is _sources/\*.jsonl, but no file matches it"),
    ],
)
def test_sent_sources_are_in_the_run_and_their_records_were_checked(
    desk: Desk, tmp_path: Path, line: str, complaint: str | None
) -> None:
    files = {"_sources/a.jsonl": '{"text": "x"}\n', "_sources/b.jsonl": line} if line else {"other": "x"}
    data = bytes_of(folder_of(tmp_path / "data", files))
    path = bundle_path(desk.home, sha256_of(data))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    config = f'{GPT2}sources: {{web: {{format: jsonl, path: "_sources/*.jsonl", fields: {{text: text}}}}}}\n'
    body = {"config": config, "bundle": sha256_of(data)}
    if complaint is not None:
        with pytest.raises(Invalid, match=complaint):
            desk.call("launch", body)
        assert (desk.runs(), desk.leftovers(), desk.cluster.jobs) == ([], [], {})
        return
    [run] = desk.call("launch", body).runs
    of_run = RunFiles(desk.home / "runs" / run.run)
    there = located(own_config(of_run), of_run).sources["web"].path
    assert there is not None
    assert sorted(glob(there)) == [str(of_run.code / "_sources" / f"{name}.jsonl") for name in "ab"]


def test_secret_that_is_missing_or_unknown_is_named_and_leaves_nothing(desk: Desk, script: Path) -> None:
    config = config_of(script, "env: {HF_TOKEN: {secret: true}}\n")
    with pytest.raises(Invalid, match="needs HF_TOKEN"):
        desk.call("launch", {"config": config})
    with pytest.raises(Invalid, match="has no secret variable OTHER"):
        desk.call("launch", {"config": config, "secrets": {"HF_TOKEN": "x", "OTHER": "canary"}})
    assert (desk.runs(), desk.leftovers()) == ([], [])


def test_token_for_some_runs_begins_only_those(desk: Desk, script: Path) -> None:
    config = config_of(script)
    with pytest.raises(NotAllowed, match=r"for the runs team-\* only, and the new run would be mine-"):
        desk.call("launch", {"config": config}, runs=("team-*",))
    assert desk.runs() == []
    assert desk.call("launch", {"config": config, "run": "team-1"}, runs=("team-*",)).runs[0].run == "team-1"
    with pytest.raises(Conflict, match="exists already"):
        desk.call("launch", {"config": config, "run": "team-1"}, runs=("team-*",))


def test_resume_of_a_live_run_is_refused_with_what_to_do(desk: Desk) -> None:
    lay(desk.home, "run-1", 3, config=GPT2)
    desk.cluster.put("run-1", JobStatus.RUNNING)
    with pytest.raises(Conflict, match=r"is active as Ray job run-1 \(running\): there is nothing to resume"):
        desk.call("resume", {}, "run-1")
    with pytest.raises(NotFound, match="no run 'run-2'"):
        desk.call("resume", {}, "run-2")
    journal = Journal.open(RunFiles(desk.home / "runs" / "run-1").journal)
    pause = Command(uuid=UUID_1, author="bob", intent=Pause())
    settled = CommandSettled(uuid=UUID_1, status="applied", step=7)
    journal.append([CommandAccepted(command=pause), settled], "2026-01-01T00:00:00+00:00")
    journal.close()
    with pytest.raises(Conflict, match=r"is paused at step 7, not ended: release the pause with the command 'resume'"):
        desk.call("resume", {}, "run-1")
    assert desk.cluster.entrypoints == []


def test_back_is_checked_and_goes_to_the_job_by_a_file(desk: Desk) -> None:
    files = lay(desk.home, "run-1", 3, config=GPT2)
    with pytest.raises(NotFound, match="has no checkpoint 'no'"):
        desk.call("resume", {"back": {"kind": "rollback", "checkpoint": "no"}}, "run-1")
    back = {"kind": "rollback", "checkpoint": name_of(3), "branch": "again"}
    desk.call("resume", {"back": back, "reason": "it diverged"}, "run-1", uuid=UUID_1, role="admin")
    asked = JobRequest.model_validate_json(files.request(UUID_1).read_text())
    assert asked.resumes
    assert asked.back is not None
    assert (asked.back.author, asked.back.role, asked.back.reason) == ("ann-admin", "admin", "it diverged")
    assert "diverged" not in desk.cluster.entrypoints[0]
    desk.cluster.jobs["run-1"].status = JobStatus.FAILED
    with pytest.raises(Invalid, match=r"U\+001B"):
        desk.call("resume", {"back": back, "reason": "\x1b[2J"}, "run-1")


LIMITS = "limits: {lr: {min: 1.0e-5, max: 1.0e-2, max_factor: 10, roles: [admin]}, weight_decay: {max: 0.1}}\n"


def limited(home: Path, script: Path) -> RunFiles:
    config = config_of(script, LIMITS + "training: {learning_rate: 1.0e-3, weight_decay: 0.01}\n")
    return lay(home, "parent", 3, config=config)


@pytest.mark.parametrize(
    ("role", "request_body", "kind", "complaint"),
    [
        ("operator", {"overrides": ["training.learning_rate=2e-3"]}, NotAllowed, "lr may be changed by admin"),
        ("admin", {"overrides": ["training.learning_rate=2e-3"]}, None, ""),
        ("admin", {"overrides": ["training.learning_rate=1e-1"]}, Invalid, "at most 0.01"),
        ("admin", {"overrides": ["training.learning_rate=2e-5"]}, Invalid, "multiplied by 0.02"),
        ("operator", {"overrides": ["training.weight_decay=0.05"]}, None, ""),
        ("operator", {"overrides": ["training.weight_decay=0.5"]}, Invalid, "at most 0.1"),
        ("operator", {"overrides": ["limits.lr.max=1.0"]}, NotAllowed, "only an admin may change the section limits"),
        ("operator", {"overrides": ["limits={}"]}, NotAllowed, "only an admin may change the section limits"),
        ("admin", {"overrides": ["limits={}", "training.learning_rate=1e-1"]}, None, ""),
        ("admin", {"overrides": ["limits.lr.max=1e-4"]}, Invalid, "outside the config's own limits"),
        ("operator", {"firsts": [[{"kind": "set_learning_rate", "value": 1e-4}]]}, Invalid, "lr may be changed by"),
        ("admin", {"firsts": [[{"kind": "set_learning_rate", "value": 1e-1}]]}, Invalid, "at most 0.01"),
        ("admin", {"firsts": [[{"kind": "set_learning_rate", "value": 1e-4}]]}, None, ""),
        (
            "operator",
            {"firsts": [[], [{"kind": "set_knobs", "changes": [{"knob": "weight_decay", "value": 0.5}]}]]},
            Invalid,
            "at most 0.1",
        ),
    ],
)
def test_limits_of_the_parent_bind_a_fork(
    desk: Desk, script: Path, role: object, request_body: dict[str, object], kind: object, complaint: str
) -> None:
    limited(desk.home, script)
    body = {"checkpoint": name_of(3)} | request_body
    if kind is None:
        assert desk.call("fork", body, "parent", role=role).parent == "parent"  # type: ignore[arg-type]
        return
    with pytest.raises(kind, match=complaint):  # type: ignore[call-overload]
        desk.call("fork", body, "parent", role=role)  # type: ignore[arg-type]
    assert (desk.runs(), desk.cluster.jobs) == (["parent"], {})


def test_limits_bind_the_changes_of_a_rollback_of_an_ended_run(desk: Desk, script: Path) -> None:
    limited(desk.home, script)
    back = {
        "kind": "rollback",
        "checkpoint": name_of(3),
        "first": [{"kind": "set_learning_rate", "value": 1e-4}],
    }
    with pytest.raises(Invalid, match="lr may be changed by admin, not by operator"):
        desk.call("resume", {"back": back}, "parent")
    assert desk.cluster.jobs == {}
    desk.call("resume", {"back": back}, "parent", role="admin")


def test_initial_value_outside_the_own_limits_is_refused_at_launch(desk: Desk, script: Path) -> None:
    config = config_of(script, LIMITS + "training: {learning_rate: 0.5}\n")
    with pytest.raises(Invalid, match=r"training.learning_rate is outside the config's own limits: lr would be 0.5"):
        desk.call("launch", {"config": config})
    assert desk.runs() == []


def test_foreign_run_is_resumed_only_if_it_is_trusted(desk: Desk, script: Path) -> None:
    files = lay(desk.home, "run-1", 3, config=config_of(script))
    files.config_signature.unlink()
    for verb, body in (("resume", {}), ("fork", {"checkpoint": name_of(3)}), ("replay", {})):
        with pytest.raises(Refused, match="add --trust"):
            desk.call(verb, body, "run-1")  # type: ignore[arg-type]
    desk.call("resume", {"trust": True}, "run-1")
