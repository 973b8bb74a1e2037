"""What the recovery benchmark reads out of the diaries of ranks that were killed, on diaries that are known."""

from pathlib import Path

import pytest

from benchmarks.failures.false_alarms import evaluation_steps, figures_of_calm, longest_gap_s
from benchmarks.harness.quantiles import median
from benchmarks.recovery.diary import (
    BEGUN,
    LOADED,
    STEP,
    DiaryPen,
    RankProcess,
    latest,
    read_processes,
    recovery_of,
    steps_of_all,
)
from benchmarks.recovery.faults import kill_all, living
from benchmarks.recovery.recovery import RecoveryTrial, figures_of, result_of
from control_plane.core.model.records import GenerationLost

KILLED_S, DETECTED_S = 100.0, 103.0


def life(rank: int, begun_s: float, first: int, ends: list[float], loaded_s: float | None = None) -> RankProcess:
    """A process that ends step `first` at the first of these times, and so on."""
    return RankProcess(rank, int(begun_s) * 10 + rank, begun_s, loaded_s, dict(enumerate(ends, first)))


def before(last_of_rank_1: float = 99.2) -> list[RankProcess]:
    """Steps 1 to 5, of which rank 1 may have ended the last one later."""
    return [life(0, 10.0, 1, [95, 96, 97, 98, 99]), life(1, 11.0, 1, [95, 96, 97, 98, last_of_rank_1])]


def after(first: int = 4) -> list[RankProcess]:
    return [
        life(0, 104.0, first, [107.0, 108.0, 109.0], loaded_s=105.0),
        life(1, 104.5, first, [107.5, 108.5, 109.5], loaded_s=105.5),
    ]


def test_seconds_last_until_the_last_rank_has_ended_the_first_new_step() -> None:
    recovery = recovery_of(before() + after(), KILLED_S, DETECTED_S, ranks=2)
    assert recovery is not None
    assert (recovery.seconds, recovery.seconds_to_be_back) == pytest.approx((7.5, 8.5))
    assert (recovery.reached, recovery.resumed, recovery.lost_steps) == (5, 3, 2)
    phases = recovery.split()
    assert list(phases) == ["detect", "re-form", "load", "first step"]
    assert list(phases.values()) == pytest.approx([3.0, 1.5, 1.0, 2.0])
    assert sum(phases.values()) == pytest.approx(recovery.seconds)


def test_a_step_that_a_living_rank_ends_after_the_fault_is_reached_but_not_new() -> None:
    lives = [*before(last_of_rank_1=100.3), *after()]
    lives[1] = life(1, 11.0, 1, [95, 96, 97, 98, 99, 100.3])
    recovery = recovery_of(lives, KILLED_S, DETECTED_S, ranks=2)
    assert recovery is not None
    assert (recovery.stepped_s, recovery.reached, recovery.lost_steps) == (107.5, 6, 3)


@pytest.mark.parametrize(
    "new",
    [[], after()[:1], [life(0, 104.0, 4, [107.0]), life(1, 104.5, 4, [107.5])]],
    ids=["nobody", "one rank only", "not yet where it was"],
)
def test_a_run_that_is_not_back_has_no_recovery(new: list[RankProcess]) -> None:
    assert recovery_of(before() + new, KILLED_S, DETECTED_S, ranks=2) is None


def test_a_start_that_fails_is_passed_over_and_its_time_counts() -> None:
    failed = [life(0, 102.0, 4, []), life(1, 102.1, 4, [])]
    recovery = recovery_of(before() + failed + after(), KILLED_S, DETECTED_S, ranks=2)
    assert recovery is not None
    assert (recovery.begun_s, recovery.seconds) == (104.5, 7.5)


def test_only_the_last_processes_before_the_fault_say_what_was_reached() -> None:
    earlier = [life(rank, 1.0 + rank, 1, [float(end) for end in range(2, 12)]) for rank in (0, 1)]
    recovery = recovery_of(earlier + before() + after(), KILLED_S, DETECTED_S, ranks=2)
    assert recovery is not None
    assert recovery.reached == 5


def test_a_clock_that_went_back_makes_no_phase_negative() -> None:
    recovery = recovery_of(before() + after(), KILLED_S, detected_s=99.5, ranks=2)
    assert recovery is not None
    assert min(recovery.split().values()) == 0


def test_steps_of_all_need_every_rank() -> None:
    lives = [life(0, 1.0, 1, [2.0, 3.0]), life(1, 1.0, 1, [2.5])]
    assert steps_of_all(lives, 2) == {1: 2.5}
    assert latest([*lives, life(0, 9.0, 1, [])])[0].begun_s == 9.0


def test_a_diary_is_read_as_it_was_written_even_with_a_torn_last_line(tmp_path: Path) -> None:
    pen = DiaryPen(tmp_path, rank=1)
    assert read_processes(tmp_path) == []
    pen.write(BEGUN)
    pen.write(LOADED, 20)
    pen.write(STEP, 21)
    (path,) = tmp_path.glob("rank-1-*.diary")
    with path.open("a") as file:
        file.write("step 2")
    (found,) = read_processes(tmp_path)
    assert (found.rank, list(found.ends_s)) == (1, [21])
    assert found.loaded_s is not None
    assert found.begun_s <= found.loaded_s <= found.ends_s[21]


def trial(stepped_s: float, resumed: int = 3, warm: bool = True) -> RecoveryTrial:
    recovery = recovery_of(before() + after(resumed + 1), KILLED_S, DETECTED_S, ranks=2)
    assert recovery is not None
    moved = type(recovery)(KILLED_S, 103.0, 104.5, 105.5, stepped_s, stepped_s + 1, recovery.reached, resumed)
    return RecoveryTrial(moved, 2, warm, 0, 0.5)


def test_figures_are_medians_and_worst_cases() -> None:
    seconds = [6.0, 7.0, 9.0]
    figures = figures_of("ours", [trial(KILLED_S + length) for length in seconds])
    assert figures["ours_seconds_p50"] == pytest.approx(median(seconds))
    assert (figures["ours_seconds_worst"], figures["ours_seconds_to_be_back_worst"]) == pytest.approx((9, 10))
    assert [figures[f"ours_{phase}_s_p50"] for phase in ("detect", "reform", "load")] == pytest.approx([3, 1.5, 1])
    assert figures["ours_steps_lost_worst"] == 2


def test_the_ratio_is_of_medians_and_stock_that_never_came_back_is_a_lower_bound() -> None:
    ours = [trial(106.0), trial(106.0, warm=False)]
    result = result_of("node", 2, ours, [trial(160.0)], {"stock_over_ours": {"min": 5}})
    assert result.figures["stock_over_ours"] == pytest.approx(10)
    assert result.figures["ours_faults_without_warm_spares"] == 1
    assert result.met
    never = result_of("stop", 2, ours, [], {}, gave_up_after_s=600.0)
    assert (never.figures["stock_over_ours"], never.figures["stock_gave_up"]) == (pytest.approx(100), 1)


def test_a_loss_in_the_journal_is_a_false_alarm() -> None:
    lives = [life(rank, 1.0, 1, [2.0 + step for step in range(2 * evaluation_steps())]) for rank in (0, 1)]
    lost = GenerationLost(generation=1, step=9)
    calm, alarmed = (figures_of_calm(30.0, records, lives) for records in ([], [lost]))
    assert (calm["false_alarms"], alarmed["false_alarms"]) == (0, 1)
    assert (calm["evaluations"], calm["false_alarms_per_hour_bound"]) == (2, pytest.approx(6))


def test_the_longest_gap_is_of_one_process() -> None:
    assert longest_gap_s(life(0, 1.0, 1, [2.0, 3.0, 7.5, 8.0])) == pytest.approx(4.5)
    assert longest_gap_s(life(0, 1.0, 1, [2.0])) == 0


def test_what_is_found_is_killed_and_no_more_of_it_is_living() -> None:
    import subprocess
    import sys

    import psutil

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert living([child.pid]) == 1
    kill_all(lambda: [psutil.Process(child.pid)] if living([child.pid]) else [])
    assert living([child.pid]) == 0
    assert child.wait(10) is not None  # who waits for it first gets the status
