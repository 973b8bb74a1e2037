"""The WebSocket: every entry once and in order, and the ways in which a connection ends."""

import json
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from control_plane.api.messages import Snapshot
from control_plane.core.model.errors import Unavailable
from control_plane.gateway import stream
from tests.core import examples
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, HOST, ORIGIN, RUN, TOKENS, DeadHandle

AT = f"ws://{HOST}"
STREAM = f"{AT}{API}/runs/{RUN}/stream"


def first_words(web: Any, role: str = "viewer") -> None:
    """Say who watches."""
    web.send_json({"token": TOKENS[role]})  # type: ignore[index]


def next_entry(web: Any) -> dict[str, Any]:
    """The next entry, whatever progress is told in between."""
    while (message := web.receive_json())["type"] != "entry":
        pass
    entry: dict[str, Any] = message["entry"]
    return entry


def end_of(rig: Rig, path: str = STREAM, first: str | None = None, **headers: str) -> tuple[int, str]:
    """How the connection ends, if this is the first message."""
    with rig.web.websocket_connect(path, headers=headers) as web:
        if first is not None:
            web.send_text(first)
        with pytest.raises(WebSocketDisconnect) as closed:
            list(iter(web.receive_json, None))
    return closed.value.code, closed.value.reason


def test_stream_from_the_start_tells_the_whole_journal_and_then_progress(rig: Rig) -> None:
    with rig.web.websocket_connect(STREAM) as web:
        first_words(web)
        assert [next_entry(web)["seq"] for _ in range(3)] == [1, 2, 3]
        assert Snapshot.model_validate(web.receive_json()["snapshot"]).step == 4


def test_stream_is_resumed_without_loss_or_repetition(rig: Rig) -> None:
    heard: list[int] = []
    number = 0
    while len(heard) < 40:
        with rig.web.websocket_connect(
            f"{STREAM}?after={heard[-1] if heard else 0}", headers={"Origin": ORIGIN}
        ) as web:
            first_words(web)
            for _ in range(7):
                number += 1
                rig.call(rig.server.submit, examples.command(number))
                heard.append(next_entry(web)["seq"])
    assert heard == list(range(1, len(heard) + 1))


def test_stream_of_a_run_that_is_over_ends_after_its_last_entry(rig: Rig) -> None:
    rig.call(rig.server.close, "finished", None)
    with rig.web.websocket_connect(STREAM) as web:
        first_words(web)
        assert [next_entry(web)["type"] for _ in range(4)][-1] == "RunClosed"
        assert web.receive_json()["snapshot"]["status"] == "finished"
        with pytest.raises(WebSocketDisconnect) as closed:
            web.receive_json()
    assert closed.value.code == 1000


def test_stream_spells_a_nan_as_json_can(rig: Rig) -> None:
    with rig.web.websocket_connect(f"{STREAM}?after=3") as web:
        first_words(web)
        text = web.receive_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["snapshot"]["latest"]["loss"] == "NaN"


FIRST_MESSAGES = {
    "unknown token": '{"token": "nobody"}',
    "no object": '"token"',
    "no token": "{}",
    "token of another type": '{"token": 7}',
    "not JSON": "token",
    "nested": "[" * 4000,
    "empty": "",
}


@pytest.mark.parametrize("first", FIRST_MESSAGES.values(), ids=FIRST_MESSAGES.keys())
def test_stream_without_a_token_ends_with_4401(rig: Rig, first: str) -> None:
    assert end_of(rig, first=first)[0] == 4401


def test_stream_takes_no_token_from_the_address_or_a_header(rig: Rig) -> None:
    token = TOKENS["admin"]
    code, reason = end_of(rig, f"{STREAM}?token={token}", first="{}", Authorization=f"Bearer {token}")
    assert (code, token in reason) == (4401, False)


def test_stream_that_stays_silent_ends_with_4401(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AUTH_DEADLINE_S", 0.1)
    code, reason = end_of(rig)
    assert (code, "0.1 s" in reason) == (4401, True)


def test_stream_of_a_page_of_strangers_ends_with_4403(rig: Rig) -> None:
    assert end_of(rig, first=json.dumps({"token": TOKENS["viewer"]}), Origin="http://evil.test")[0] == 4403


def test_stream_to_another_host_is_not_accepted(rig: Rig) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        rig.web.websocket_connect(STREAM, headers={"Host": "evil.test"}),
    ):
        raise AssertionError("it was accepted")
    assert closed.value.code == 4403
    assert HOST not in closed.value.reason


def test_stream_of_no_run_ends_with_4404(rig: Rig) -> None:
    first = json.dumps({"token": TOKENS["viewer"]})
    assert end_of(rig, f"{AT}{API}/runs/run-2/stream", first)[0] == 4404
    assert end_of(rig, f"{AT}{API}/runs/Run.2/stream", first)[0] == 4404


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "9" * 17, "\N{SUPERSCRIPT TWO}"])
def test_stream_after_no_position_ends_with_4422(rig: Rig, after: str) -> None:
    assert end_of(rig, f"{STREAM}?after={after}", json.dumps({"token": TOKENS["viewer"]}))[0] == 4422


def test_stream_of_a_run_that_is_away_says_come_again(rig: Rig) -> None:
    rig.runs.handles["run-2"] = DeadHandle(Unavailable("it restarts"))  # type: ignore[assignment]
    first = json.dumps({"token": TOKENS["viewer"]})
    assert end_of(rig, f"{AT}{API}/runs/run-2/stream", first) == (1013, "it restarts")


def test_streams_of_one_token_are_bounded_and_given_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.dumps({"token": TOKENS["viewer"]})
    held = [rig.web.websocket_connect(STREAM).__enter__() for _ in range(stream.MAX_STREAMS_PER_TOKEN)]
    for web in held:
        first_words(web)
        next_entry(web)
    assert end_of(rig, first=first)[0] == 4429
    for web in held:
        web.__exit__(None, None, None)
    monkeypatch.setattr(stream, "MAX_STREAM_BYTES", 0)
    assert end_of(rig, first=first)[0] == 1013


def test_stream_that_has_carried_enough_says_come_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_BYTES", 1000)
    assert end_of(rig, first=json.dumps({"token": TOKENS["viewer"]}))[0] == 1013


def test_message_that_is_too_big_ends_the_stream(rig: Rig) -> None:
    assert end_of(rig, first="x" * (stream.MAX_MESSAGE_CHARS + 1))[0] == 1009
