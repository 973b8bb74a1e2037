"""Who is called dead, by tables: each kind, just before and at its bound, and what must never be one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.monitor.verdict import (
    DEADLOCK_FACTOR,
    GONE_AFTER_S,
    LEAST_SILENCE_BESIDE_STEPS_S,
    RankStatus,
    Timeouts,
    judge,
)

BOUNDS = Timeouts(hang_after_s=5.0, user_code_s=1800.0, deadlock_s=120.0)
TRAINS = RankStatus(0, pid=100, node="a", phase="training", waits="collective", slowest_step_s=1.0)
WAITS = replace(TRAINS, quiet_s=60.0, inside_s=60.0)
OTHER = replace(WAITS, rank=1, pid=101)
BUSY = replace(OTHER, waits="", inside_s=0.0, at="at /code/train.py:7 in tokenize")

DEATHS = {
    "stopped": (replace(OTHER, stopped_s=5.0), "stopped", "recovery.hang_after_s, 5"),
    "stopped while saving": (replace(OTHER, stopped_s=5.0, phase="saving"), "stopped", "while saving"),
    "killed": (replace(OTHER, gone_s=GONE_AFTER_S), "gone", "rank 1 (process 101 on a) died while training"),
    "cut off": (replace(OTHER, unheard_s=5.0), "silent", "no heartbeat of rank 1 (process 101 on a) for 5.0 s"),
    "in user code for too long": (replace(BUSY, quiet_s=1800.0), "user code", "train.py:7 in tokenize"),
    "evaluating for too long": (replace(BUSY, quiet_s=1800.0, phase="evaluating"), "user code", "while evaluating"),
}
LIVES = {
    "in a collective for a while": OTHER,
    "stopped for a moment": replace(OTHER, stopped_s=4.9),
    "ended a moment ago": replace(OTHER, gone_s=GONE_AFTER_S - 0.1),
    "its monitor lost for a moment": replace(OTHER, unheard_s=4.9),
    "its monitor never there": replace(OTHER, unheard_s=900.0, heard=False),
    "its monitor silent while a model is built": replace(OTHER, unheard_s=19.0, phase="starting"),
    "busy for long": replace(BUSY, quiet_s=1799.0),
    "a last save that is slow": replace(BUSY, quiet_s=900.0, phase="ending"),
    "over and gone": replace(OTHER, over=True, gone_s=100.0, unheard_s=100.0),
    "over and stopped": replace(OTHER, over=True, stopped_s=100.0),
}


@pytest.mark.parametrize(("account", "kind", "said"), DEATHS.values(), ids=DEATHS)
def test_death_is_called_one_and_told_with_its_rank(account: RankStatus, kind: str, said: str) -> None:
    verdict = judge([WAITS, account], BOUNDS)
    assert verdict is not None
    assert (verdict.kind, verdict.ranks, verdict.phase) == (kind, (1,), account.phase)
    assert said in verdict.reason


@pytest.mark.parametrize("account", LIVES.values(), ids=LIVES)
def test_what_lives_is_let_be(account: RankStatus) -> None:
    assert judge([WAITS, account], BOUNDS) is None


def test_monitor_that_is_silent_while_steps_are_made_is_only_a_monitor() -> None:
    assert judge([replace(TRAINS, quiet_s=0.5), replace(OTHER, unheard_s=60.0)], BOUNDS) is None


def test_silence_beside_steps_needs_longer() -> None:
    saving = replace(WAITS, phase="saving", quiet_s=19.0)
    silent = replace(OTHER, unheard_s=LEAST_SILENCE_BESIDE_STEPS_S, phase="saving")
    assert judge([saving, silent], BOUNDS) is None
    assert judge([replace(saving, quiet_s=20.0), silent], BOUNDS) is not None


def test_deadlock_is_when_every_rank_waits_for_the_others() -> None:
    stuck = [replace(WAITS, quiet_s=130.0, inside_s=120.0, at="at a.py:1 in f"), replace(OTHER, inside_s=121.0)]
    verdict = judge(stuck, BOUNDS)
    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == ("deadlock", (0, 1))
    assert "rank 0 at a.py:1 in f" in verdict.reason
    assert judge([stuck[0], replace(stuck[1], inside_s=119.0)], BOUNDS) is None
    assert judge([stuck[0], replace(stuck[1], waits="")], BOUNDS) is None
    assert judge([stuck[0], replace(stuck[1], over=True)], BOUNDS) is not None, "rank 0 waits for one that has left"


def test_deadlock_bound_follows_the_slowest_step() -> None:
    slow = [replace(each, slowest_step_s=10.0, inside_s=DEADLOCK_FACTOR * 10.0 - 1) for each in (WAITS, OTHER)]
    assert judge(slow, BOUNDS) is None
    assert judge([replace(each, inside_s=DEADLOCK_FACTOR * 10.0) for each in slow], BOUNDS) is not None


def test_wait_for_a_gpu_counts_once_steps_were_measured() -> None:
    first = [replace(each, waits="device", inside_s=500.0, slowest_step_s=0.0) for each in (WAITS, OTHER)]
    assert judge(first, BOUNDS) is None
    found = judge([replace(each, slowest_step_s=1.0) for each in first], BOUNDS)
    assert found is not None
    assert found.kind == "deadlock"


def test_graver_one_comes_first_and_all_of_its_ranks_are_named() -> None:
    many = [WAITS] + [replace(OTHER, rank=rank, pid=100 + rank, stopped_s=6.0) for rank in range(1, 8)]
    verdict = judge([*many, replace(OTHER, rank=8, gone_s=5.0)], BOUNDS)
    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == ("gone", (8,))
    verdict = judge(many, BOUNDS)
    assert verdict is not None
    assert verdict.ranks == tuple(range(1, 8))
    assert "and 3 more" in verdict.reason


SECONDS = st.floats(0, 10_000)
BUSY_RANKS = st.builds(
    RankStatus,
    rank=st.integers(1, 3),
    phase=st.sampled_from(["starting", "training", "evaluating", "saving", "paused", "ending"]),
    quiet_s=st.floats(0, 1799),
    stopped_s=st.floats(0, 4.9),
    unheard_s=st.floats(0, 4.9),
    waits=st.just(""),
    slowest_step_s=SECONDS,
)


@given(st.lists(BUSY_RANKS, min_size=1, max_size=3), SECONDS)
def test_while_one_rank_is_busy_nobody_is_dead(busy: list[RankStatus], waited_s: float) -> None:
    waiting = replace(WAITS, quiet_s=waited_s, inside_s=waited_s)
    assert judge([waiting, *busy], BOUNDS) is None


@given(st.lists(st.builds(RankStatus, rank=st.integers(0, 3), over=st.just(True), gone_s=SECONDS, quiet_s=SECONDS)))
def test_when_all_are_over_nobody_is_dead(over: list[RankStatus]) -> None:
    assert judge(over, BOUNDS) is None
