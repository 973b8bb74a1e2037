"""The storm's client and its account of what it cost, without a gateway and without a cluster."""

from typing import Any

import pytest

from benchmarks.storm.storm_client import MAX_OUTSTANDING, Connection, Order, Outcome, offer, prepare
from benchmarks.storm.storm_cost import Reading, cores


class Wire:
    """What a connection has written. Stands for an `asyncio.Transport`."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False


def connected(outcome: Outcome) -> tuple[Connection, Wire]:
    connection, wire = Connection(outcome), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    return connection, wire


def answer(status: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_answers_belong_to_the_requests_in_their_order_however_they_are_cut(size: int) -> None:
    outcome = Outcome()
    connection, _ = connected(outcome)
    for uuid in "abcde":
        connection.send(uuid, b"")
    bodies = [(202, b"{}"), (429, b'{"per_s":50}'), (202, b"{}"), (429, b'{"at_once":16}'), (429, b'{"limit":128}')]
    said = b"".join(answer(*each) for each in bodies)
    for start in range(0, len(said), size):
        connection.data_received(said[start : start + size])
    assert outcome.acknowledged == ["a", "c"]
    assert outcome.answers == {"202": 2, "429 per_s": 1, "429 at_once": 1, "429 queue": 1}
    assert not connection.waiting


def test_offer_goes_where_the_fewest_are_on_their_way() -> None:
    outcome = Outcome()
    (busy, busy_wire), (idle, idle_wire) = connected(outcome), connected(outcome)
    busy.send("0", b"first")
    offer(outcome, [busy, idle], [("1", b"second")])
    assert (busy_wire.written, idle_wire.written) == ([b"first"], [b"second"])


def test_offer_beyond_what_may_be_on_its_way_is_left_out() -> None:
    outcome = Outcome()
    connection, wire = connected(outcome)
    connection.waiting.extend([("", 0.0)] * (MAX_OUTSTANDING - 1))
    offer(outcome, [connection], [("1", b"one"), ("2", b"two")])
    assert (outcome.sent, wire.written) == (1, [b"one"])


def test_offer_without_a_connection_sends_nothing() -> None:
    outcome = Outcome()
    offer(outcome, [], [("1", b"one")])
    assert outcome.sent == 0


def test_storm_is_prepared_whole_and_each_command_is_another() -> None:
    order = Order("127.0.0.1", 1, "/commands", "token", per_s=100, seconds=0.5, connections=1, rate=1e-4)
    requests = prepare(order)
    assert len({uuid for uuid, _ in requests}) == 50
    head, _, body = requests[0][1].partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert requests[0][0].encode() in body


def test_cores_are_seconds_of_each_part_over_the_time_and_the_rest_of_the_machine_is_others() -> None:
    before = Reading(10.0, {("ranks", 1): 5.0, ("proxy", 2): 1.0, ("rest", 4): 9.0}, 100.0)
    after = Reading(20.0, {("ranks", 1): 13.0, ("ranks", 3): 2.0, ("proxy", 2): 2.0}, 120.0)
    found: dict[str, Any] = cores(before, after, own_s=1.0)
    assert found == pytest.approx({"proxy": 0.1, "gateway": 0, "control": 0, "ranks": 1.0, "rest": 0, "others": 0.8})
