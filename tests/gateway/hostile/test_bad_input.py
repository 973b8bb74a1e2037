"""Whatever is wrong with a request is said in a problem, and changes nothing."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from control_plane.core.model.errors import Unavailable
from control_plane.core.rules.admission import MAX_PENDING_COMMANDS
from control_plane.gateway.app import MAX_BODY_BYTES
from tests.core import examples
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, RUN, DeadHandle, bearer

COMMANDS = f"/runs/{RUN}/commands"
CANARY = "canary-in-the-input"


def rate(value: str) -> str:
    """The text of a command whose learning rate is this text."""
    return f'{{"intent": {{"kind": "set_learning_rate", "value": {value}}}}}'


def changes(text: str) -> str:
    """The text of a command with these changes of knobs."""
    return f'{{"intent": {{"kind": "set_knobs", "changes": [{text}]}}}}'


BAD_BODIES = {
    "nothing": ("", "body", "JSON object"),
    "half an object": ('{"intent": ', "body", "invalid JSON"),
    "not an object": ("[1]", "body", "JSON object"),
    "not UTF-8": (b'{"reason": "\xff\xfe"}', "body", "UTF-8"),
    "too deep": ("[" * 100_000, "body", "nested"),
    "NaN": (rate("NaN"), "body", "NaN is not valid in JSON; use a finite number"),
    "infinity": (rate("Infinity"), "body", "Infinity is not valid in JSON"),
    "minus infinity": (rate("-Infinity"), "body", "-Infinity is not valid in JSON"),
    "overflow": (rate("1e999"), "body", "too large"),
    "endless integer": (rate("1" * 5000), "body", "too many digits"),
    "same member twice": ('{"reason": "a", "reason": "b"}', "body", "duplicate key"),
    "NaN where nobody looks": ('{"intent": {"kind": "pause"}, "other": NaN}', "body", "NaN"),
    "no intent": ("{}", "body.intent", "required"),
    "no kind": ('{"intent": {}}', "body.intent", "allowed are set_learning_rate, set_knobs"),
    "unknown kind": (f'{{"intent": {{"kind": "{CANARY}"}}}}', "body.intent", "allowed are set_learning_rate, set_kn"),
    "negative rate": (rate("-1"), "body.intent.value", "greater than 0"),
    "huge rate": (rate("11"), "body.intent.value", "less than or equal to 10"),
    "rate as text": (rate(f'"{CANARY}"'), "body.intent.value", "number"),
    "rate as truth": (rate("true"), "body.intent.value", "number"),
    "neither value nor factor": ('{"intent": {"kind": "set_learning_rate"}}', "body.intent", "either 'value'"),
    "unknown schedule": (rate('1, "schedule": "bend"'), "body.intent.schedule", "'keep' or 'hold'"),
    "unknown member of an intent": (
        f'{{"intent": {{"kind": "stop", "token": "{CANARY}"}}}}',
        "body.intent.token",
        "allowed are kind, save",
    ),
    "author in the body": (
        f'{{"intent": {{"kind": "pause"}}, "author": "{CANARY}"}}',
        "body.author",
        "allowed are intent, uuid, reason, not_before_step, not_after_step, based_on_seq",
    ),
    "not a uuid": (f'{{"intent": {{"kind": "pause"}}, "uuid": "{CANARY}"}}', "body.uuid", "UUID"),
    "negative step": ('{"intent": {"kind": "pause"}, "not_before_step": -1}', "body.not_before_step", "equal to 0"),
    "long reason": (f'{{"intent": {{"kind": "pause"}}, "reason": "{"x" * 501}"}}', "body.reason", "500"),
    "knob without a change": (changes(""), "body.intent.changes", "at least 1 item"),
    "knob with nothing to become": (changes('{"knob": "x"}'), "body.intent.changes.0", "either 'value' or 'factor'"),
    "knob as text": (changes(f'{{"knob": "x", "value": "{CANARY}"}}'), "body.intent.changes.0.value", "true, false"),
    "knob as a list of text": (changes('{"knob": "x", "value": ["a"]}'), "body.intent.changes.0.value", "1 to 8"),
    "knob of half a group": (
        changes('{"knob": "x", "value": 1, "group": 0.5}'),
        "body.intent.changes.0.group",
        "an index from 0, or a name",
    ),
    "knob named twice": (changes('{"knob": "x", "value": 1}, {"knob": "x", "value": 2}'), "body.intent", "twice"),
    "unknown member of a change": (
        changes('{"knob": "x", "value": 1, "by": 2}'),
        "body.intent.changes.0.by",
        "allowed are knob, value, factor, group",
    ),
    "argument of no kind": (
        '{"intent": {"kind": "run_action", "name": "x", "arguments": {"all": []}}}',
        "body.intent.arguments.all",
        "a finite number, true or false",
    ),
    "cancel of no uuid": ('{"intent": {"kind": "cancel", "command": "x"}}', "body.intent.command", "UUID"),
    "unknown shape": ('{"intent": {"kind": "set_schedule", "shape": "x"}}', "body.intent.shape", "'constant'"),
    "position of no number": ('{"intent": {"kind": "pause"}, "based_on_seq": true}', "body.based_on_seq", "integer"),
    "lone surrogate": ('{"intent": {"kind": "pause"}, "reason": "\\ud800"}', "body.reason", "unicode"),
}


def problem_in(answer: Any, status: int, slug: str) -> dict[str, Any]:
    """The problem in this answer."""
    problem: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["type"]) == (status, status, f"/problems/{slug}")
    assert problem["title"]
    assert problem["detail"]
    assert CANARY not in answer.text
    assert "Traceback" not in answer.text
    return problem


@pytest.mark.parametrize(("body", "where", "what"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bad_body_is_answered_with_where_and_what(rig: Rig, body: str | bytes, where: str, what: str) -> None:
    seq = rig.get(f"/runs/{RUN}").json()["seq"]
    answer = rig.post(COMMANDS, content=body, headers={"Content-Type": "application/json"})
    problem = problem_in(answer, 422, "invalid")
    first = problem["errors"][0]
    assert (first["where"], what in first["what"]) == (where, True), first
    assert what in problem["detail"]
    assert rig.get(f"/runs/{RUN}").json()["seq"] == seq


def test_body_that_is_wrong_in_many_ways_gets_a_short_answer(rig: Rig) -> None:
    members = {f"m{number}" * 100: CANARY for number in range(500)}
    answer = rig.post(COMMANDS, json=members)
    assert "and 491 more" in problem_in(answer, 422, "invalid")["detail"]
    assert len(answer.content) < 20_000


def test_body_of_another_type_is_asked_for_as_json(rig: Rig) -> None:
    answer = rig.post(COMMANDS, content="intent=pause", headers={"Content-Type": "text/plain"})
    assert "Content-Type: application/json" in problem_in(answer, 422, "invalid")["detail"]


BAD_REQUESTS = {
    "no such address": ("GET", "/nothing", 404, "not-found"),
    "trailing slash": ("GET", "/runs/", 404, "not-found"),
    "no such method": ("PUT", f"/runs/{RUN}", 405, "method-not-allowed"),
    "no such run": ("GET", "/runs/run-2", 404, "not-found"),
    "malformed run": ("GET", "/runs/Run.1", 422, "invalid"),
    "run that climbs": ("GET", "/runs/%2e%2e%2fetc/journal", 404, "not-found"),
    "no such command": ("GET", f"{COMMANDS}/{uuid4()}", 404, "not-found"),
    "malformed command": ("GET", f"{COMMANDS}/{CANARY}", 422, "invalid"),
    "negative position": ("GET", f"/runs/{RUN}/journal?after=-1", 422, "invalid"),
    "position of text": ("GET", f"/runs/{RUN}/journal?after={CANARY}", 422, "invalid"),
    "too many entries": ("GET", f"/runs/{RUN}/journal?limit=1001", 422, "invalid"),
    "no entries": ("GET", f"/runs/{RUN}/journal?limit=0", 422, "invalid"),
    "long wait": ("GET", f"/runs/{RUN}/journal?wait_s=31", 422, "invalid"),
    "endless wait": ("GET", f"/runs/{RUN}/journal?wait_s=inf", 422, "invalid"),
    "wait of no number": ("GET", f"/runs/{RUN}/journal?wait_s=nan", 422, "invalid"),
    "too many points": ("GET", f"/runs/{RUN}/metrics?limit=20001", 422, "invalid"),
    "too many names": ("GET", f"/runs/{RUN}/metrics?{'&'.join(['name=a'] * 65)}", 422, "invalid"),
    "no such log": ("GET", f"/runs/{RUN}/logs?source=rank-9", 404, "not-found"),
    "log that climbs": ("GET", f"/runs/{RUN}/logs?source=../../etc/passwd", 404, "not-found"),
    "too many lines": ("GET", f"/runs/{RUN}/logs?lines=2001", 422, "invalid"),
}


@pytest.mark.parametrize(("method", "path", "status", "slug"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_request_is_answered_with_a_problem(rig: Rig, method: str, path: str, status: int, slug: str) -> None:
    problem_in(rig.web.request(method, API + path, headers=bearer()), status, slug)


@pytest.mark.parametrize("length", ["9" * 5_000, "9" * 20, "-1", "x", "", "\u00b2"])
@pytest.mark.parametrize("role", [None, "operator"])
def test_length_that_is_no_number_or_a_huge_one_is_too_large(rig: Rig, role: Any, length: str) -> None:
    said = {"Content-Length": length.encode("latin-1"), "Transfer-Encoding": "chunked"}
    answer = rig.web.post(API + COMMANDS, headers=(bearer(role) if role else {}) | said, content=b"{}")
    problem_in(answer, 413 if role else 401, "too-large" if role else "not-allowed")


def test_link_among_the_logs_is_not_followed(rig: Rig) -> None:
    logs = rig.runs.files(RUN).logs
    logs.mkdir()
    (logs.parent / "secret").write_text(CANARY)
    (logs / "driver.log").symlink_to(logs.parent / "secret")
    problem_in(rig.get(f"/runs/{RUN}/logs"), 404, "not-found")


def test_uuids_that_differ_are_refused(rig: Rig) -> None:
    body = {"intent": {"kind": "pause"}, "uuid": str(uuid4())}
    answer = rig.post(COMMANDS, json=body, headers={"Idempotency-Key": str(uuid4())})
    assert "differ" in problem_in(answer, 422, "invalid")["detail"]


def test_idempotency_key_that_is_no_uuid_is_refused(rig: Rig) -> None:
    answer = rig.post(COMMANDS, json={"intent": {"kind": "pause"}}, headers={"Idempotency-Key": CANARY})
    assert "UUID" in problem_in(answer, 422, "invalid")["detail"]


def test_command_that_the_run_refuses_says_why(rig: Rig) -> None:
    answer = rig.post(COMMANDS, json={"intent": {"kind": "resume"}})
    assert "is not paused" in problem_in(answer, 409, "conflict")["detail"]
    unknown = {"kind": "set_learning_rate", "value": 1e-4, "group": 7}
    answer = rig.post(COMMANDS, json={"intent": unknown})
    assert problem_in(answer, 404, "not-found")["groups"] == ["decay", "no_decay"]


def test_text_that_a_terminal_would_obey_is_refused_with_a_sentence(rig: Rig) -> None:
    """The least trusted role may send it: nobody's terminal and nobody's page shall be its."""
    for reason in ("\x1b]0;owned\x07", "\u202egnorw", "first\nforged", "\x9b2J"):
        body = {"intent": {"kind": "save_checkpoint"}, "reason": reason}
        said = problem_in(rig.post(COMMANDS, "agent", json=body), 422, "invalid")["detail"]
        assert said.startswith("the reason holds U+")
        assert said.isprintable()


def test_queue_that_is_full_says_when_to_come_back(rig: Rig) -> None:
    for number in range(MAX_PENDING_COMMANDS):
        one_of_two = examples.command(number).model_copy(update={"author": f"author {number % 2}"})
        rig.call(rig.server.submit, one_of_two)
    answer = rig.post(COMMANDS, json={"intent": {"kind": "evaluate"}})
    assert problem_in(answer, 429, "overloaded")["limit"] == MAX_PENDING_COMMANDS
    assert int(answer.headers["Retry-After"]) > 0


def test_control_server_that_is_away_is_unavailable(rig: Rig) -> None:
    rig.runs.handles["run-2"] = DeadHandle(Unavailable("the control server restarts"))  # type: ignore[assignment]
    answer = rig.get("/runs/run-2")
    assert problem_in(answer, 503, "unavailable")["detail"] == "the control server restarts"
    assert int(answer.headers["Retry-After"]) > 0


def test_failure_that_nobody_foresaw_shows_nothing_of_itself(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.runs.handles["run-2"] = DeadHandle(ZeroDivisionError(CANARY))  # type: ignore[assignment]
    problem_in(rig.get("/runs/run-2"), 500, "error")
    assert "ZeroDivisionError" in caplog.text


def oversize() -> Iterator[bytes]:
    """A body that is too large by one byte, without saying so beforehand."""
    yield b" " * MAX_BODY_BYTES
    yield b" "


def test_body_of_the_greatest_size_is_read(rig: Rig) -> None:
    body = json.dumps({"intent": {"kind": "pause"}}).ljust(MAX_BODY_BYTES)
    assert rig.post(COMMANDS, content=body, headers={"Content-Type": "application/json"}).status_code == 202


@pytest.mark.parametrize("streamed", [False, True])
def test_body_that_is_too_large_is_refused(rig: Rig, streamed: bool) -> None:
    content = oversize() if streamed else b"".join(oversize())
    answer = rig.post(COMMANDS, content=content, headers={"Content-Type": "application/json"})
    assert problem_in(answer, 413, "too-large")["limit"] == MAX_BODY_BYTES


def test_body_size_that_is_a_lie_is_refused(rig: Rig) -> None:
    answer = rig.post(COMMANDS, content=b"", headers={"Content-Length": "99999999999"})
    problem_in(answer, 413, "too-large")


HOSTS = {
    "ours": ("gateway.test", 200),
    "ours with a port": ("gateway.test:9", 200),
    "ours in capitals": ("GATEWAY.TEST", 200),
    "IPv6": ("[::1]:8700", 200),
    "rebound": ("evil.test", 421),
    "ours in front": ("gateway.test.evil.test", 421),
    "empty": ("", 421),
}


@pytest.mark.parametrize(("host", "status"), HOSTS.values(), ids=HOSTS.keys())
def test_host_must_be_one_of_ours(rig: Rig, host: str, status: int) -> None:
    answer = rig.web.get(f"{API}/runs", headers=bearer() | {"Host": host})
    assert answer.status_code == status
    if status != 200:
        problem_in(answer, status, "wrong-host")
