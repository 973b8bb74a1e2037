"""Streams of digests: what is equal, where two part, and what one says twice."""

import pytest

from control_plane.core.model.errors import Conflict
from control_plane.core.model.records import StateDigested
from control_plane.core.rules.digests import compare, digest_state
from tests.core.examples import created, digested, lost, started, state_after

A = [digested(1), digested(2), digested(3)]


def test_equal_streams_are_identical_at_their_common_steps() -> None:
    found = compare(A, [*A[1:], digested(4)])
    assert (found.verdict, found.steps, found.unlike, found.first) == ("identical", (2, 3), (), None)


def test_first_step_and_every_rank_that_differs_are_told() -> None:
    other = [A[0], digested(2, ranks=("a2", "x")), digested(3, ranks=("y", "y"))]
    first = compare(A, other).first
    assert first is not None
    assert (first.step, first.ranks, first.ours.samples) == (2, (1,), first.theirs.samples)
    assert compare(A, other).verdict == "divergent"


def test_other_samples_are_a_divergence_even_where_the_ranks_are_equal() -> None:
    first = compare(A, [digested(2, samples="other")]).first
    assert first is not None
    assert (first.ranks, first.ours.samples == first.theirs.samples) == ((), False)


def test_nothing_in_common_is_not_called_identical() -> None:
    assert compare(A, [digested(9)]).verdict == "incomparable"
    assert compare([], []).verdict == "incomparable"


def test_another_number_of_ranks_compares_the_samples_alone() -> None:
    alone = [digested(step, ranks=("z",)) for step in (1, 2)]
    assert compare(A, alone).verdict == "incomparable"
    assert compare(A, alone).unlike == (1, 2)
    assert compare(A, [*alone, A[2]]).verdict == "identical"
    other = compare(A, [alone[0], digested(2, ranks=("z",), samples="other")])
    assert other.first is not None
    assert (other.verdict, other.first.step, other.first.ranks) == ("divergent", 2, ())


def test_another_algorithm_is_not_taken_for_another_state() -> None:
    assert compare(A, [each.model_copy(update={"algorithm": "sha256"}) for each in A]).first is None


def test_step_digested_twice_must_be_equal_to_itself_and_the_last_counts() -> None:
    repeated = [A[0], digested(2, ranks=("x", "b2")), A[1].model_copy(update={"generation": 2}), A[2]]
    found = compare(A, repeated)
    assert found.verdict == "identical"
    (contradiction,) = found.their_contradictions
    assert (contradiction.step, contradiction.ranks) == (2, (0,))
    assert (contradiction.ours.generation, contradiction.theirs.generation) == (1, 2)
    assert found.our_contradictions == ()
    assert compare([*A, *A], A).our_contradictions == ()


def test_digest_told_twice_is_recorded_once_and_another_is_refused() -> None:
    state = state_after(created(), started(), digested(1), digested(2))
    assert digest_state(state, digested(1)) == []
    assert digest_state(state, digested(3)) == [digested(3)]
    with pytest.raises(Conflict, match="another digest of step 2"):
        digest_state(state, digested(2, ranks=("a2", "x")))
    assert (state.step, state.reached_step) == (2, 2)


def test_later_generation_digests_a_step_again() -> None:
    state = state_after(created(), started(), digested(2), lost(2), started(901, 2, step=0))
    again: StateDigested = digested(2, ranks=("x", "y"), generation=2)
    assert digest_state(state, again) == [again]
