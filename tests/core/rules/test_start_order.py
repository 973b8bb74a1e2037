"""Order of starts: quotas, priorities, room, and that no run waits for ever."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.rules.capacity import Demand, Node, NodeGroup
from control_plane.core.rules.start_order import (
    LEVEL_S,
    OVERTAKEN_FOR_S,
    ActiveRun,
    Decision,
    Quota,
    WaitingRun,
    decide_starts,
    order_of,
    reason_never_allowed,
)

FREE = Quota()


def ranks(count: int) -> Demand:
    return Demand(count=count, most=count, per_rank={"CPU": 1.0})


def waiting(run: str, count: int = 1, since_s: float = 0.0, owner: str = "ana", priority: int = 0) -> WaitingRun:
    return WaitingRun(run, owner, priority, since_s, ranks(count))


def node(free: float, total: float = 2.0) -> Node:
    return Node("a", {"CPU": total}, {"CPU": free}, {})


def decide(
    runs: Sequence[WaitingRun],
    free: float = 2.0,
    active: Sequence[ActiveRun] = (),
    quota: Quota = FREE,
    groups: Sequence[NodeGroup] = (),
    now_s: float = 1.0,
) -> dict[str, str | None]:
    decisions = decide_starts(runs, active, lambda owner: quota, [node(free)], groups, now_s)
    return {decision.run: decision.reason for decision in decisions}


def test_three_runs_on_room_for_two() -> None:
    assert decide([waiting("one"), waiting("two", since_s=1), waiting("three", since_s=2)]) == {
        "one": None,
        "two": None,
        "three": "needs 1 CPU, 0 free, behind run two",
    }


def test_a_run_whose_ranks_have_not_begun_keeps_its_room() -> None:
    handed = ActiveRun("one", "ana", ranks(2), holds=False)
    assert decide([waiting("two")], active=[handed]) == {"two": "needs 1 CPU, 0 free"}
    holding = ActiveRun("one", "ana", ranks(2), holds=True)
    assert decide([waiting("two")], active=[holding]) == {"two": None}


def test_higher_priority_comes_first_and_waiting_makes_up_for_it() -> None:
    first = waiting("low", 2), waiting("high", 2, since_s=5, priority=1)
    assert decide(first)["high"] is None
    late = waiting("low", 2), waiting("high", 2, since_s=LEVEL_S + 1, priority=1)
    assert decide(late, now_s=LEVEL_S + 2) == {
        "low": None,
        "high": "needs 2 CPUs (2 ranks with 1 CPU each), 0 free, behind run low",
    }


def test_quotas_queue_and_name_themselves() -> None:
    own = [ActiveRun(name, "ana", ranks(1), holds=True) for name in ("x", "y")]
    assert decide([waiting("z")], active=own, quota=Quota(runs=2)) == {"z": "quota of ana: 2 of 2 runs"}
    assert decide([waiting("z", 2)], active=own, quota=Quota(cpus=3)) == {
        "z": "quota of ana: 2 of 3 CPUs in use, this run may take 2"
    }
    assert decide([waiting("z", owner="ben")], active=own, quota=Quota(runs=2)) == {"z": None}
    started = decide([waiting("one"), waiting("two", since_s=1)], quota=Quota(runs=1))
    assert started == {"one": None, "two": "quota of ana: 1 of 1 runs"}


def test_what_a_quota_never_allows_is_refused() -> None:
    never = reason_never_allowed("ana", ranks(4), Quota(cpus=2), 0)
    assert never is not None
    assert "could never start" in never
    assert reason_never_allowed("ana", ranks(2), Quota(cpus=2, runs=1), 0) is None
    assert reason_never_allowed("ana", ranks(1), Quota(runs=0), 0) is not None
    full = reason_never_allowed("ana", ranks(1), Quota(bytes=10), 10)
    assert full is not None
    assert "steer du" in full
    assert reason_never_allowed("ana", ranks(1), Quota(bytes=11), 10) is None


def test_a_run_that_the_autoscaler_can_serve_is_handed_over() -> None:
    group = NodeGroup("workers", {"CPU": 4.0}, 1)
    assert decide([waiting("big", 4)], groups=[group]) == {"big": None}
    assert decide([waiting("big", 7)], groups=[group])["big"] is not None


def test_a_big_run_is_overtaken_for_a_while_and_then_room_is_kept() -> None:
    runs = waiting("big", 2), waiting("small", 1, since_s=1)
    assert decide(runs, free=1.0)["small"] is None
    kept = decide(runs, free=1.0, now_s=OVERTAKEN_FOR_S + 1)
    assert kept["small"] is not None
    assert kept["small"].startswith("behind run big, for which room is kept")


def test_a_run_that_the_living_nodes_cannot_hold_holds_up_nobody() -> None:
    runs = waiting("huge", 9), waiting("small", 1, since_s=1)
    assert decide(runs, now_s=OVERTAKEN_FOR_S * 10)["small"] is None


def test_a_run_over_its_quota_is_not_overtaken_for_ever_by_its_own_owner() -> None:
    own = [ActiveRun("x", "ana", ranks(1), holds=True)]
    runs = waiting("wide", 2), waiting("slim", 1, since_s=1), waiting("other", 1, since_s=2, owner="ben")
    early = decide(runs, active=own, quota=Quota(cpus=2))
    assert early["slim"] is None
    late = decide(runs, active=own, quota=Quota(cpus=2), now_s=OVERTAKEN_FOR_S + 1)
    assert late["slim"] == "behind run wide of the same owner, for which the quota is kept"
    assert late["other"] is None


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(-2, 2),
    st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2), st.integers(600, 2400)), min_size=1, max_size=4),
)
def test_no_run_starves(count: int, priority: int, stream: list[tuple[int, int, int]]) -> None:
    """A run on a cluster of 4 CPUs against an endless stream of others, one every ten minutes, each with its own size,
    priority and duration: it starts within a bounded time, and what runs never exceeds the room."""
    subject = WaitingRun("subject", "ana", priority, 0.0, ranks(count))
    queue: list[WaitingRun] = [subject]
    active: dict[str, tuple[int, float]] = {}
    # Those that may come before it were submitted within 4 levels, one every ten minutes; each takes at most 2400 s.
    bound_s = 4 * LEVEL_S + (4 * LEVEL_S / 600) * 2400 + OVERTAKEN_FOR_S + 2400
    now_s, number = 0.0, 0
    while now_s <= bound_s:
        size, level, _ = stream[number % len(stream)]
        queue.append(WaitingRun(f"r{number}", "ben", level, now_s, ranks(size)))
        active = {run: (held, until) for run, (held, until) in active.items() if until > now_s}
        free = 4.0 - sum(held for held, _ in active.values())
        decisions = decide_starts(
            sorted(queue, key=order_of)[:60], (), lambda owner: FREE, [node(free, 4.0)], (), now_s
        )
        for run in started(decisions):
            taken = next(each for each in queue if each.run == run)
            at = int(run[1:]) if run != "subject" else 0
            active[run] = (taken.demand.count, now_s + stream[at % len(stream)][2])
            queue.remove(taken)
        assert sum(held for held, _ in active.values()) <= 4
        if subject not in queue:
            return
        now_s, number = now_s + 600.0, number + 1
    raise AssertionError(f"{subject} has not started within {bound_s:.0f} s")


def started(decisions: list[Decision]) -> list[str]:
    return [decision.run for decision in decisions if decision.starts]
