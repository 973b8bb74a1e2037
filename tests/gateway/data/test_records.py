"""Records sent over HTTP: durable, announced once by one command, and shown with what has come of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest

from control_plane.api.data_views import SourceView
from control_plane.api.messages import Report
from control_plane.client import SteerwayClient
from control_plane.core.model.data import FIRST_STEP, MIXTURE
from control_plane.core.model.errors import Invalid, NotFound
from control_plane.core.model.intents.data import AddShards
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.gateway.data.announcer import ShardAnnouncer
from tests.core import examples
from tests.gateway.rig import API, KNOBS, RUN, TOKENS, LiveGateway, bearer, live_gateway, settle

CONFIG = """
sources:
  web: {format: text, path: "web.txt"}
  fresh: {format: jsonl, live: true, weight: 0.5, fields: {text: {type: text}}}
"""
READ_BACK = {
    "web": {"weight": 1.0, "share": 1.0, "records": 10},
    "fresh": {"weight": 0.5, "share": 0.0, "records": 0},
}
PATH = f"{API}/runs/{RUN}/data/fresh"
LINES = {"Content-Type": "application/jsonl"}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path / "runs") as live:
        live.runs.files(RUN).config.write_text(CONFIG)
        start = examples.start(knobs=KNOBS, facts={"model": "tiny", MIXTURE: READ_BACK})
        live.call(live.server.start_generation(start))
        yield live


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[SteerwayClient]:
    with SteerwayClient(gateway.url, TOKENS["operator"]) as made:
        yield made


def send(gateway: LiveGateway, body: bytes, path: str = PATH, **headers: str) -> httpx.Response:
    """Post a body as an operator."""
    return httpx.post(gateway.url + path, content=body, headers=bearer() | LINES | headers)


def announced(gateway: LiveGateway) -> list[UUID]:
    """Let the announcer look, and return the commands that add shards, oldest first."""
    gateway.call(gateway.announcer.look())
    entries = gateway.call(gateway.server.tail(0, 100, 0.0))
    commands = [entry.record.command for entry in entries if isinstance(entry.record, CommandAccepted)]
    return [command.uuid for command in commands if isinstance(command.intent, AddShards)]


def fresh(client: SteerwayClient) -> SourceView:
    """The live source."""
    return next(one for one in client.data(RUN).sources if one.name == "fresh")


def test_records_are_durable_then_announced_together_then_in_the_mixture(
    gateway: LiveGateway, client: SteerwayClient
) -> None:
    answers = [send(gateway, json.dumps({"text": text}).encode()) for text in ("a", "b")]
    assert [(one.status_code, one.json()["records"]) for one in answers] == [(202, 1), (202, 1)]
    assert answers[0].headers["Location"] == f"{API}/runs/{RUN}/data"
    assert (fresh(client).received, fresh(client).waiting) == (2, 2)
    (uuid,) = announced(gateway)
    view = client.command(RUN, uuid)
    assert isinstance(view.command.intent, AddShards)
    assert [shard.sha256 for shard in view.command.intent.shards] == [one.json()["shard"]["sha256"] for one in answers]
    assert (view.command.author, view.command.role) == ("test-operator", "operator")
    assert announced(gateway) == [uuid], "once"
    assert [shard.stage for shard in fresh(client).shards] == ["announced", "announced"]
    after = {MIXTURE: READ_BACK | {"fresh": {"weight": 0.5, "share": 1 / 3, "records": 2}}, FIRST_STEP: 11}
    gateway.call(settle(gateway.server, uuid, step=10, after=after))
    announced(gateway)
    assert client.snapshot(RUN).commands == (), "told with the data, and hides nobody's command"
    now = fresh(client)
    assert [(shard.stage, shard.step) for shard in now.shards] == [("live", 11), ("live", 11)]
    assert (now.waiting, now.mixture["records"]) == (0, 2)


def test_what_a_killed_gateway_has_not_announced_the_next_one_does_and_never_twice(
    gateway: LiveGateway, client: SteerwayClient
) -> None:
    send(gateway, b'{"text": "a"}')
    (first,) = announced(gateway)
    send(gateway, b'{"text": "b"}')
    following = ShardAnnouncer(gateway.runs.root, gateway.runs, between_s=0.0)

    async def begins() -> None:
        for run, source in following._with_index():
            following.wake(run, source)
        await following.look()

    gateway.call(begins())
    assert announced(gateway) == [first], "the one whose outcome is not known comes first"
    gateway.call(settle(gateway.server, first, step=10, after={MIXTURE: READ_BACK, FIRST_STEP: 11}))
    for _ in range(3):
        gateway.call(begins())
    assert len(announced(gateway)) == 2


def test_of_a_stream_the_first_shard_is_announced_at_once_and_the_others_together(
    gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr("control_plane.gateway.data.announcer.time", clock)
    announcer = gateway.announcer = ShardAnnouncer(gateway.runs.root, gateway.runs, between_s=5.0)

    def sent(text: str) -> int:
        """Send a record, and return how many commands add shards by then."""
        send(gateway, json.dumps({"text": text}).encode())
        announcer.wake(RUN, "fresh")
        return len(announced(gateway))

    assert sent("a") == 1
    (first,) = announced(gateway)
    gateway.call(settle(gateway.server, first, step=10, after={MIXTURE: READ_BACK, FIRST_STEP: 11}))
    assert [sent(text) for text in "bcd"] == [1, 1, 1]
    now_s[0] += 4.9
    assert sent("e") == 1
    now_s[0] += 0.2
    first, second = announced(gateway)
    entries = gateway.call(gateway.server.tail(0, 100, 0.0))
    commands = [entry.record.command for entry in entries if isinstance(entry.record, CommandAccepted)]
    intent = next(command.intent for command in commands if command.uuid == second)
    assert isinstance(intent, AddShards)
    assert len(intent.shards) == 4


def test_a_file_is_sent_in_pieces_and_may_be_sent_again(
    gateway: LiveGateway, client: SteerwayClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.client.data.PIECE_BYTES", 60)
    file, progress = tmp_path / "more.jsonl", list[tuple[int, int]]()
    file.write_text("".join(json.dumps({"text": f"record {n}"}) + "\n" for n in range(10)))
    answers = client.add_file(RUN, "fresh", file, progress=lambda sent, total: progress.append((sent, total)))
    assert sum(answer.records for answer in answers) == 10
    assert len(answers) > 3
    assert progress[-1] == (file.stat().st_size, file.stat().st_size)
    again = client.add_file(RUN, "fresh", file)
    assert [answer.repeated for answer in again] == [True] * len(answers)
    assert fresh(client).received == 10
    with pytest.raises(Invalid, match="suffix"):
        client.add_content(RUN, "fresh", "x.csv", b"a,b")
    with pytest.raises(Invalid, match="cannot be read"):
        client.add_file(RUN, "fresh", tmp_path / "missing.jsonl")


def refusals() -> dict[str, tuple[str, bytes, dict[str, str], int, str]]:
    """Path, body, headers; status and a part of the reason."""
    good = b'{"text": "a"}'
    return {
        "a bad record": (PATH, good + b"\n{}\n", {}, 422, "line 2: field 'text' is missing; nothing was taken in"),
        "a type": (PATH, good, {"Content-Type": "text/csv"}, 422, "application/jsonl"),
        "no type": (PATH, good, {"Content-Type": ""}, 422, "Content-Type"),
        "not live": (PATH.replace("fresh", "web"), good, {"Content-Type": "text/plain"}, 422, "not live"),
        "unknown": (PATH.replace("fresh", "old"), good, {}, 404, "its sources are: fresh, web"),
        "a path": (PATH.replace("fresh", "..%2F..%2Fjournal"), good, {}, 404, ""),
        "a shouting name": (PATH.replace("fresh", "FRESH"), good, {}, 422, ""),
        "no run": (PATH.replace(RUN, "run-9"), good, {}, 404, "no run"),
        "a key": (PATH, good, {"Idempotency-Key": "abc"}, 422, "UUID"),
        "a viewer": (PATH, good, bearer("viewer"), 403, "role viewer"),
        "an agent": (PATH, good, bearer("agent"), 403, "role agent"),
        "nobody": (PATH, good, {"Authorization": ""}, 401, "token"),
        "too large": (PATH, b"x" * (16 * 1024 * 1024 + 1), {}, 413, "16,777,216 bytes"),
    }


@pytest.mark.parametrize("what", refusals())
def test_refused(gateway: LiveGateway, client: SteerwayClient, what: str) -> None:
    path, body, headers, status, reason = refusals()[what]
    answer = send(gateway, body, path, **headers)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text
    assert fresh(client).received == 0
    assert announced(gateway) == []


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(gateway: LiveGateway, client: SteerwayClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 20)

    try:
        answer = httpx.post(gateway.url + PATH, content=endless(), headers=bearer() | LINES, timeout=30)
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # the connection is closed while the client still sends
    folder = gateway.runs.files(RUN).data / "fresh" / "incoming"
    assert list(folder.iterdir()) == []


def test_a_run_that_is_over_takes_nothing_in(gateway: LiveGateway, client: SteerwayClient) -> None:
    gateway.call(gateway.server.close("finished", "test"))
    answer = send(gateway, b'{"text": "a"}')
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/run-ended")


def test_a_command_that_the_ranks_reject_leaves_the_shard_and_its_reason(
    gateway: LiveGateway, client: SteerwayClient
) -> None:
    send(gateway, b'{"text": "a"}', **{"Idempotency-Key": str(uuid4())})
    (uuid,) = announced(gateway)
    outcome = CommandSettled(uuid=uuid, status="rejected", step=10, generation=1, reason="rank 1: no", world_size=2)
    gateway.call(gateway.server.report(Report(generation=1, outcomes=(outcome,))))
    announced(gateway)
    (shard,) = fresh(client).shards
    assert (shard.stage, shard.reason) == ("refused", "rank 1: no")


def test_a_run_without_sources_says_so(gateway: LiveGateway, client: SteerwayClient) -> None:
    gateway.runs.files(RUN).config.write_text("name: plain\n")
    with pytest.raises(NotFound, match="no section 'sources'"):
        client.add_records(RUN, "fresh", b'{"text": "a"}', "application/jsonl")
