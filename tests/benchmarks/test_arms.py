"""How the arms alternate, and how their times become ratios."""

import pytest

pytest.importorskip("torch")

from benchmarks import boundary, overhead
from benchmarks.boundary_rank import VARIANTS, WARM_UP, plan


def test_boundary_plan_gives_each_variant_the_same_steps_and_turns_round() -> None:
    steps = plan(rounds=2, block_steps=3, warm_up_steps=2)
    assert [round_ for round_, _ in steps[:2]] == [WARM_UP, WARM_UP]
    orders = [[variant for number, variant in steps if number == round_][::3] for round_ in (0, 1)]
    assert orders == [list(VARIANTS), list(VARIANTS[::-1])]
    assert {variant: steps[2:].count((0, variant)) for variant in VARIANTS} == dict.fromkeys(VARIANTS, 3)


def test_boundary_figures_take_the_slowest_rank_and_compare_within_a_round() -> None:
    def rank(factor: float) -> list[tuple[int, str, float, float]]:
        boundary_us = {"none": 1.0, "blocking": 400.0, "prefetched": 100.0, "synchronised": 300.0}
        step_us = {"none": 10_000.0, "blocking": 10_400.0, "prefetched": 10_100.0, "synchronised": 10_900.0}
        return [
            # The machine is twice as slow in the second round: ratios within a round do not see it.
            (number, variant, factor * boundary_us[variant], (1 + number) * step_us[variant])
            for number in (0, 1)
            for variant in VARIANTS
        ]

    figures = boundary.figures_of(boundary.Seen([rank(0.5), rank(1.0)], [[20.0, 30.0, 40.0], [10.0]]))
    assert figures["prefetched_us_p50"] == 100
    assert figures["prefetched_over_blocking"] == pytest.approx(0.25)
    assert figures["blocking_wait_for_slower_rank_share"] == pytest.approx(0.25)
    assert figures["prefetched_percent_of_step"] == pytest.approx(1.0)
    assert figures["prefetched_step_time_ratio"] == pytest.approx(1.01)
    assert figures["bare_broadcast_us_p50"] == 30


def test_overhead_compares_within_a_pair_and_takes_the_median() -> None:
    speeds = [(10.0, 10.0), (20.0, 10.0), (5.0, 10.0)]
    trainings = [
        {"pair": pair, "arm": arm, "steps_per_s": speed, "boundary_us": [] if arm == "plain" else [50.0, 70.0, 60.0]}
        for pair, both in enumerate(speeds)
        for arm, speed in zip(("plain", "steered"), both, strict=True)
    ]
    assert overhead.overheads_percent(trainings) == pytest.approx([0, 100, -50])
    figures = overhead.figures_of([trainings, trainings])
    assert figures["overhead_median_percent"] == pytest.approx(0)
    assert (figures["overhead_min_percent"], figures["overhead_max_percent"]) == pytest.approx((-50, 100))
    assert figures["boundary_us_median"] == 60
