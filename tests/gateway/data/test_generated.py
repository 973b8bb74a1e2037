"""Generators over HTTP: records for the weakest source through the real ingest, within a budget that survives kills,
and a person's approval where it is asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from control_plane.agent.generating.asking import Asked, Record
from control_plane.agent.generating.batches import Memory
from control_plane.agent.generating.loop import FAILURES, LOOK_EVERY_S, Generating
from control_plane.api.data_views import SourceView
from control_plane.api.messages import Report
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Command
from control_plane.core.model.data import FIRST_STEP, MIXTURE
from control_plane.core.model.errors import Damaged, Invalid, Unavailable
from control_plane.core.model.intents.agent import AgentSettings, AnswerProposal, StartAgent
from control_plane.core.model.intents.data import AddShards
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.core.rules.agent.generating import GeneratorSettings
from control_plane.core.rules.agent.proposals import uuid_of_made
from control_plane.gateway.tokens import TokenBook, TokenRecord, digest
from tests.cli.conftest import measure
from tests.core import examples
from tests.gateway import rig
from tests.gateway.data.test_records import LINES, PATH, READ_BACK
from tests.gateway.rig import KNOBS, RUN, LiveGateway, bearer, live_gateway, token_book

CONFIG = """
sources:
  web: {format: text, path: "web.txt", held_out: 0.1}
  fresh: {format: jsonl, live: true, weight: 0.5, held_out: 0.1, fields: {text: {type: text}}}
"""
DIRECT, ASKING = "token-of-generator-fill", "token-of-generator-shy"


def with_generators() -> TokenBook:
    pairs = (("fill", "operator", DIRECT), ("shy", "agent", ASKING))
    own = [
        TokenRecord(id=f"generator:{name}", role=role, sha256=digest(token), runs=(RUN,))  # type: ignore[arg-type]
        for name, role, token in pairs
    ]
    return TokenBook(tokens=(*token_book().tokens, *own))


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveGateway]:
    monkeypatch.setattr(rig, "token_book", with_generators)
    with live_gateway(tmp_path / "runs") as live:
        live.runs.files(RUN).config.write_text(CONFIG)
        start = examples.start(1000, knobs=KNOBS, facts={"model": "tiny", MIXTURE: READ_BACK})
        live.call(live.server.start_generation(start))
        evaluate(live, 10, {"web": 2.0, "fresh": 5.0})
        yield live


def evaluate(live: LiveGateway, step: int, losses: dict[str, float]) -> None:
    for name, loss in losses.items():
        live.call(measure(live.server, 2, {step: loss}, f"eval_loss/{name}"))
        live.call(measure(live.server, 2, {step: 0.1}, f"eval_error/{name}"))


class Scribe:
    """Writes what it is asked for, and two more. `error`: raised instead."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.error: Exception | None = None
        self.extra: list[Record] = []

    def write(self, asked: Asked) -> list[Record]:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        count = asked.count + 2 - len(self.extra)
        return self.extra + [{"text": f"{asked.spot.name} {len(self.asked)} {n}"} for n in range(count)]


class Desk:
    """A generator's process, which can be killed: another one begins with the same folder."""

    def __init__(self, live: LiveGateway, folder: Path, name: str = "fill", **more: Any) -> None:
        self.live, self.folder, self.name, self.scribe, self.said = live, folder, name, Scribe(), list[str]()
        settings = {"source": "fresh", "path": "write.py", "records": 4, "max_records": 10} | more
        self.settings = GeneratorSettings.model_validate(settings)
        self.client = SteerwayClient(live.url, DIRECT if name == "fill" else ASKING)
        self.begin()

    def begin(self) -> None:
        memory = Memory.read(self.folder)
        self.work = Generating(self.client, RUN, self.name, self.settings, self.scribe, memory, self.said.append)

    def look(self) -> float | None:
        return self.work.look()

    def batch(self) -> None:
        """Ask, send, and bring what was sent into the mixture."""
        assert self.look() == 0.0
        self.look()
        bring_in(self.live)


def bring_in(live: LiveGateway) -> None:
    live.announcer.wake(RUN, "fresh")
    live.call(live.announcer.look())
    entries = live.call(live.server.tail(0, 200, 0.0))
    settled = {entry.record.uuid for entry in entries if isinstance(entry.record, CommandSettled)}
    for entry in entries:
        record = entry.record
        is_shards = isinstance(record, CommandAccepted) and isinstance(record.command.intent, AddShards)
        if isinstance(record, CommandAccepted) and is_shards and record.command.uuid not in settled:
            live.call(settle_2(live, record.command.uuid))
    live.announcer.wake(RUN, "fresh")
    live.call(live.announcer.look())


async def settle_2(live: LiveGateway, uuid: UUID) -> None:
    after = {MIXTURE: READ_BACK, FIRST_STEP: 11}
    done = CommandSettled(uuid=uuid, status="applied", step=10, generation=2, before={}, after=after, world_size=2)
    await live.server.report(Report(generation=2, outcomes=(done,)))


def fresh(desk: Desk) -> SourceView:
    return next(one for one in desk.client.data(RUN).sources if one.name == "fresh")


def test_budget_is_that_of_the_index_over_kills_at_every_moment(gateway: LiveGateway, tmp_path: Path) -> None:
    desk = Desk(gateway, tmp_path / "fill")
    assert desk.look() == 0.0
    assert not fresh(desk).received, "it is durable first, then sent"
    desk.begin()  # killed before it was sent
    pending = Memory.read(tmp_path / "fill").batch
    assert pending is not None
    assert desk.client.add_records(
        RUN, "fresh", pending.lines.encode(), "application/jsonl", key=pending.key, only_good=True
    )
    desk.begin()  # killed before it has heard the answer
    assert desk.look() == LOOK_EVERY_S
    assert fresh(desk).by_author == {"generator:fill": 4}
    assert desk.look() == LOOK_EVERY_S, "the last batch is on its way"
    bring_in(gateway)
    assert desk.look() == LOOK_EVERY_S, "there was no evaluation since"
    assert len(desk.scribe.asked) == 1
    for step in (20, 30):
        evaluate(gateway, step, {"web": 2.0, "fresh": 5.0 - step / 100})
        desk.begin()
        desk.batch()
    assert fresh(desk).by_author == {"generator:fill": 10}
    assert [asked.count for asked in desk.scribe.asked] == [4, 4, 2]
    assert desk.scribe.asked[1].spot.change == pytest.approx(-0.2)
    evaluate(gateway, 40, {"web": 2.0, "fresh": 5.0})
    (tmp_path / "fill" / "memory.json").unlink()
    desk.begin()
    assert desk.look() is None
    assert desk.said[-1] == "the budget of 10 records is used up"
    assert {(shard.author, shard.stage) for shard in fresh(desk).shards} == {("generator:fill", "live")}


def test_it_is_asked_for_the_weakest_and_only_if_it_helps_there(gateway: LiveGateway, tmp_path: Path) -> None:
    desk = Desk(gateway, tmp_path / "fill", helps=["web"])
    assert desk.look() == LOOK_EVERY_S
    evaluate(gateway, 20, {"web": 9.0, "fresh": 5.0})
    desk.batch()
    (asked,) = desk.scribe.asked
    assert (asked.spot.source, asked.target.format, set(asked.sources)) == ("web", "jsonl", {"web", "fresh"})
    assert desk.said == ["step 20: 4 records for web into fresh"]


def test_every_so_many_steps_it_writes_without_another_evaluation(gateway: LiveGateway, tmp_path: Path) -> None:
    desk = Desk(gateway, tmp_path / "fill", every_steps=5)
    desk.batch()
    for step, asked in ((12, 1), (15, 2), (19, 2), (2, 3)):
        gateway.call(measure(gateway.server, 2, {step: 1.0}))
        if desk.look() == 0.0:
            desk.look()
            bring_in(gateway)
        assert len(desk.scribe.asked) == asked, step


def test_bad_records_are_left_out_by_the_schema_and_what_fails_is_tried_again(
    gateway: LiveGateway, tmp_path: Path
) -> None:
    desk = Desk(gateway, tmp_path / "fill")
    desk.scribe.error = Unavailable("the function failed: ZeroDivisionError")
    pauses = [desk.look() for _ in range(FAILURES)]
    assert pauses[:4] == [10.0, 20.0, 40.0, 80.0]
    assert desk.look() == LOOK_EVERY_S, "it waits for the next evaluation"
    evaluate(gateway, 20, {"web": 2.0, "fresh": 5.0})
    desk.scribe.error, desk.scribe.extra = None, [{"text": 7}, {"text": float("nan")}, {"text": object()}]
    desk.batch()
    assert desk.said[-1].startswith("step 20: 1 records for fresh into fresh, 1 refused (the first: ")
    evaluate(gateway, 30, {"web": 2.0, "fresh": 5.0})
    desk.scribe.error = Invalid("this installation has not signed the run")
    desk.look()
    assert desk.look() == LOOK_EVERY_S, "it would not be better next time"


def test_a_person_approves_or_rejects_what_waits_on_the_disk(gateway: LiveGateway, tmp_path: Path) -> None:
    """Also while the run's agent may act alone; others' records do not wait for the answer."""
    agent = StartAgent(settings=AgentSettings(policy="rule", mode="auto"))
    gateway.call(gateway.server.submit(Command(uuid=uuid4(), author="ann", intent=agent)))
    desk = Desk(gateway, tmp_path / "shy", "shy")
    desk.batch()
    assert [(one.author, one.stage) for one in fresh(desk).shards] == [("generator:shy", "announced")]
    (view,) = gateway.call(gateway.server.snapshot()).agent.proposals
    (shard,) = fresh(desk).shards
    assert (view.author, view.verdict, view.what) == ("generator:shy", None, "add 1 shard (4 records) to fresh")
    assert shard.sha256[:12] in (view.reason or "")
    sent = httpx.post(gateway.url + PATH, content=b'{"text": "of a person"}\n', headers=bearer() | LINES)
    assert sent.status_code == 202
    bring_in(gateway)
    assert {one.author: one.stage for one in fresh(desk).shards} == {
        "generator:shy": "announced",
        "test-operator": "live",
    }
    assert desk.look() == LOOK_EVERY_S, "one batch at a time"
    answer = AnswerProposal(proposal=view.uuid, approve=True)
    gateway.call(gateway.server.submit(Command(uuid=uuid4(), author="ann", role="operator", intent=answer)))
    bring_in(gateway)
    made = gateway.call(gateway.server.command(uuid_of_made(view.uuid)))
    assert (made.command.author, made.status) == ("ann", "applied")
    assert {one.stage for one in fresh(desk).shards} == {"live"}
    evaluate(gateway, 20, {"web": 2.0, "fresh": 5.0})
    desk.batch()
    view = gateway.call(gateway.server.snapshot()).agent.proposals[-1]
    answer = AnswerProposal(proposal=view.uuid, approve=False, note="too dull")
    gateway.call(gateway.server.submit(Command(uuid=uuid4(), author="ann", role="operator", intent=answer)))
    bring_in(gateway)
    refused = next(one for one in fresh(desk).shards if one.stage == "refused")
    assert refused.reason == "the proposal to take them in was rejected by ann: too dull"
    assert fresh(desk).by_author["generator:shy"] == 8


def test_an_agent_that_is_no_generator_may_not_send_records(gateway: LiveGateway) -> None:
    sent = httpx.post(gateway.url + PATH, content=b'{"text": "a"}\n', headers=bearer("agent") | LINES)
    assert sent.status_code == 403
    assert "but for a generator of the run" in sent.json()["detail"]


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text('{"asked_step": ')
    with pytest.raises(Damaged, match=r"memory\.json cannot be read: remove it"):
        Memory.read(tmp_path)
    assert json.loads((tmp_path / "memory.json").read_text() + "1}") == {"asked_step": 1}
