"""Starts without silent nodes: when a group may start beside them, and when their fate is waited for."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.driver.ray_internals import NODE_ID_LABEL
from ray_jobs.driver.silent_nodes import UNDECIDED_FOR_S, NodeRoom, SilentNodes, keep_out, ranks_that_fit

RANK = {"CPU": 1.0}


def node(name: str, answers: bool = True, cpus: float = 1.0) -> NodeRoom:
    return NodeRoom(name, f"10.0.0.{name}", answers, {"CPU": cpus})


def scaling(strategy: str = "PACK", labels: Any = None) -> Any:
    return SimpleNamespace(
        _resources_per_worker_not_none=RANK, placement_strategy=strategy, label_selector=labels, num_workers=2
    )


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def read(self) -> float:
        return self.now_s


def watching(views: Iterator[list[NodeRoom]], elastic: bool = False) -> tuple[SilentNodes, Clock]:
    clock, last = Clock(), list[list[NodeRoom]]()

    def look() -> list[NodeRoom]:
        last[:] = [next(views, last[0] if last else [])]
        return last[0]

    return SilentNodes(elastic, look, clock.sleep, clock.read), clock


def start(callback: SilentNodes, ranks: int = 2, **more: Any) -> dict[str, str] | None:
    return callback.on_controller_start_worker_group(scaling_config=scaling(**more), num_workers=ranks)


@pytest.mark.parametrize(("strategy", "fit"), [("PACK", 5), ("SPREAD", 5), ("STRICT_PACK", 3), ("STRICT_SPREAD", 2)])
def test_room_is_counted_on_answering_nodes_only(strategy: str, fit: int) -> None:
    nodes = [node("1", cpus=3.0), node("2", cpus=1.99999999), node("3", cpus=0.9), node("4", answers=False, cpus=9)]
    assert ranks_that_fit(nodes, RANK, strategy) == fit


def test_every_resource_of_a_rank_counts() -> None:
    room = NodeRoom("1", "", True, {"CPU": 8.0, "GPU": 1.0})
    assert ranks_that_fit([room], {"CPU": 1.0, "GPU": 1.0}, "PACK") == 1
    assert ranks_that_fit([room], {"CPU": 1.0, "TPU": 1.0}, "PACK") == 0


def test_nothing_is_kept_out_while_all_answer() -> None:
    callback, clock = watching(iter([[node("1"), node("2")]]))
    assert start(callback) is None
    assert clock.now_s == 0


def test_a_silent_node_is_kept_out_at_once_where_the_others_have_room() -> None:
    callback, clock = watching(iter([[node("1"), node("2"), node("3", answers=False)]]))
    assert start(callback, labels={"zone": "a"}) == {"zone": "a", NODE_ID_LABEL: "!in(3)"}
    assert clock.now_s == 0


def test_without_room_beside_it_its_fate_is_waited_for() -> None:
    undecided = [node("1"), node("2", answers=False)]
    callback, clock = watching(iter([undecided, undecided, [node("1"), node("2")]]))
    assert start(callback) is None
    assert 0 < clock.now_s < 1
    callback, clock = watching(iter([undecided, undecided, [node("1")]]))  # Ray has declared it dead
    assert start(callback) is None
    assert 0 < clock.now_s < 1


def test_room_that_becomes_free_meanwhile_is_taken() -> None:
    full, free = node("1", cpus=0.0), node("1", cpus=2.0)
    silent = node("2", answers=False)
    callback, clock = watching(iter([[full, silent], [free, silent]]))
    assert start(callback) == {NODE_ID_LABEL: "!in(2)"}
    assert 0 < clock.now_s < 1


def test_the_wait_ends_even_if_ray_never_decides() -> None:
    callback, clock = watching(iter([[node("1"), node("2", answers=False)]]))
    assert start(callback) == {NODE_ID_LABEL: "!in(2)"}
    assert UNDECIDED_FOR_S <= clock.now_s < UNDECIDED_FOR_S + 1


def test_an_elastic_run_waits_before_its_number_of_ranks_is_chosen() -> None:
    silent, decided = [node("1"), node("2"), node("3", answers=False)], [node("1"), node("2")]
    callback, clock = watching(iter([silent, silent, decided]), elastic=True)
    callback.before_controller_execute_failure_decision("RETRY")
    assert 0 < clock.now_s < 1
    callback, clock = watching(iter([silent]), elastic=False)
    callback.before_controller_execute_failure_decision("RETRY")
    assert clock.now_s == 0


def test_labels_that_cannot_be_joined_are_left_and_the_node_waited_for() -> None:
    silent, decided = [node("1"), node("2"), node("3", answers=False)], [node("1"), node("2")]
    for labels in ({NODE_ID_LABEL: "1"}, [{"zone": "a"}, {"zone": "b"}]):
        callback, clock = watching(iter([silent, decided]))
        assert start(callback, labels=labels) is None
        assert clock.now_s > 0
    assert keep_out(silent, {NODE_ID_LABEL: "1"}) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 8)), max_size=6), st.integers(1, 6))
def test_ranks_are_never_started_where_only_silent_nodes_have_room(rooms: list[tuple[bool, float]], ranks: int) -> None:
    nodes = [node(str(number), answers, cpus) for number, (answers, cpus) in enumerate(rooms)]
    callback, clock = watching(iter([nodes]))
    selector = start(callback, ranks)
    silent = [one.node_id for one in nodes if not one.answers]
    assert (selector is None) == (not silent)
    if selector is not None and clock.now_s == 0:
        assert ranks_that_fit(nodes, RANK, "PACK") >= ranks
        assert selector[NODE_ID_LABEL] == f"!in({', '.join(silent)})"
