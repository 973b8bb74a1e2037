"""Sources, shards and the commands about them: what is valid, what they say, and what a journal's state has of them."""

from typing import Any

import pytest
from pydantic import ValidationError

from control_plane.api.sentences import format_readback
from control_plane.core.model.data import MIXTURE, FieldSchema, SourceSettings, shortened
from control_plane.core.model.errors import Conflict, Invalid
from control_plane.core.model.intents import KINDS
from control_plane.core.model.intents.data import DATA_KINDS, DataIntent
from control_plane.core.model.limits import Limit, reason_against_intent
from control_plane.core.model.records import CommandAccepted, CommandSettled, GenerationStarted, Parent
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from tests.core.examples import SHA, accepted, command, created, intent, started, state_after, uuid

OTHER = "0b" * 32
SHARD = {"source": "fresh", "sha256": SHA, "records": 3, "bytes": 90}
LIVE = {"format": "jsonl", "live": True, "fields": {"text": "text"}}
READ: dict[str, Any] = {"web": {"weight": 0.7, "records": 10}, "fresh": {"weight": 0.3, "records": 3}}


def test_kinds_are_listed_and_each_changes_the_training() -> None:
    assert tuple(name for name, kind in KINDS.items() if issubclass(kind, DataIntent)) == DATA_KINDS
    assert all(KINDS[name].changes_training and KINDS[name].is_replayed for name in DATA_KINDS)
    assert [name for name in DATA_KINDS if KINDS[name].allowed_for_agents] == ["set_mixture"]


def test_settings_of_a_source_say_what_a_record_is() -> None:
    settings = SourceSettings.model_validate(LIVE | {"fields": {"frame": {"type": "array", "dtype": "uint8"}}})
    assert settings.schema_of_records == {"frame": FieldSchema(type="array", dtype="uint8")}
    text = SourceSettings(format="text", path="a/*.txt")
    assert text.schema_of_records == {"text": FieldSchema(type="text")}
    assert SourceSettings.model_validate(text.model_dump(mode="json")) == text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"format": "jsonl", "fields": {"text": "text"}}, "give 'path', or 'live: true'"),
        ({"format": "jsonl", "live": True}, "needs 'fields'"),
        ({"format": "text", "path": "a", "fields": {"text": "text"}}, "takes no 'fields'"),
        (LIVE | {"weight": -1.0}, "greater than or equal to 0"),
        (LIVE | {"weight": float("nan")}, "finite"),
        (LIVE | {"fields": {"a": "tensor"}}, "Input should be 'text'"),
        (LIVE | {"fields": {"a": {"type": "text", "dtype": "uint8"}}}, "only a field of type array"),
        (LIVE | {"fields": {"a": "array"}}, "needs a dtype"),
        (LIVE | {"live": "yes"}, "valid boolean"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SourceSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("set_mixture", {"weights": {}}),
        ("set_mixture", {"weights": {"../web": 1.0}}),
        ("set_mixture", {"weights": {"web": float("inf")}}),
        ("add_source", {"source": "a/b", "settings": LIVE}),
        ("add_source", {"source": "files", "settings": LIVE | {"path": "/etc/*"}}),
        ("add_shards", {"source": "web", "shards": [SHARD]}),
        ("add_shards", {"source": "fresh", "shards": [SHARD, SHARD]}),
        ("add_shards", {"source": "fresh", "shards": [SHARD | {"sha256": "../../" + SHA}]}),
        ("add_shards", {"source": "fresh", "shards": [SHARD | {"records": 0}]}),
        ("split_source", {"source": "web", "into": "web", "shards": [SHA]}),
        ("withdraw_samples", {"source": "web", "shard": SHA, "rows": [1, 1]}),
        ("withdraw_samples", {"source": "web", "shard": SHA, "rows": [-1]}),
    ],
)
def test_commands_that_make_no_sense_are_refused(kind: str, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        intent(kind, **body)


@pytest.mark.parametrize(
    ("kind", "body", "described"),
    [
        ("set_mixture", {"weights": {"web": 0.7, "fresh": 0.25}}, "weights web = 0.7, fresh = 0.25"),
        ("add_source", {"source": "fresh", "settings": LIVE, "shards": [SHARD]},
         "add source fresh (weight 1, 1 shard (3 records))"),
        ("remove_source", {"source": "web"}, "remove source web"),
        ("split_source", {"source": "web", "into": "news", "shards": [SHA, OTHER]}, "split 2 shards of web into news"),
        ("add_shards", {"source": "fresh", "shards": [SHARD]}, "add 1 shard (3 records) to fresh"),
        ("withdraw_samples", {"source": "web", "shard": SHA}, "withdraw all records of shard a5a5a5a5a5a5 of web"),
        ("withdraw_samples", {"source": "web", "shard": SHA, "rows": [7]},
         "withdraw 1 record of shard a5a5a5a5a5a5 of web"),
    ],
)  # fmt: skip
def test_commands_say_what_they_do(kind: str, body: dict[str, Any], described: str) -> None:
    assert intent(kind, **body).describe() == described


def test_weights_have_limits_and_agents_need_a_grant_of_their_own() -> None:
    change = intent("set_mixture", weights={"web": 0.7, "fresh": 0.3})
    assert reason_against_intent({}, change, "operator", {}) is None
    refused = "mixture/web may not be changed by an agent: no limit mixture/web grants it the role agent"
    assert reason_against_intent({}, change, "agent", {}) == refused
    assert reason_against_intent({"*": Limit(roles=("agent",))}, change, "agent", {}) == refused
    granted = {"mixture/*": Limit(min=0.1, max=0.5, roles=("agent",))}
    assert (
        reason_against_intent(granted, change, "agent", {}) == "mixture/web would be 0.7; this run allows at most 0.5"
    )
    assert reason_against_intent(granted, intent("set_mixture", weights={"web": 0.5}), "agent", {}) is None


def begun(**facts: Any) -> GenerationStarted:
    return started(900, facts=facts)


def settled(number: int, step: int, after: dict[str, Any] | None = None, **fields: Any) -> CommandSettled:
    fields = {"status": "applied", "generation": 1} | fields
    return CommandSettled(uuid=uuid(number), step=step, after={MIXTURE: after} if after else None, **fields)


def test_state_has_the_mixture_as_the_ranks_read_it_and_shards_with_their_command() -> None:
    first = {"web": {"weight": 1.0, "records": 10}}
    add = accepted(1, "add_source", source="fresh", settings=LIVE)
    shards = accepted(2, "add_shards", source="fresh", shards=[SHARD])
    state = state_after(created(), begun(mixture=first), add, settled(1, 4, first), shards, settled(2, 5, READ))
    assert state.data.mixture == READ
    assert state.data.added == {"fresh": SourceSettings.model_validate(LIVE)}
    (known,) = state.data.shards.values()
    assert (known.shard.sha256, known.command, known.author, known.seq, known.step) == (SHA, uuid(2), "ann", 6, 5)
    again = state_after(created(), begun(mixture=first), shards, settled(2, 5, READ), begun(mixture=first))
    assert (again.data.mixture, len(again.data.shards)) == (first, 1), "trainers that began before the shards"


def test_what_was_rejected_brings_nothing() -> None:
    shards = accepted(1, "add_shards", source="fresh", shards=[SHARD])
    state = state_after(created(), begun(mixture=READ), shards, settled(1, 4, status="rejected", reason="no such file"))
    assert (state.data.shards, state.data.mixture) == ({}, READ)


def test_readback_is_read_by_people_without_digests() -> None:
    after = {MIXTURE: {"web": {"share": 0.25, "records": 10, "digest": "ab"}}, "first_step": 6, "next_samples": "cd"}
    assert format_readback(after) == "mixture web 0.25 of samples (10 records); first_step 6"
    assert shortened({"lr": [1.0]}) == {"lr": [1.0]}


def test_run_without_sources_has_no_mixture() -> None:
    assert RunState().data.mixture == state_after(created(), started()).data.mixture == {}


def test_records_that_come_in_make_no_view_of_the_run_stale_but_weights_do() -> None:
    seen = 2
    shards = accepted(1, "add_shards", source="fresh", shards=[SHARD])
    later = command(3, "pause").model_copy(update={"based_on_seq": seen})
    assert decisions.accept(state_after(created(), begun(), shards), later) == [CommandAccepted(command=later)]
    weights = accepted(2, "set_mixture", weights={"web": 1.0})
    with pytest.raises(Conflict, match="weights web = 1"):
        decisions.accept(state_after(created(), begun(), weights), later)


def test_replay_takes_no_records_but_those_that_it_repeats() -> None:
    state = state_after(created(), begun())
    state.parent, state.scheduled = Parent(kind="replay", run="other"), {uuid(9): 5}
    with pytest.raises(Conflict, match="is replaying other"):
        decisions.accept(state, command(1, "add_shards", source="fresh", shards=[SHARD]))


def test_control_characters_in_a_field_are_refused() -> None:
    settings = LIVE | {"fields": {"te\u202ext": "text"}}
    with pytest.raises(Invalid):
        decisions.accept(state_after(created(), begun()), command(1, "add_source", source="a", settings=settings))
