"""What the figures of `deaths` and `busy` say: of faults that were found or not, of ranks that were let be."""

import math
from collections import Counter
from itertools import pairwise

from benchmarks.failures import busy, deaths
from benchmarks.failures.busy_rank import schedule
from benchmarks.failures.deaths import END_WAIT_S, DetectionTrial


def test_faults_that_are_all_found_in_time_meet_the_target_and_bound_what_is_missed() -> None:
    trials = [
        DetectionTrial(fault, n % 2, 5.0 + n / 10, 5.5 + n / 10, "") for fault in deaths.FAULTS for n in range(10)
    ]
    result = deaths.result_of(10, trials)
    assert result.met
    assert result.figures["stop_found_in_time"] == result.figures["rank_found_in_time"] == 10
    assert result.figures["stop_missed_share_bound"] == 0.3
    assert (result.figures["stop_found_s_least"], result.figures["stop_found_s_worst"]) == (5.0, 5.9)


def test_fault_that_is_found_late_or_leaves_something_misses_the_target() -> None:
    good = [DetectionTrial(fault, 0, 5.0, 5.5, "") for fault in deaths.FAULTS]
    late = deaths.result_of(1, [*good, DetectionTrial("stop", 0, 6.1, 6.2, "")])
    assert not late.met
    assert late.figures["stop_missed_share_bound"] == 1.0
    left = deaths.result_of(1, [*good, DetectionTrial("rank", 0, 0.1, END_WAIT_S + 1, "")])
    assert (left.met, left.figures["left_behind"]) == (False, 1)


def test_hindrances_do_not_overlap_and_reach_both_ranks() -> None:
    plan = schedule(20, 30, 200)
    assert all(one.at_s + one.for_s < other.at_s for one, other in pairwise(plan))
    assert plan[-1].at_s + plan[-1].for_s < 20 * 60
    both = {(each.kind, each.rank) for each in plan}
    assert both == {("lock", 0), ("lock", 1), ("callback", 0), ("callback", 1)}
    assert Counter(each.kind for each in plan)["callback"] >= 2


def test_ranks_left_in_peace_meet_the_target_and_one_taken_for_dead_does_not() -> None:
    planned, answer = Counter(lock=10, callback=2), {"seconds": 1200.0, "done": 12, "steps": 900, "checkpoints": 4}
    calm = busy.result_of(20, planned, [answer, answer], 0, [8.0, 9.0])
    assert calm.met
    assert (calm.figures["false_deaths_per_hindrance_bound"], calm.figures["load_1min_mean"]) == (3 / 13, 8.5)
    assert calm.figures["false_deaths_per_hour_bound"] == 9.0
    alarmed = busy.result_of(20, planned, [], 1, [])
    assert not alarmed.met
    assert math.isinf(alarmed.figures["false_deaths_per_hour_bound"])
