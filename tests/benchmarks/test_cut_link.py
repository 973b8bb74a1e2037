"""Figures of the benchmarks of cut links and of false node deaths."""

from benchmarks.network import node_deaths
from benchmarks.network.cut_link import Cut, result_of
from benchmarks.recovery.diary import Recovery


def cut(seconds: float, dead_s: float | None = 10.0) -> Cut:
    recovery = Recovery(100.0, 105.0, 106.0, 107.0, 100.0 + seconds, 100.0 + seconds + 1, 40, 20)
    return Cut(recovery, {"detect": 5.0, "re-form": 1.0}, dead_s, 3.0)


def test_targets_bound_the_median_and_the_worst_of_our_arm() -> None:
    good = result_of(3, [cut(8), cut(9), cut(20)], [cut(150)])
    assert good.met
    assert good.figures["without_over_ours"] == 150 / 9
    assert not result_of(3, [cut(8), cut(9), cut(20.1)], [cut(150)]).met
    assert not result_of(3, [cut(15.5), cut(15.5), cut(16)], [cut(150)]).met


def test_a_node_that_ray_never_declared_dead_is_no_zero() -> None:
    figures = result_of(2, [cut(8, None), cut(9, 11.0)], [cut(150, None)]).figures
    assert figures["ours_node_dead_s_p50"] == 11.0
    assert figures["without_node_dead_s_p50"] != figures["without_node_dead_s_p50"]


def test_a_false_death_of_a_node_or_a_generation_misses_the_target() -> None:
    assert node_deaths.result_of(30, 30.0, 0, 0, 1000, [20.0]).met
    assert not node_deaths.result_of(30, 30.0, 1, 0, 1000, [20.0]).met
    assert not node_deaths.result_of(30, 30.0, 0, 1, 1000, [20.0]).met
    assert node_deaths.result_of(30, 30.0, 0, 0, 1000, []).figures["false_node_deaths_per_node_hour_bound"] == 2.0
