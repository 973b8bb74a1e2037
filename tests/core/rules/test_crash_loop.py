"""The crash-loop rule: stories of failures, each with its verdict, and planted mutants that get some of them wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from control_plane.core.model.records import CommandSettled, Death, GenerationLost, Record, RunClosed, RunResumed
from control_plane.core.model.state import RunState
from control_plane.core.rules import crash_loop, decisions
from control_plane.core.rules.crash_loop import (
    ALERT_AFTER,
    KILLED,
    MOST_WAIT_S,
    NO_ANSWER,
    NODE_DIED,
    OUT_OF_MEMORY,
    PEER_LOST,
    SAME_FAILURES,
    SAME_FAILURES_BEFORE_A_START,
    Attempt,
    cause_of,
    failures_without_a_new_step,
    is_waiting,
    reason_to_give_up,
    wait_s,
    without_noise,
)
from tests.core.examples import accepted, created, running, start, started, state_after, uuid

BUG, OTHER = "ValueError at train.py:12 in main", "KeyError at train.py:40 in collate"
NEVER = None
"""In the place of a restored step: these trainers died before they had begun."""

Failure = tuple[int | None, int, str]
"""Where the trainers began, how far they got, and why they failed."""


def failed(step: int, generation: int, *signatures: str, reason: str = "it is said so") -> GenerationLost:
    deaths = tuple(Death(rank=rank, reason=reason, signature=each) for rank, each in enumerate(signatures))
    return GenerationLost(generation=generation, step=step, deaths=deaths)


def story(*failures: Failure, resumed_after: int | None = None) -> RunState:
    """A run whose trainers failed so, one after the other."""
    records: list[Record] = []
    generation = 0
    for number, (restored, step, why) in enumerate(failures, start=1):
        if restored is not NEVER:
            generation += 1
            records.append(started(900 + number, generation, step=restored))
        records.append(failed(step, generation, why))
        if number == resumed_after:
            records += [RunClosed(ending="failed"), RunResumed(author="ada")]
    return state_after(created(), *records)


GIVEN_UP: dict[str, tuple[Failure, ...]] = {
    "the same bug at the same step": ((0, 7, BUG), (0, 7, BUG), (0, 7, BUG)),
    "the same bug, each time from a newer checkpoint": ((0, 7, BUG), (4, 7, BUG), (6, 7, BUG)),
    "no step at all": ((40, 40, KILLED), (40, 40, KILLED), (40, 40, KILLED)),
    "the same bug after other failures": ((0, 7, KILLED), (0, 9, OTHER), (0, 9, BUG), (0, 9, BUG), (0, 9, BUG)),
    "no memory, at the same step": ((0, 7, OUT_OF_MEMORY), (0, 7, OUT_OF_MEMORY), (0, 7, OUT_OF_MEMORY)),
    "dead before they begin again": ((0, 30, KILLED), (NEVER, 30, BUG), (NEVER, 30, BUG), (NEVER, 30, BUG)),
    "dead before the first start, twice": ((NEVER, 0, BUG), (NEVER, 0, BUG)),
}

GOES_ON: dict[str, tuple[Failure, ...]] = {
    "one failure too few": ((0, 7, BUG), (0, 7, BUG)),
    "four faults at four steps, before the first checkpoint": tuple((0, step, KILLED) for step in (33, 26, 8, 6)),
    "four kinds of faults at one step": ((0, 7, BUG), (0, 7, KILLED), (0, 7, OTHER), (0, 7, OUT_OF_MEMORY)),
    "the same bug, and a new step before the last one": ((0, 7, BUG), (0, 7, BUG), (0, 8, BUG)),
    "a new step after the last but one": ((0, 7, BUG), (0, 8, BUG), (0, 8, BUG)),
    "two and two, with another between them": ((0, 7, BUG), (0, 7, BUG), (0, 7, OTHER), (0, 7, BUG), (0, 7, BUG)),
    "killed at random for a whole day": tuple((0, 5 + number * 7 % 11, KILLED) for number in range(40)),
    "nodes that die, without one new step": ((0, 7, NODE_DIED),) * 4,
    "dead before the first start, for two reasons": ((NEVER, 0, BUG), (NEVER, 0, OTHER)),
    "twice, after it had begun": ((0, 30, KILLED), (NEVER, 30, BUG), (NEVER, 30, BUG)),
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_same_failure_again_and_again_is_given_up(name: str) -> None:
    failures = GIVEN_UP[name]
    assert reason_to_give_up(story(*failures[:-1])) is None
    assert reason_to_give_up(story(*failures)) is not None


@pytest.mark.parametrize("name", GOES_ON)
def test_everything_else_goes_on_without_end(name: str) -> None:
    for count in range(len(GOES_ON[name]) + 1):
        assert reason_to_give_up(story(*GOES_ON[name][:count])) is None


def test_failures_of_which_nothing_is_known_are_not_the_same_one() -> None:
    def unknown(generation: int) -> list[Record]:
        return [started(900 + generation, generation), GenerationLost(generation=generation, step=7)]

    records = [each for generation in range(1, 5) for each in unknown(generation)]
    assert reason_to_give_up(state_after(created(), *records)) is None
    assert reason_to_give_up(state_after(created(), *[GenerationLost(generation=0, step=0)] * 2)) is not None


def _as_before(attempts: Callable[[RunState], tuple[Attempt, ...]], state: RunState, limit: int = 4) -> str | None:
    """The rule of earlier releases: as many failures as that, none of them beyond the first."""
    lately = attempts(state)[-limit:]
    late = len(lately) == limit and max(each.reached_step for each in lately) <= lately[0].reached_step
    return "given up" if late else None


def _all_attempts(state: RunState) -> tuple[Attempt, ...]:
    return tuple(crash_loop._attempt(state, number, loss) for number, loss in enumerate(state.failures, start=1))


def _any_two_alike(state: RunState) -> str | None:
    """Not in a row."""
    row = failures_without_a_new_step(state)
    return "given up" if row and sum(each.is_like(row[-1]) for each in row) >= SAME_FAILURES else None


MUTANTS: dict[str, dict[str, Any]] = {
    "the signature is ignored": {"is_like": lambda self, other: self._place == other._place},
    "the step is ignored": {"is_like": lambda self, other: self.cause == other.cause},
    "nothing is ever alike": {"is_like": lambda self, other: self is other},
    "a new checkpoint counts as a new step": {
        "is_like": lambda self, other: (
            (self.cause, self.reached_step, self.restored_step)
            == (other.cause, other.reached_step, other.restored_step)
        )
    },
    "once too late": {"SAME_FAILURES": SAME_FAILURES + 1},
    "once too soon": {"SAME_FAILURES": SAME_FAILURES - 1},
    "before the first start as after it": {"SAME_FAILURES_BEFORE_A_START": SAME_FAILURES},
    "after the first start as before it": {"SAME_FAILURES": SAME_FAILURES_BEFORE_A_START},
    "not in a row": {"reason_to_give_up": _any_two_alike},
    "as in earlier releases": {"reason_to_give_up": lambda state: _as_before(_all_attempts, state)},
}


def verdicts() -> dict[str, bool]:
    told: dict[str, list[bool]] = {}
    for name, failures in {**GIVEN_UP, **GOES_ON}.items():
        counts = range(len(failures) + 1)
        told[name] = [crash_loop.reason_to_give_up(story(*failures[:count])) is not None for count in counts]
    return {name: not any(each[:-1]) and each[-1] == (name in GIVEN_UP) for name, each in told.items()}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_of_the_rule_is_caught_by_a_story(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(verdicts().values())
    for name, changed in MUTANTS[mutant].items():
        monkeypatch.setattr(Attempt if name == "is_like" else crash_loop, name, changed)
    assert not all(verdicts().values())


def test_sentence_says_what_was_counted_and_lists_the_attempts() -> None:
    reason = reason_to_give_up(story((0, 7, BUG), (5, 7, BUG), (5, 7, BUG)))
    assert reason == (
        "the trainers failed 3 times in a row in the same way, at step 7, without a new step in between: "
        f"{BUG} (it is said so). Attempts: 1 (generation 1) from step 0 to 7: {BUG}; "
        f"2 (generation 2) from step 5 to 7: {BUG}; 3 (generation 3) from step 5 to 7: {BUG}"
    )
    before = reason_to_give_up(story((NEVER, 0, BUG), (NEVER, 0, BUG)))
    assert str(before).startswith(
        f"the trainers failed 2 times in a row in the same way, before their first step: {BUG}"
    )


def test_run_that_was_given_up_and_resumed_gets_all_its_chances_again() -> None:
    same = [(0, 7, BUG)] * 6
    assert reason_to_give_up(story(*same[:5], resumed_after=3)) is None
    assert reason_to_give_up(story(*same, resumed_after=3)) is not None


def test_journal_without_signatures_goes_by_the_reasons_without_their_noise() -> None:
    def old(step: int, generation: int, reason: str) -> list[Record]:
        return [started(900 + generation, generation), failed(step, generation, "", reason=reason)]

    reasons = [f"CUDA error: assert at 0x7f{n}a21bc0, pid {n * 31}, run 3f9c2d1a{n}" for n in (1, 2, 3)]
    records = [each for n, reason in enumerate(reasons, start=1) for each in old(7, n, reason)]
    assert reason_to_give_up(state_after(created(), *records)) is not None
    others = [each for n, reason in enumerate(("a fire", "a flood", "a fire"), start=1) for each in old(7, n, reason)]
    assert reason_to_give_up(state_after(created(), *others)) is None
    assert without_noise("rank 3 at 10.0.0.7:29500") == "rank # at #:#"


def test_cause_is_told_by_the_rank_that_knows_most() -> None:
    def of(*signatures: str) -> str:
        return cause_of([Death(rank=rank, reason="r", signature=each) for rank, each in enumerate(signatures)])[0]

    assert of(PEER_LOST, BUG) == of(BUG, "gone while training") == of(NO_ANSWER, BUG) == BUG
    assert of(PEER_LOST, KILLED) == of(BUG, KILLED) == KILLED
    assert of("deadlock while training", PEER_LOST) == "deadlock while training"
    assert cause_of([])[0] == "no reason is known"


def test_waits_grow_from_one_second_to_five_minutes_and_begin_anew_with_a_new_step() -> None:
    kinds = (KILLED, BUG, OTHER)
    failures: Sequence[Failure] = [(0, 7, kinds[number % 3]) for number in range(13)]
    waits = [wait_s(story(*failures[:count])) for count in range(14)]
    assert waits[:6] == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0]
    assert waits[-2:] == [MOST_WAIT_S, MOST_WAIT_S]
    assert wait_s(story(*[(0, 7, kinds[number % 3]) for number in range(3000)])) == MOST_WAIT_S
    assert wait_s(story(*failures, (0, 8, KILLED))) == 0.0
    assert len(failures_without_a_new_step(story(*failures[:3]))) >= ALERT_AFTER
    assert is_waiting(story(*failures[:3]), 1.9)
    assert not is_waiting(story(*failures[:3]), 2.1)


def test_run_that_may_fail_for_so_long_only_is_given_up_then_and_says_the_setting() -> None:
    state = story((0, 7, BUG), (0, 7, KILLED))
    assert reason_to_give_up(state, 59.0, give_up_after_s=60) is None
    assert "2 times in 61 s (recovery.give_up_after_s: 60)" in str(reason_to_give_up(state, 61.0, give_up_after_s=60))
    assert reason_to_give_up(state, 1e9) is None
    assert reason_to_give_up(story((0, 7, BUG)), 61.0, give_up_after_s=60) is None, "it has just failed"


def test_step_that_a_dead_rank_has_told_counts_as_reached() -> None:
    dead = (Death(rank=1, reason="r", signature=BUG, step=41),)
    (lost,) = decisions.fail_generation(running(), 1, 38, 0.0, dead)
    assert isinstance(lost, GenerationLost)
    assert lost.step == 41


def test_stop_of_a_run_whose_trainers_are_waited_for_ends_it_at_once() -> None:
    state = running(failed(7, 1, BUG), accepted(1, "stop"), accepted(2, "evaluate"))
    stop, other, closed = decisions.stop_before_a_start(state)
    assert isinstance(stop, CommandSettled)
    assert isinstance(other, CommandSettled)
    assert (stop.uuid, stop.status, other.uuid, other.status) == (uuid(1), "applied", uuid(2), "expired")
    assert closed == RunClosed(ending="stopped")
    assert decisions.stop_before_a_start(running(failed(7, 1, BUG), accepted(2, "evaluate"))) == []
    after = state_after(
        created(), started(), failed(7, 1, BUG), accepted(1, "stop"), stop, closed, RunResumed(author="a")
    )
    assert (after.stopping, after.closed) == (False, None)
    assert decisions.start_generation(after, start(901))
