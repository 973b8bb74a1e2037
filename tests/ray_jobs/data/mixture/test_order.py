"""The order of a mixture against a second implementation, over any history of changes."""

import json
from collections import Counter
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import INTENT
from ray_jobs.data.mixture.course import Course, SourceShard
from ray_jobs.data.mixture.order import Exhausted, MixtureOrder, Packing, Source
from ray_jobs.data.mixture.shares import BLOCK, WHOLE, BlockPlan, whole_shares
from tests.ray_jobs.data.mixture import reference

SEED = 7


def sha(number: int) -> str:
    """The name of a shard."""
    return f"{number:064x}"


def order_of(
    sources: dict[str, dict[str, Any]], temperature: float = 1.0, packing: Packing | None = None
) -> MixtureOrder:
    """The order of these sources, as the reference takes them."""
    made = {
        name: Source(
            SourceSettings(
                format="text", live=True, weight=source["weight"], exhausted="repeat" if source["repeats"] else "stop"
            ),
            tuple(SourceShard(name_of, records) for name_of, records in source["shards"]),
        )
        for name, source in sources.items()
    }
    return MixtureOrder(made, SEED, temperature, packing)


def source(weight: float, *records: int, first: int = 0, repeats: bool = True) -> dict[str, Any]:
    """A source with shards of so many records."""
    shards = [(sha(first + number), count) for number, count in enumerate(records)]
    return {"weight": weight, "shards": shards, "repeats": repeats}


def intent(**body: Any) -> Any:
    return INTENT.validate_python(body)


def names(order: MixtureOrder, first: int, count: int) -> list[str]:
    return [each.id for each in order.span(first, count)]


SETTINGS = {"format": "text", "live": True}


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]], int]:
    """First sources, changes that are taken, with their positions, and how many samples are drawn."""
    sources = {
        name: source(
            draw(st.sampled_from([0.0, 0.001, 0.3, 1.0, 7.5])) if name != "a" else 1.0,
            *draw(st.lists(st.integers(1, 40), max_size=3) if name != "a" else st.just([30])),
            first=100 * index,
            repeats=draw(st.booleans()) if name != "a" else True,
        )
        for index, name in enumerate(draw(st.sampled_from(["a", "ab", "abc"])))
    }
    order, position, changes, made = order_of(sources), 0, list[tuple[int, dict[str, Any]]](), 500
    for _ in range(draw(st.integers(0, 7))):
        position += draw(st.sampled_from([0, 1, 8, 100, 256, 300]))
        if position and not order.has(position - 1, 1):
            break  # a training ends with its last sample
        held = order.courses(position)
        name = draw(st.sampled_from(sorted(held)))
        shards = held[name].live_shards()
        kinds = ["set_mixture", "add_source", "add_shards", *(["split", "withdraw", "withdraw rows"] if shards else [])]
        kind = draw(st.sampled_from([*kinds, "remove_source"]))
        made += 1
        body: dict[str, Any] = {"kind": kind, "source": name}
        new = {"sha256": sha(made), "records": draw(st.integers(1, 50)), "bytes": 1}
        match kind:
            case "set_mixture":
                body = {"kind": kind, "weights": {name: draw(st.sampled_from([0.0, 0.5, 2.0]))}}
            case "add_source":
                fresh = f"n{made}"
                own = SETTINGS | {"weight": draw(st.sampled_from([0.25, 1.0])), "exhausted": draw(ENDS)}
                body = {"kind": kind, "source": fresh, "settings": own, "shards": [new | {"source": fresh}]}
            case "add_shards":
                body["shards"] = [new | {"source": name}]
            case "split":
                body = body | {
                    "kind": "split_source",
                    "into": f"n{made}",
                    "shards": [draw(st.sampled_from(shards)).sha256],
                }
            case "withdraw":
                body = body | {"kind": "withdraw_samples", "shard": draw(st.sampled_from(shards)).sha256, "rows": "all"}
            case "withdraw rows":
                shard = draw(st.sampled_from(shards))
                rows = draw(st.lists(st.integers(0, shard.records - 1), min_size=1, max_size=5, unique=True))
                body = body | {"kind": "withdraw_samples", "shard": shard.sha256, "rows": rows}
        if order.reason_against(intent(**body), position) is None:
            order.change(position, intent(**body))
            changes.append((position, body))
    return sources, changes, position + draw(st.sampled_from([1, 200, 600]))


ENDS = st.sampled_from(["repeat", "stop"])


def test_source_that_was_emptied_goes_on_in_its_pass_when_it_is_given_records() -> None:
    new = [{"sha256": sha(number), "records": 1, "bytes": 1, "source": "a"} for number in (502, 503)]
    changes: list[tuple[int, dict[str, Any]]] = [
        (0, {"kind": "split_source", "source": "a", "into": "n501", "shards": [sha(0)]}),
        *((0, {"kind": "add_shards", "source": "a", "shards": [shard]}) for shard in new),
        (0, {"kind": "set_mixture", "weights": {"a": 0.5}}),
    ]
    sources, order = {"a": source(1.0, 30)}, order_of({"a": source(1.0, 30)})
    for position, body in changes:
        order.change(position, intent(**body))
    expected = list(reference.drawn(sources, SEED, changes, 60))
    assert names(order, 0, 60) == expected


@settings(max_examples=25, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_order_is_what_a_second_implementation_draws(history: Any, dice: Any) -> None:
    sources, changes, count = history
    expected = list(reference.drawn(sources, SEED, changes, count))
    order = order_of(sources)
    for position, body in changes:
        order.change(position, intent(**body))
    assert names(order, 0, len(expected)) == expected
    assert order.has(0, count) == (len(expected) == count)
    at_random = dice.sample(range(len(expected)), min(20, len(expected)))
    again = MixtureOrder.recalled(json.loads(json.dumps(order.memory())), SEED)
    last = changes[-1][0] if changes else 0
    for position in at_random:
        assert order.at(position).id == expected[position]
        if position >= last:
            assert again.at(position).id == expected[position]
    assert again.status(count) == order.status(count)


@settings(max_examples=15, deadline=None)
@given(histories())
def test_change_that_is_taken_back_was_never_made(history: Any) -> None:
    sources, changes, count = history
    order, twin = order_of(sources), order_of(sources)
    for position, body in changes:
        order.change(position, intent(**body))
        order.take_back()
        order.change(position, intent(**body))
        twin.change(position, intent(**body))
    assert (order.memory(), order.status(count)) == (twin.memory(), twin.status(count))


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1e-3, 3.0, 0.02)])
def test_shares_over_100000_samples_are_within_4_binomial_deviations(weights: tuple[float, ...]) -> None:
    order = order_of({f"s{index}": source(weight, 977, first=index) for index, weight in enumerate(weights)})
    first, total, now = 100, 100_000, (0.05, *weights[1:])
    order.change(first, intent(kind="set_mixture", weights={"s0": 0.05}))
    counts = Counter(each.source for each in order.span(first, total))
    for index, weight in enumerate(now):
        share = weight / sum(now)
        assert abs(counts[f"s{index}"] - total * share) <= 4 * sqrt(total * share * (1 - share))


def test_source_with_less_than_one_sample_in_a_block_has_its_share() -> None:
    plan = BlockPlan(whole_shares({"large": 1000.0, "small": 1.0}), seed=3)
    blocks = 40 * 1001 // BLOCK
    assert plan.before(blocks)[1] == pytest.approx(40, abs=1.5)
    assert sum(whole_shares({"a": 1.0, "b": 1.0, "c": 1.0}).values()) == WHOLE


def test_temperature_brings_the_shares_together() -> None:
    flat = order_of({"a": source(0.9, 5), "b": source(0.1, 5, first=9)}, temperature=2.0).status(0)
    assert (flat["a"]["share"], flat["b"]["share"]) == (0.75, 0.25)


def test_each_pass_takes_every_record_once_also_while_shards_come() -> None:
    course = Course.begin("a", (SourceShard(sha(1), 50),), SEED)

    def drawn(count: int) -> list[tuple[str, int]]:
        shards, rows = course.places(np.arange(count))
        return [(shard.sha256, row) for shard, row in zip(shards, rows, strict=True)]

    first = drawn(20)
    course = course.after(20).with_shards((SourceShard(sha(2), 30),), key=1)
    rest = drawn(60)
    assert len({*first, *rest}) == 80
    assert (course.passes, course.after(60).passes, set(drawn(220)[60:140])) == (1, 2, {*first, *rest})


def test_mixture_of_sources_that_do_not_repeat_ends_with_its_last_record() -> None:
    order = order_of({"a": source(1.0, 10, repeats=False), "b": source(1.0, 40, first=9, repeats=False)})
    assert len(set(names(order, 0, 50))) == 50
    assert (order.has(0, 50), order.has(0, 51)) == (True, False)
    with pytest.raises(Exhausted):
        order.at(50)
    order.change(50, intent(kind="add_shards", source="a", shards=[{"source": "a", "sha256": sha(77), "records": 3, "bytes": 1}]))  # fmt: skip # noqa: E501
    assert {each.sha256 for each in order.span(50, 3)} == {sha(77)}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"kind": "set_mixture", "weights": {"x": 1.0}}, "there is no source x; this run has a, b"),
        ({"kind": "set_mixture", "weights": {"a": 0.0, "b": 0.0}}, "no source would be left"),
        ({"kind": "add_source", "source": "a", "settings": SETTINGS}, "there is a source a already"),
        ({"kind": "split_source", "source": "a", "into": "b", "shards": [sha(0)]}, "there is a source b already"),
        (
            {"kind": "split_source", "source": "a", "into": "c", "shards": [sha(5)]},
            "source a has no shard 000000000000",
        ),
        ({"kind": "withdraw_samples", "source": "a", "shard": sha(0), "rows": [10]}, "has 10 records, and no row 10"),
        (
            {
                "kind": "add_shards",
                "source": "b",
                "shards": [{"source": "b", "sha256": sha(9), "records": 1, "bytes": 1}],
            },
            "has shard 000000000000 already",
        ),
    ],
)
def test_change_that_cannot_be_made_is_refused_with_the_reason(body: dict[str, Any], reason: str) -> None:
    order = order_of({"a": source(1.0, 10), "b": source(0.0, 4, first=9)})
    before = order.memory()
    assert reason in str(order.reason_against(intent(**body), 5))
    with pytest.raises(Invalid):
        order.change(5, intent(**body))
    assert order.memory() == before


def test_what_was_forgotten_is_not_asked_for() -> None:
    order = order_of({"a": source(1.0, 10)})
    order.change(100, intent(kind="set_mixture", weights={"a": 2.0}))
    order.forget(100)
    with pytest.raises(ValueError, match="was forgotten"):
        order.at(99)
