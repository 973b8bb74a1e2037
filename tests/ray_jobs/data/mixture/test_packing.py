"""Packed blocks and scheduled weights against the second implementation, over any history of changes."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.model.errors import Invalid
from ray_jobs.data.mixture.course import Course, SourceShard
from ray_jobs.data.mixture.order import MixtureOrder, Packing
from ray_jobs.data.mixture.packing import PackedCourse
from tests.ray_jobs.data.mixture import reference
from tests.ray_jobs.data.mixture.test_order import SEED, histories, intent, names, order_of, sha, source

LENGTHS = (3, 0, 17, 1, 40, 8, 0, 5, 120, 2, 11)


def length(record: tuple[str, int]) -> int:
    """Tokens of a document: some have none, some more than one block."""
    return LENGTHS[(int(record[0], 16) + record[1]) % len(LENGTHS)]


def lengths(shard: SourceShard) -> Any:
    return np.array([length((shard.sha256, row)) for row in range(shard.records)])


def packing(size: int, fingerprint: str = "one") -> Packing:
    return Packing(size, lengths, fingerprint)


WEIGHTS = st.dictionaries(st.sampled_from("abcx"), st.sampled_from([0.0, 0.5, 3.0]), min_size=1)
PLANNED = st.lists(st.tuples(st.integers(1, 700), WEIGHTS), max_size=4, unique_by=lambda entry: entry[0]).map(sorted)


@settings(max_examples=20, deadline=None)
@given(histories(), PLANNED, st.sampled_from([None, 7, 32]), st.randoms(use_true_random=False))
def test_order_is_what_a_second_implementation_draws(history: Any, planned: Any, size: int | None, dice: Any) -> None:
    sources, changes, count = history
    how = packing(size) if size is not None else None
    make = partial(reference.PackedPile, size=size, length=length) if size is not None else reference.Pile
    order = order_of(sources, packing=how)
    order.plan(planned)
    taken = []
    for position, body in changes:
        # The history was made for records and without a schedule: what is not possible here is left out.
        if order.has(0, max(1, position)) and order.reason_against(intent(**body), position) is None:
            order.change(position, intent(**body))
            taken.append((position, body))
    expected = list(reference.drawn(sources, SEED, taken, count, planned, make))
    assert names(order, 0, len(expected)) == expected
    again = MixtureOrder.recalled(json.loads(json.dumps(order.memory())), SEED, how)
    last = taken[-1][0] if taken else 0
    for position in dice.sample(range(len(expected)), min(20, len(expected))):
        assert order.at(position).id == expected[position]
        if position >= last:
            assert again.at(position).id == expected[position]
    if len(expected) == count:
        assert again.status(count) == order.status(count)
        assert again.carry(count) == order.carry(count)


def tokens_of(blocks: Any) -> list[tuple[str, int, int]]:
    """Every token of blocks: shard, row and its place in the document."""
    pieces = [piece for block in blocks for piece in block.pieces]
    return [(piece.sha256, piece.row, token) for piece in pieces for token in range(piece.begin, piece.end)]


def test_a_pass_takes_every_token_once_also_while_shards_come_and_sources_are_split() -> None:
    course = PackedCourse.of(Course.begin("a", (SourceShard(sha(1), 30),), SEED, False), 16, lengths)
    first = list(course.references(np.arange(5)))
    course = course.after(5).with_shards((SourceShard(sha(2), 20),), key=1)
    second = list(course.references(np.arange(4)))
    ours, theirs = course.after(4).split([sha(2)], "b")
    rest = [*ours.references(np.arange(ours.draws_left or 0)), *theirs.references(np.arange(theirs.draws_left or 0))]
    tokens = tokens_of([*first, *second, *rest])
    every = {(sha(n), row, token) for n, rows in ((1, 30), (2, 20)) for row in range(rows)
             for token in range(length((sha(n), row)))}  # fmt: skip
    assert len(tokens) == len(set(tokens))
    assert set(tokens) == every


def test_document_that_is_withdrawn_ends_where_it_was_cut() -> None:
    course = PackedCourse.of(Course.begin("a", (SourceShard(sha(1), 11),), SEED, False), 16, lengths)
    while not course.carry:
        course = course.after(1)
    cut, row = course.carry.split("+")[0], int(course.carry.split("/")[1].split("+")[0])
    left = course.without(sha(1), [row])
    assert left.carry == ""
    drawn = tokens_of(left.references(np.arange(left.draws_left or 0)))
    assert row not in {each[1] for each in drawn}, cut
    kept = course.without(sha(1), [(row + 1) % 11])
    assert kept.carry == course.carry


def test_blocks_go_on_over_passes_and_the_carry_is_told() -> None:
    order = order_of({"a": source(1.0, 4)}, packing=packing(16))
    total = sum(length((sha(0), row)) for row in range(4))
    blocks = order.span(0, 40)
    tokens = tokens_of(blocks)
    assert len(tokens) == 40 * 16
    for number in range(40 * 16 // total):
        assert len(set(tokens[number * total : (number + 1) * total])) == total
    carries = {order.carry(position)["a"] for position in range(40)}
    assert len(carries - {""}) > 1
    assert order.status(3)["a"]["carry"] == order.carry(3)["a"]


@pytest.mark.parametrize("other", [packing(8), packing(16, "two"), None])
def test_checkpoint_is_not_continued_by_other_blocks(other: Packing | None) -> None:
    saved = order_of({"a": source(1.0, 4)}, packing=packing(16)).memory()
    with pytest.raises(Invalid, match="blocks of 16 tokens, made by 'one', and this training's are"):
        MixtureOrder.recalled(saved, SEED, other)


def test_shares_are_by_the_schedule_and_a_command_between_holds_until_the_next_entry() -> None:
    order = order_of({"a": source(1.0, 50), "b": source(1.0, 50, first=9)})
    order.plan([(1000, {"a": 0.0, "gone": 2.0}), (3000, {"a": 3.0}), (4000, {"a": 0.0, "b": 0.0})])
    order.change(2000, intent(kind="set_mixture", weights={"a": 1.0}))
    shares = [order.status(position)["a"]["share"] for position in (999, 1000, 1999, 2000, 2999, 3000, 4000)]
    assert shares == [0.5, 0.0, 0.0, 0.5, 0.5, 0.75, 0.75]
