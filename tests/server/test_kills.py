"""SIGKILL of the control server at every named failpoint, under load: nothing acknowledged is lost, nothing done twice.

The faults of `planted` guard the campaign: with any one of them planted, it ends badly. A failure says how to play
its plan again.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills.campaign import ERROR_POINTS, KILL_POINTS, STOP_POINTS, Campaign, CampaignPlan, CampaignResult
from benchmarks.kills.kills import figures
from benchmarks.kills.process_pool import ProcessPool, process_pool
from tests.server import planted

APPEND = tuple(point for point in KILL_POINTS if point.startswith("journal.append"))
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def lives() -> Iterator[ProcessPool]:
    with process_pool() as made:
        yield made


def check(seen: CampaignResult, course: CampaignPlan, kills: int, errors: int = 0) -> None:
    """The verdict, with the way to come back to it."""
    assert seen.verdict.problems == [], course.repro(kills, errors)
    assert (seen.verdict.lost, seen.verdict.twice) == (0, 0)
    assert seen.verdict.acknowledged > kills / 4, "there was load"
    assert seen.verdict.applied > kills / 4
    assert (seen.total_kills >= kills, seen.errors.total() >= errors) == (True, True)


def test_control_server_killed_at_every_failpoint_loses_nothing_and_does_nothing_twice(
    lives: ProcessPool, tmp_path: Path
) -> None:
    course, kills = CampaignPlan(seed=20, kinds=("kill",)), 2 * len(KILL_POINTS)
    seen = Campaign(lives, course, tmp_path).run(kills)
    check(seen, course, kills)
    assert set(KILL_POINTS) - seen.kills.keys() == set(), "each was the place of a death"
    assert figures(seen)["points"] == len(KILL_POINTS) > 20
    assert list(tmp_path.iterdir()) == [], "only a round with a problem is kept"


def test_control_server_overtaken_while_it_stands_at_a_failpoint_confirms_nothing_more(
    lives: ProcessPool, tmp_path: Path
) -> None:
    course, kills = CampaignPlan(seed=21, points=STOP_POINTS, kinds=("stop",)), 16
    seen = Campaign(lives, course, tmp_path).run(kills)
    check(seen, course, kills)
    assert seen.overtaken > 3


def test_disk_that_refuses_again_and_again_is_never_called_durable(lives: ProcessPool, tmp_path: Path) -> None:
    course, errors = CampaignPlan(seed=22, kinds=("error",)), 60
    check(Campaign(lives, course, tmp_path).run(0, errors), course, 0, errors)


COURSES: dict[str, CampaignPlan] = {
    "acknowledges_before_the_sync": CampaignPlan(1, (*APPEND, "server.submit.before_reply"), ("kill",), power=1.0),
    "never_syncs": CampaignPlan(1, APPEND, ("kill",), power=1.0),
    "never_syncs_the_names": CampaignPlan(1, APPEND, ("kill",), power=1.0),
    "looks_for_no_successor": CampaignPlan(1, STOP_POINTS, ("stop",)),
    "goes_on_behind_a_failed_write": CampaignPlan(1, kinds=("error",)),
    "forgets_the_last_record": CampaignPlan(1, APPEND, ("kill",)),
    "evolves_before_it_appends": CampaignPlan(1, kinds=("error",)),
    "answers_before_it_appends": CampaignPlan(1, APPEND, ("kill",)),
    "answers_a_retry_from_memory": CampaignPlan(1, kinds=("error",)),
    "takes_every_request_for_a_new_one": CampaignPlan(1, ("server.submit.before_reply",), ("kill",)),
    "removes_before_it_decides": CampaignPlan(
        1, ("removal.manifest.before_sync", "removal.files.after_sync"), ("kill",)
    ),
}
FEW_KILLS = 80


@pytest.mark.parametrize("fault", COURSES)
def test_campaign_against_a_planted_fault_ends_badly_after_few_kills(
    fault: str, lives: ProcessPool, tmp_path: Path
) -> None:
    course = COURSES[fault]
    mutant = CampaignPlan(course.seed, course.points, course.kinds, course.power, f"{planted.__name__}:{fault}")
    seen = Campaign(lives, mutant, tmp_path).run(FEW_KILLS, until_a_problem=True)
    assert seen.verdict.problems, f"{seen.total_kills} kills did not find it"


def test_every_planted_fault_has_a_course() -> None:
    faults = {name for name, value in vars(planted).items() if getattr(value, "__module__", "") == planted.__name__}
    assert faults == COURSES.keys()


@SLOW
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [101, 102, 103])
def test_a_thousand_kills_lose_nothing_and_do_nothing_twice(lives: ProcessPool, tmp_path: Path, seed: int) -> None:
    course, kills = CampaignPlan(seed), 1000
    seen = Campaign(lives, course, tmp_path).run(kills)
    check(seen, course, kills)
    assert set(KILL_POINTS) - seen.kills.keys() == set()


@SLOW
@pytest.mark.timeout(1800)
def test_a_thousand_errors_of_the_disk_acknowledge_nothing_falsely(lives: ProcessPool, tmp_path: Path) -> None:
    course, errors = CampaignPlan(seed=104, kinds=("error",)), 1000
    seen = Campaign(lives, course, tmp_path).run(0, errors)
    check(seen, course, 0, errors)
    assert set(ERROR_POINTS) - seen.errors.keys() == set(), "each has refused"
