"""The chat call, against endpoints that answer, answer garbage, answer late, or do not answer."""

import gzip
import json
import logging
import socket
from typing import Any

import pytest

from control_plane.agent.model import (
    DEFAULT_BASE_URL,
    DEFAULT_MODEL,
    ChatModel,
    Endpoint,
    ModelUnavailable,
    check_base_url,
    endpoint,
)
from control_plane.agent.policy import AgentAction, AgentBounds, Decision
from control_plane.core.model.errors import Invalid
from tests.agent.chat_server import Answer, Chat, chat_server, completion, drips, floods, hangs_up, never, says, sends
from tests.agent.simulated import observed

KEY = "sk-canary-3141592653589793"
SEEN = observed([3.0, 2.9, 2.8])
GOOD = '{"action": "halve", "reason": "the loss rises"}'


def ask(answer: Answer, timeout_s: float = 60.0) -> Decision:
    """One decision from an endpoint that answers so."""
    with chat_server(answer) as server:
        return ChatModel(Endpoint(server.base_url, "m", KEY, timeout_s)).propose(SEEN, AgentBounds())


@pytest.mark.parametrize("action", list(AgentAction))
def test_propose_a_good_answer_is_a_decision(action: AgentAction) -> None:
    text = json.dumps({"action": action.value, "reason": "so it is"})
    assert ask(says(text)) == Decision(action, "so it is")


def test_propose_an_answer_in_a_code_fence_is_a_decision() -> None:
    assert ask(says(f"```json\n{GOOD}\n```")).action is AgentAction.HALVE


def test_propose_asks_once_with_the_key_and_a_bounded_budget() -> None:
    with chat_server(says(GOOD)) as server:
        ChatModel(Endpoint(server.base_url, "m", KEY)).propose(SEEN, AgentBounds())
    (request,), (headers,) = server.requests, server.headers
    schema = request["response_format"]["json_schema"]["schema"]
    assert (request["response_format"]["type"], schema["additionalProperties"]) == ("json_schema", False)
    assert schema["properties"]["action"]["enum"] == ["double", "halve", "keep"]
    assert request["max_completion_tokens"] <= 2000
    assert headers["authorization"] == f"Bearer {KEY}"


def test_propose_to_an_endpoint_without_json_mode_asks_again_without_and_remembers() -> None:
    def old(chat: Chat, request: dict[str, Any]) -> None:
        known = "response_format" not in request
        chat.send(200 if known else 400, completion(GOOD) if known else b'{"error": "unknown field"}')

    with chat_server(old) as server:
        model = ChatModel(Endpoint(server.base_url, "m", KEY))
        assert [model.propose(SEEN, AgentBounds()).action for _ in range(2)] == [AgentAction.HALVE] * 2
    formats = [request.get("response_format", {}).get("type") for request in server.requests]
    assert formats == ["json_schema", "json_object", None, None]


HOSTILE: dict[str, Answer] = {
    "garbage": sends(b"\x00\xff<html>" * 100),
    "empty": sends(b""),
    "half JSON": sends(completion(GOOD)[:80]),
    "JSON of another kind": sends(b"[1, 2, 3]"),
    "null": sends(b"null"),
    "no choices": sends(b'{"choices": []}'),
    "choices of a wrong type": sends(b'{"choices": {"0": 1}}'),
    "deep nesting": sends(b"[" * 60_000),
    "content of a wrong type": says({"action": "halve"}),
    "no content": says(None),
    "empty content": says(""),
    "prose": says("I think you should halve it."),
    "half an answer": says('{"action": "hal'),
    "another action": says('{"action": "stop", "reason": "now"}'),
    "a command": says('{"kind": "stop", "save": false}'),
    "an action of a wrong type": says('{"action": 0.5, "reason": "x"}'),
    "a list of actions": says('{"action": ["halve"], "reason": "x"}'),
    "an action in capitals": says('{"action": "HALVE", "reason": "x"}'),
    "no reason": says('{"action": "halve"}'),
    "a reason of a wrong type": says('{"action": "halve", "reason": NaN}'),
    "extra keys": says('{"action": "halve", "reason": "x", "factor": 1e308}'),
    "a key twice": says('{"action": "double", "action": "halve", "reason": "x"}'),
    "a key twice, spelt differently": says('{"action": "double", "\\u0061ction": "halve", "reason": "x"}'),
    "two completions in one": sends(completion(GOOD)[:-1] + b', "choices": []}'),
    "two answers": says(GOOD + GOOD),
    "deep nesting in content": says("[" * 50_000),
    "refusal": says(None, refusal="I cannot help with that."),
    "tool calls": says(None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "stop"}}]),
    "redirect": sends(b"", 307, Location="http://127.0.0.1:1/v1"),
    "401": sends(b'{"error": {"message": "bad key %s"}}' % KEY.encode(), 401),
    "403": sends(b"", 403),
    "404": sends(b"", 404),
    "400 for ever": sends(b'{"error": "no"}', 400),
    "429": sends(b'{"error": "slow down"}', 429, Retry_After="3600"),
    "500": sends(b"oops", 500),
    "503": sends(b"x" * 10_000_000, 503),
    "10 MB": sends(b" " * 10_000_000),
    "10 MB of reason": says('{"action": "halve", "reason": "%s"}' % ("x" * 10_000_000)),
    "a packed bomb": sends(gzip.compress(b" " * 10_000_000), Content_Encoding="gzip"),
    "an endless flood": floods,
    "a cut connection": hangs_up,
}  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE)
def test_propose_whatever_else_comes_is_model_unavailable(answer: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ModelUnavailable) as failure:
        ask(HOSTILE[answer])
    assert failure.value.reason.isprintable()
    assert len(failure.value.reason) < 200
    assert KEY not in failure.value.reason + caplog.text + repr(failure.value.__cause__)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "the API key was rejected"), (429, "rate limit reached"), (500, "HTTP 500")]
)
def test_propose_a_refused_call_says_why(status: int, words: str) -> None:
    with pytest.raises(ModelUnavailable, match=words):
        ask(sends(b"", status))


@pytest.mark.parametrize("answer", [never, drips], ids=["never", "an endless drip"])
def test_propose_to_a_late_endpoint_gives_up_at_the_deadline(answer: Answer) -> None:
    with pytest.raises(ModelUnavailable, match=r"did not answer within 0\.4 s"):
        ask(answer, timeout_s=0.4)


def test_propose_to_nobody_is_model_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: the connection is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ModelUnavailable, match="could not be reached"):
            ChatModel(Endpoint(url, "m", KEY, 60.0)).propose(SEEN, AgentBounds())


def test_propose_a_redirect_is_not_followed() -> None:
    with chat_server(says(GOOD)) as trap, pytest.raises(ModelUnavailable):
        ask(sends(b"", 307, Location=f"{trap.base_url}/chat/completions"))
    assert trap.requests == []


def test_propose_a_model_that_repeats_the_key_is_not_quoted() -> None:
    assert KEY not in ask(says(json.dumps({"action": "keep", "reason": f"your key is {KEY}"}))).reason


def test_endpoint_without_a_key_is_none() -> None:
    assert endpoint({"OPENAI_BASE_URL": "https://models.example/v1"}) is None


def test_endpoint_with_a_key_has_defaults_and_hides_it() -> None:
    found = endpoint({"OPENAI_API_KEY": f" {KEY}\n"})
    assert found is not None
    assert (found.base_url, found.model, found.key) == (DEFAULT_BASE_URL, DEFAULT_MODEL, KEY)
    assert KEY not in repr(found)


@pytest.mark.parametrize("key", ["sk-ä", "sk a", "sk\na", "sk\x00"])
def test_endpoint_with_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(Invalid) as refusal:
        endpoint({"OPENAI_API_KEY": key})
    assert key not in refusal.value.reason


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://models.example:8443",
        "http://127.0.0.1:8000/v1",
        "http://localhost:11434/v1",
        "http://[::1]:8000/v1",
    ],
)
def test_base_url_over_https_or_on_the_loopback_is_taken(url: str) -> None:
    check_base_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com/v1",
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/v1",
        "https://[fe80::1]/v1",
        "http://2130706433/v1",
        "http://0x7f.1/v1",
        "http://127.1/v1",
        "http://0.0.0.0/v1",
        "http://localhost.evil.example/v1",
        "http://127.0.0.1@evil.example/v1",
        "http://evil.example\\@127.0.0.1/v1",
        "http://127.0.0.1#@evil.example/v1",
        "https://user:password@models.example/v1",
        "https://models.example/v1?key=1",
        "https://models.example/\nv1",
        "https://[::1",
        "https://models.example:99999/v1",
        "ftp://models.example",
        "file:///etc/passwd",
        "models.example",
        "https://",
        "javascript:alert(1)",
    ],
)
def test_base_url_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="use https"):
        endpoint({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url})
