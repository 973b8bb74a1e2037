"""Room for ranks on a cluster: what fits, what never can, and the reason as a user reads it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.core.rules.capacity import (
    Demand,
    Node,
    NodeGroup,
    Room,
    can_place,
    free_rooms,
    matches,
    place,
    reason_never_fits,
    reason_no_room,
    spread_that_is_not_had,
    startable_rooms,
    without,
)


def node(
    name: str, cpus: float = 2, gpus: float = 0, alive: bool = True, free: float | None = None, **labels: str
) -> Node:
    total = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return Node(name, total, total | ({} if free is None else {"CPU": free}), labels, alive)


def ranks(count: int, cpus: float = 1, gpus: float = 0, **more: object) -> Demand:
    per_rank = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return Demand.model_validate({"count": count, "most": count, "per_rank": per_rank} | more)


A, B = node("a", 8, 2), node("b", 8, 2)
REASONS = [
    (ranks(8, gpus=1), [A, B], "needs 8 GPUs (8 ranks with 1 GPU each), the cluster has 4 (a: 2, b: 2)"),
    (ranks(1, gpus=4), [A, B], "a rank needs 4 GPUs, and no node has as many; the largest, a, has 2"),
    (ranks(1, cpus=3), [node("a", 2)], "needs 3 CPUs, the cluster has 2"),
    (
        ranks(3, cpus=5),
        [A, B],
        "needs room for 3 ranks with 5 CPUs each, and there is room for 2 (a: 1, b: 1)",
    ),
    (
        ranks(3, placement="spread", strict=True),
        [A, B],
        "needs 3 nodes with 1 CPU each (placement: spread, strict), and 2 have that",
    ),
    (
        ranks(4, gpus=1, placement="pack", strict=True),
        [A, B],
        "needs one node for 4 ranks with 1 GPU and 1 CPU each (placement: pack, strict); room: a: 2, b: 2",
    ),
    (
        ranks(1, labels={"zone": "x"}),
        [node("a", zone="y"), node("b")],
        "needs nodes with zone=x, and no node matches (a: zone=y, b: zone=(not set))",
    ),
    (
        ranks(3, labels={"zone": "in(x,z)"}),
        [node("a", zone="x"), node("b")],
        "needs 3 CPUs on nodes with zone=in(x,z) (3 ranks with 1 CPU each), the cluster has 2",
    ),
    (
        ranks(1, per_rank={"CPU": 1.0, "accelerator_type:H100": 0.001}),
        [Node("a", {"CPU": 2.0, "accelerator_type:A100": 1.0}, {}, {})],
        "needs accelerators of type H100; the cluster's types: A100",
    ),
    (ranks(1, per_rank={"tape": 2.0}), [A], "needs 2 of the resource 'tape', the cluster has 0"),
]


@pytest.mark.parametrize(("demand", "nodes", "reason"), REASONS)
def test_what_can_never_fit_says_why(demand: Demand, nodes: list[Node], reason: str) -> None:
    # A sum of 12.5 CPUs and the like never reaches a user as 12.4999.
    never = reason_never_fits(demand, nodes, [])
    assert never is not None
    assert never.startswith(reason) if "(a:" not in reason else never == reason


def test_what_fits_has_no_reason() -> None:
    assert reason_never_fits(ranks(4, gpus=1), [A, B], []) is None
    assert reason_never_fits(ranks(2, placement="spread", strict=True), [A, B], []) is None
    assert reason_never_fits(ranks(2, gpus=1, placement="pack", strict=True), [A, B], []) is None


def test_nodes_that_are_down_and_autoscaler_groups_at_zero_count_as_possible() -> None:
    down = node("b", 8, 2, alive=False)
    group = NodeGroup("gpus", {"CPU": 8.0, "GPU": 8.0}, 2)
    assert reason_never_fits(ranks(4, gpus=1), [A, down], []) is None
    assert reason_never_fits(ranks(18, cpus=0.5, gpus=1), [A], [group]) is None
    never = reason_never_fits(ranks(19, cpus=0.5, gpus=1), [A], [group])
    assert never == "needs 19 GPUs (19 ranks with 1 GPU each), the cluster can have 18 (a: 2, gpus (autoscaler): 8 x 2)"
    assert reason_no_room(ranks(4, gpus=1), free_rooms([A, down])) is not None


def test_running_nodes_of_a_group_are_not_counted_twice() -> None:
    group = NodeGroup("workers", {"CPU": 8.0, "GPU": 2.0}, 3)
    [room] = startable_rooms([A, B], [group], ranks(1))
    assert room.copies == 1
    assert startable_rooms([A, B], [NodeGroup("workers", {"CPU": 8.0, "GPU": 2.0}, 2)], ranks(1)) == []
    [endless] = startable_rooms([A, B], [NodeGroup("workers", {"CPU": 8.0}, -1)], ranks(7))
    assert endless.copies == 7


def test_what_is_busy_is_not_free_now() -> None:
    assert reason_no_room(ranks(2), free_rooms([node("a", 2, free=1)])) == (
        "needs 2 CPUs (2 ranks with 1 CPU each), 1 free"
    )


def test_a_spread_that_is_not_had_is_said_and_one_that_is_is_not() -> None:
    said = spread_that_is_not_had(ranks(2, placement="spread"), [A], [])
    assert said is not None
    assert "2 ranks on 1 node" in said
    assert spread_that_is_not_had(ranks(2, placement="spread"), [A, B], []) is None
    assert spread_that_is_not_had(ranks(2, placement="pack"), [A], []) is None
    assert spread_that_is_not_had(ranks(2, placement="spread"), [A], [NodeGroup("w", {"CPU": 2.0}, 1)]) is None


@pytest.mark.parametrize(
    ("selector", "value", "wanted"),
    [
        ("x", "x", True),
        ("x", None, False),
        ("!x", "y", True),
        ("!x", None, True),
        ("!x", "x", False),
        ("in(x,y)", "y", True),
        ("in(x, y)", "z", False),
        ("!in(x,y)", "x", False),
        ("!in(x,y)", None, True),
    ],
)
def test_label_selectors_mean_what_they_mean_in_ray(selector: str, value: str | None, wanted: bool) -> None:
    assert matches({"k": selector}, {} if value is None else {"k": value}) is wanted


rooms_of = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@given(rooms_of, st.integers(1, 6), st.integers(1, 2), st.sampled_from(["pack", "spread"]), st.booleans())
def test_a_placement_is_found_exactly_where_one_exists(
    cpus: list[int], count: int, each: int, placement: str, strict: bool
) -> None:
    """Beside an exhaustive search over all ways to put ranks on nodes."""
    demand = ranks(count, cpus=each, placement=placement, strict=strict)
    rooms = [Room(str(index), {"CPU": float(have)}, {}) for index, have in enumerate(cpus)]
    ways = itertools.product(*(range(have // each + 1) for have in cpus))
    wanted = {
        ("pack", True): lambda way: max(way) == count,
        ("spread", True): lambda way: max(way) <= 1,
    }.get((placement, strict), lambda way: True)
    exists = any(sum(way) == count and wanted(way) for way in ways)
    assert can_place(demand, rooms) is exists
    placed = place(demand, rooms)
    left = without(demand, rooms)
    for room, after, taken in zip(rooms, left, placed, strict=True):
        assert after.resources["CPU"] == room.resources["CPU"] - taken * each >= 0
