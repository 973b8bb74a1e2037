"""Weak spots: ranked by held-out loss, with the change since the evaluation before, and what is more than noise."""

from math import hypot, nan

import pytest

from control_plane.core.health.weak_spots import held_out_names, weak_spots, weakest

Points = list[tuple[str, int, float]]


def evaluated(step: int, losses: dict[str, float], error: float | None = 0.1) -> Points:
    points = [(f"eval_loss/{name}", step, loss) for name, loss in losses.items()]
    return points + [(f"eval_error/{name}", step, error) for name in losses if error is not None]


def test_highest_loss_is_first_with_its_change_since_the_evaluation_before() -> None:
    points = evaluated(10, {"web": 3.0, "fresh": 5.0}) + evaluated(20, {"web": 2.5, "fresh": 5.1}, 0.2)
    first, second = weak_spots(points)
    assert (first.name, first.loss, first.step, first.evaluations) == ("fresh", 5.1, 20, 2)
    assert first.change == pytest.approx(0.1)
    assert first.change_error == pytest.approx(hypot(0.1, 0.2))
    assert (first.has_changed, second.has_changed) == (False, True)
    assert first.is_clearly_above(second)
    assert not second.is_clearly_above(first)
    assert weak_spots([]) == []


def test_a_first_evaluation_has_no_change_and_an_unknown_error_is_never_clear() -> None:
    first, second = weak_spots(evaluated(10, {"web": 1.0, "fresh": 9.0}, error=None))
    assert (first.error, first.change, first.change_error, first.has_changed) == (None, None, None, False)
    assert not first.is_clearly_above(second)
    assert weakest([first, second]) is first


def test_what_was_taken_back_does_not_count() -> None:
    points = evaluated(10, {"web": 3.0}) + evaluated(20, {"web": 9.0}) + evaluated(15, {"web": 2.0})
    (spot,) = weak_spots(points)
    assert (spot.step, spot.loss, spot.change, spot.evaluations) == (15, 2.0, -1.0, 2)


def test_sources_that_are_gone_and_slices_of_earlier_evaluations_are_left_out() -> None:
    points = evaluated(10, {"web": 3.0, "web/old": 8.0, "gone": 9.0}) + evaluated(20, {"web": 2.0, "web/new": 4.0})
    assert [spot.name for spot in weak_spots(points, sources=("web",))] == ["web/new", "web"]
    bad = [("eval_loss/web", 30, nan), ("loss", 30, 1.0), ("eval_loss", 30, 1.0)]
    assert [spot.step for spot in weak_spots(points + bad, sources=("web",))] == [20, 20]
    assert held_out_names(name for name, _, _ in bad) == ["eval_loss/web"]


def test_a_small_slice_does_not_win_by_noise_and_a_source_is_as_weak_as_its_slices() -> None:
    points = evaluated(10, {"web": 4.0, "web/a": 3.0, "web/b": 4.6}) + evaluated(10, {"web/rare": 6.0}, 2.0)
    points += evaluated(10, {"fresh": 4.2})
    spots = weak_spots(points)
    assert spots[0].name == "web/rare"
    found = weakest(spots)
    assert found is not None
    assert found.name == "web/b", "6.0 is 2.0 at the least"
    among = weakest(spots, among=("fresh",))
    assert among is not None
    assert among.name == "fresh"
    assert weakest(spots, among=("other",)) is None
