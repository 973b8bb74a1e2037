"""Retention: which checkpoints may go, and what no setting can make go."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from control_plane.core.rules.retention import CheckpointFacts, Retention, to_discard

values = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([1.0, 2.0]))
facts = st.builds(
    CheckpointFacts,
    checkpoint=st.text("abc", min_size=1, max_size=3),
    step=st.integers(0, 40),
    pinned=st.booleans(),
    metrics=st.dictionaries(st.sampled_from(["eval_loss", "accuracy"]), values),
    base_of=st.integers(0, 2),
    seq=st.sampled_from([0, 0, 1, 2, 3]),
)
lists = st.lists(facts, max_size=14, unique_by=lambda one: one.checkpoint)
rules = st.builds(
    Retention,
    keep_last=st.integers(1, 5),
    keep_every_steps=st.integers(0, 12),
    keep_best=st.integers(0, 4),
    best_metric=st.sampled_from([None, "eval_loss", "accuracy"]),
    best_mode=st.sampled_from(["min", "max"]),
)
names_in_use = st.sets(st.text("abc", min_size=1, max_size=3), max_size=4)


def discarded(checkpoints: list[CheckpointFacts], retention: Retention, in_use: set[str] | None = None) -> list[str]:
    return [name for name, _ in to_discard(checkpoints, retention, in_use or set())]


def at(step: int, **told: object) -> CheckpointFacts:
    return CheckpointFacts(checkpoint=f"step-{step}", step=step, **told)  # type: ignore[arg-type]


def scored(losses: dict[int, float]) -> list[CheckpointFacts]:
    return [at(step, metrics={"eval_loss": loss}) for step, loss in losses.items()]


@given(lists, rules, names_in_use)
def test_discard_whatever_the_settings_never_takes_what_always_stays(
    checkpoints: list[CheckpointFacts], retention: Retention, in_use: set[str]
) -> None:
    gone = set(discarded(checkpoints, retention, in_use))
    assert gone <= {one.checkpoint for one in checkpoints} - in_use
    assert not gone & {one.checkpoint for one in checkpoints if one.pinned or one.base_of}
    if checkpoints:
        newest = max(checkpoints, key=lambda one: (one.seq, one.step, one.checkpoint))
        assert newest.checkpoint not in gone
        assert len(checkpoints) - len(gone) >= min(retention.keep_last, len(checkpoints))


@given(lists, rules, names_in_use, st.randoms())
def test_discard_does_not_depend_on_the_order_that_it_is_told_in(
    checkpoints: list[CheckpointFacts], retention: Retention, in_use: set[str], dice: random.Random
) -> None:
    shuffled = dice.sample(checkpoints, len(checkpoints))
    assert to_discard(shuffled, retention, in_use) == to_discard(checkpoints, retention, in_use)


@given(lists, rules, names_in_use)
def test_discard_done_and_asked_again_takes_nothing_more(
    checkpoints: list[CheckpointFacts], retention: Retention, in_use: set[str]
) -> None:
    gone = set(discarded(checkpoints, retention, in_use))
    rest = [one for one in checkpoints if one.checkpoint not in gone]
    assert discarded(rest, retention, in_use) == []


@given(lists, rules)
def test_discard_keeps_no_more_than_its_rules_ask_for(checkpoints: list[CheckpointFacts], retention: Retention) -> None:
    gone = set(discarded(checkpoints, retention))
    protected = [one for one in checkpoints if one.pinned or one.base_of]
    spans = {one.step // retention.keep_every_steps for one in checkpoints} if retention.keep_every_steps else ()
    assert len(checkpoints) - len(gone) <= (len(protected) + retention.keep_last + retention.keep_best + len(spans))


@given(lists, rules)
def test_best_kept_are_as_good_as_any_that_went(checkpoints: list[CheckpointFacts], retention: Retention) -> None:
    """Against a dumb second implementation: nothing that went beats one of the best that stayed."""
    gone = set(discarded(checkpoints, retention))
    name = retention.best_metric or ""
    sign = 1 if retention.best_mode == "min" else -1
    finite = {
        one.checkpoint: sign * one.metrics[name]
        for one in checkpoints
        if name in one.metrics and math.isfinite(one.metrics[name])
    }
    best = sorted(finite.values())[: retention.keep_best]
    worst = best[-1] if best else -math.inf
    assert all(value >= worst for checkpoint, value in finite.items() if checkpoint in gone)
    assert sum(finite[one] <= worst for one in finite.keys() - gone) >= len(best)


def test_keep_last_three_of_five_lets_the_two_oldest_go_with_a_reason() -> None:
    gone = to_discard([at(step) for step in (50, 10, 30, 20, 40)], Retention(), ())
    assert [name for name, _ in gone] == ["step-10", "step-20"]
    assert gone[0][1] == "outside retention (keep_last=3), not pinned, unused"


def test_keep_last_after_a_rollback_keeps_what_was_saved_last() -> None:
    """Without the seq, the abandoned future would push out the only checkpoint that the run can go on from."""
    abandoned = [at(step, seq=step) for step in (300, 400, 500)]
    assert discarded([*abandoned, at(150, seq=700)], Retention(keep_last=1)) == ["step-300", "step-400", "step-500"]


def test_keep_every_steps_keeps_the_first_of_each_span() -> None:
    checkpoints = [at(step) for step in (100, 200, 1007, 1100, 2000, 2100, 2200)]
    gone = discarded(checkpoints, Retention(keep_last=1, keep_every_steps=1000))
    assert gone == ["step-200", "step-1100", "step-2100"]


def test_keep_best_ignores_what_is_not_finite_and_prefers_the_older_of_equals() -> None:
    losses = {1: math.nan, 2: -math.inf, 3: 0.5, 4: 0.5, 5: 0.7, 6: 9.0}
    gone = discarded(scored(losses), Retention(keep_last=1, keep_best=1))
    assert gone == ["step-1", "step-2", "step-4", "step-5"]


def test_keep_best_of_a_metric_to_maximise_keeps_the_highest() -> None:
    checkpoints = scored({1: 0.1, 2: 0.9, 3: 0.5})
    kept = Retention(keep_last=1, keep_best=1, best_mode="max")
    gone = to_discard(checkpoints, kept, ())
    assert [name for name, _ in gone] == ["step-1"]
    assert "keep_last=1, keep_best=1 by max eval_loss" in gone[0][1]


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_best": -1}, {"keep_every_steps": -5}, {"best_mode": "up"}])
def test_retention_that_would_keep_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Retention.model_validate(wrong)
