"""Routes that begin and continue runs: who may, what is passed on, and what is refused before anything is asked."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from control_plane.api.launching import (
    MAX_CONFIG_CHARS,
    MAX_FORKS,
    ForkRequest,
    JobView,
    LaunchRequest,
    ReplayRequest,
    ResumeRequest,
    Submission,
)
from control_plane.client import SteerwayClient
from control_plane.config import Role
from control_plane.core.model.errors import Conflict, NotFound, Unavailable
from control_plane.core.model.intents import Rollback
from control_plane.gateway.app import MAX_BODY_BYTES
from control_plane.gateway.tokens import TokenBook, TokenRecord, digest
from tests.gateway.conftest import Rig
from tests.gateway.rig import RUN, TOKENS, LiveGateway, bearer, token_book

UUID_1 = UUID(int=1)


def test_launch_is_passed_on_with_the_owner_of_the_token(rig: Rig) -> None:
    body = {"config": "name: x", "secrets": {"HF_TOKEN": "canary-secret"}, "uuid": str(UUID_1)}
    answer = rig.post("/runs", json=body)
    assert (answer.status_code, answer.headers["Location"]) == (202, "/api/v1/runs/new-run")
    assert answer.json()["runs"] == [{"run": "new-run", "job": "new-run", "queued_because": None}]
    [(verb, run, request, by)] = rig.launches.asked
    assert (verb, run, request.uuid, by.id, by.role, by.runs) == (
        "launch",
        None,
        UUID_1,
        "test-operator",
        "operator",
        None,
    )
    assert request.secrets == {"HF_TOKEN": "canary-secret"}
    assert "canary" not in f"{request!r} {answer.text}"


def test_idempotency_key_is_the_uuid_and_must_agree_with_the_body(rig: Rig) -> None:
    headers = {"Idempotency-Key": str(UUID_1)}
    assert rig.post("/runs", headers=headers, json={"config": "x"}).status_code == 202
    assert rig.launches.asked[0][2].uuid == UUID_1
    assert rig.post("/runs", headers=headers, json={"config": "x", "uuid": str(uuid4())}).status_code == 422
    assert rig.post("/runs", headers={"Idempotency-Key": "x"}, json={"config": "x"}).status_code == 422
    assert len(rig.launches.asked) == 1


@pytest.mark.parametrize("role", ["viewer", "agent"])
@pytest.mark.parametrize("path", ["/runs", f"/runs/{RUN}/resume", f"/runs/{RUN}/fork", f"/runs/{RUN}/replay"])
def test_viewers_and_agents_start_nothing(rig: Rig, role: Role, path: str) -> None:
    answer = rig.post(path, role, json={"config": "x"})
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/not-allowed")
    assert rig.launches.asked == []


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no config": ("/runs", {}, "body.config"),
    "config is no text": ("/runs", {"config": {}}, "body.config"),
    "config is too long": ("/runs", {"config": "x" * (MAX_CONFIG_CHARS + 1)}, "body.config"),
    "unknown member": ("/runs", {"config": "x", "intent": {}}, "allowed are uuid, secrets, priority"),
    "script is absolute": ("/runs", {"config": "x", "script": "/etc/passwd"}, "relative path inside the bundle"),
    "script leads out": ("/runs", {"config": "x", "script": "a/../../b.py"}, "relative path inside the bundle"),
    "script with a backslash": ("/runs", {"config": "x", "script": "..\\b.py"}, "relative path inside the bundle"),
    "script with a NUL": ("/runs", {"config": "x", "script": "a\x00.py"}, "control characters"),
    "script is empty": ("/runs", {"config": "x", "script": ""}, "body.script"),
    "bundle is no hash": ("/runs", {"config": "x", "bundle": "../../x"}, "body.bundle"),
    "run is a path": ("/runs", {"config": "x", "run": "../tokens"}, "body.run"),
    "run with capitals": ("/runs", {"config": "x", "run": "Run"}, "body.run"),
    "source that moves the cursor": ("/runs", {"config": "x", "source": "a\x1b[2J"}, "control characters"),
    "file name with a line end": ("/runs", {"config": "x", "files": {"a\nb": ""}}, "control characters"),
    "too many files": ("/runs", {"config": "x", "files": {f"{n}": "" for n in range(99)}}, "body.files"),
    "too many overrides": ("/runs", {"config": "x", "overrides": ["a=1"] * 999}, "body.overrides"),
    "a secret that is no text": ("/runs", {"config": "x", "secrets": {"A": 1}}, "body.secrets"),
    "back is another command": (f"/runs/{RUN}/resume", {"back": {"kind": "pause"}}, "body.back"),
    "back without a kind": (f"/runs/{RUN}/resume", {"back": {}}, "body.back"),
    "no checkpoint": (f"/runs/{RUN}/fork", {}, "body.checkpoint"),
    "too many forks": (f"/runs/{RUN}/fork", {"checkpoint": "c", "firsts": [[]] * (MAX_FORKS + 1)}, "body.firsts"),
    "a fork that begins with a stop": (
        f"/runs/{RUN}/fork",
        {"checkpoint": "c", "firsts": [[{"kind": "stop"}]]},
        "body.firsts",
    ),
    "replay until nothing": (f"/runs/{RUN}/replay", {"until_step": 0}, "body.until_step"),
    "replay until text": (f"/runs/{RUN}/replay", {"until_step": "3"}, "body.until_step"),
    "uuid is none": ("/runs", {"config": "x", "uuid": "../x"}, "body.uuid"),
}


@pytest.mark.parametrize(("path", "body", "complaint"), BAD.values(), ids=BAD.keys())
def test_body_that_is_wrong_is_refused_with_the_place_and_asks_nobody(
    rig: Rig, path: str, body: dict[str, Any], complaint: str
) -> None:
    answer = rig.post(path, json=body)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid")
    assert complaint in answer.json()["detail"]
    assert rig.launches.asked == []


def test_bodies_are_strict_json_of_at_most_256_kib(rig: Rig) -> None:
    assert rig.post("/runs", content='{"config": "x", "config": "y"}').status_code == 422
    assert rig.post("/runs", content="{").status_code == 422
    assert rig.post("/runs", json={"config": "x", "files": {"a": "x" * MAX_BODY_BYTES}}).status_code == 413
    assert rig.launches.asked == []


def test_unknown_run_is_not_found_and_a_refusal_keeps_its_sentence(rig: Rig) -> None:
    for verb, body in (("resume", {}), ("fork", {"checkpoint": "c"}), ("replay", {})):
        assert rig.post(f"/runs/run-2/{verb}", json=body).status_code == 404
    assert rig.get("/runs/run-2/job").status_code == 404
    rig.launches.error = Conflict("run run-1 is paused at step 7", step=7)
    answer = rig.post(f"/runs/{RUN}/resume", json={})
    assert (answer.status_code, answer.json()["detail"], answer.json()["step"]) == (
        409,
        "run run-1 is paused at step 7",
        7,
    )
    rig.launches.error = RuntimeError("canary")
    answer = rig.post(f"/runs/{RUN}/resume", json={})
    assert (answer.status_code, "canary" in answer.text) == (500, False)


def test_run_whose_driver_was_not_submitted_here_is_not_resumed_while_it_reports(rig: Rig) -> None:
    files = rig.runs.files(RUN)
    submission = Submission(uuid=UUID_1, owner="ray-job", role="operator", submitted_at="x", via="ray-job")
    files.submission.write_text(submission.model_dump_json())
    answer = rig.post(f"/runs/{RUN}/resume", json={})
    assert (answer.status_code, "the job that began it reported 0 s ago" in answer.json()["detail"]) == (409, True)
    assert rig.launches.asked == []
    files.submission.write_text(submission.model_copy(update={"via": "gateway"}).model_dump_json())
    assert rig.post(f"/runs/{RUN}/resume", json={}).status_code == 202


@pytest.fixture
def scoped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The gateway with an operator of the runs `run-*` and an admin of `other-*`."""
    more = (
        TokenRecord(id="here", role="operator", sha256=digest("canary-here"), runs=("run-*",)),
        TokenRecord(id="elsewhere", role="admin", sha256=digest("canary-elsewhere"), runs=("other-*",)),
    )
    book = TokenBook(tokens=(*token_book().tokens, *more))
    monkeypatch.setattr("tests.gateway.conftest.token_book", lambda: book)
    monkeypatch.setitem(TOKENS, "here", "canary-here")  # type: ignore[arg-type]
    monkeypatch.setitem(TOKENS, "elsewhere", "canary-elsewhere")  # type: ignore[arg-type]
    rig: Rig = request.getfixturevalue("rig")
    return rig


def test_token_for_some_runs_begins_and_continues_only_those(scoped: Rig) -> None:
    here: Any = "here"
    elsewhere: Any = "elsewhere"
    assert scoped.post("/runs", here, json={"config": "x", "run": "run-9"}).status_code == 202
    assert scoped.launches.asked[0][3].runs == ("run-*",)
    answer = scoped.post("/runs", here, json={"config": "x", "run": "other-9"})
    assert (answer.status_code, "this token is for the runs run-* only" in answer.json()["detail"]) == (403, True)
    for path, body in (("resume", {}), ("fork", {"checkpoint": "c"}), ("replay", {})):
        assert scoped.post(f"/runs/{RUN}/{path}", elsewhere, json=body).status_code == 404
        assert scoped.post(f"/runs/{RUN}/{path}", here, json=body).status_code == 202
    assert scoped.get(f"/runs/{RUN}/job", elsewhere).status_code == 404
    adoption = {"kind": "adopt_checkpoint", "run": "other-1", "branch": "b"}
    assert scoped.post(f"/runs/{RUN}/resume", here, json={"back": adoption}).status_code == 404


def test_client_launches_and_asks_for_the_job(live: LiveGateway) -> None:
    with SteerwayClient(live.url, TOKENS["operator"]) as client:
        assert client.launch(LaunchRequest(config="name: x", secrets={"A": "b"})).runs[0].run == "new-run"
        back = Rollback(checkpoint="c")
        assert client.resume(RUN, ResumeRequest(back=back, reason="why")).runs[0].run == RUN
        assert client.fork(RUN, ForkRequest(checkpoint="c")).runs[0].run == "new-run"
        assert client.replay(RUN, ReplayRequest(until_step=3)).runs[0].run == "new-run"
        client.replay(RUN, ReplayRequest(without=UUID(int=7), placebo=1e-6))
        assert live.launches.asked[-1][2].without == UUID(int=7)
        live.launches.jobs[RUN] = JobView(run=RUN, job=RUN, status="failed", message="exit code 1")
        job = client.job(RUN)
        assert (job.status, job.message, job.is_alive) == ("failed", "exit code 1", False)
        live.launches.error = NotFound("run run-1 has no checkpoint 'c'")
        with pytest.raises(NotFound, match="no checkpoint"):
            client.fork(RUN, ForkRequest(checkpoint="c"))
    asked = [(verb, run) for verb, run, _, _ in live.launches.asked]
    assert asked == [("launch", None), ("resume", RUN), ("fork", RUN), *[("replay", RUN)] * 2, ("fork", RUN)]
    resumed = live.launches.asked[1][2]
    assert isinstance(resumed, ResumeRequest)
    assert (resumed.back, resumed.reason) == (back, "why")


def test_client_repeats_an_unanswered_launch_with_the_same_uuid(live: LiveGateway) -> None:
    live.launches.error = Unavailable("Ray does not answer")
    with SteerwayClient(live.url, TOKENS["operator"]) as client, pytest.raises(Unavailable, match="Ray does not"):
        client.launch(LaunchRequest(config="x", uuid=UUID_1))
    assert [request.uuid for _, _, request, _ in live.launches.asked] == [UUID_1] * 2


def test_method_not_allowed_names_every_method_of_the_path(rig: Rig) -> None:
    answer = rig.web.put("/api/v1/runs", headers=bearer())
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, POST")
