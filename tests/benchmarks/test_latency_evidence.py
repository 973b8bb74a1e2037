"""What counts as a step of latency, and what as ranks that differ."""

from uuid import UUID, uuid4

import pytest

from benchmarks.live.latency_evidence import Diary, Evidence, Page, Sent
from control_plane.core.model.records import CommandSettled

STEPS = range(1, 11)
BEFORE, ASKED = 1e-3, 5e-4


def diary(changes: dict[int, float], steps: range = STEPS, late_s: float = 0.0) -> dict[int, Page]:
    """Step s runs from s to s + 0.9 seconds, with the last rate that changed at or before it."""
    rate, pages = BEFORE, {}
    for step in steps:
        rate = changes.get(step, rate)
        pages[step] = Page(step + late_s, rate, step + 0.9)
    return pages


def applied(uuid: UUID, step: int) -> CommandSettled:
    return CommandSettled(uuid=uuid, status="applied", step=step, generation=1, world_size=2)


def evidence(taken_s: float, step: int, *diaries: Diary) -> Evidence:
    """One command, and another one at the very end of the diaries so that the run has a speed."""
    uuid, last = uuid4(), uuid4()
    sent = [Sent(uuid, ASKED, taken_s), Sent(last, BEFORE, 9.95)]
    return Evidence(sent, [applied(uuid, step), applied(last, 9)], diaries)


BOTH_USED = (diary({6: ASKED, 10: BEFORE}), diary({6: ASKED, 10: BEFORE}, late_s=0.05))


@pytest.mark.parametrize(
    ("taken_s", "steps"),
    [(3.5, 3), (4.5, 2), (4.95, 1), (5.5, 1), (5.95, 0)],
    ids=["two boundaries late", "prefetched before", "between steps", "in the step", "before the answer came"],
)
def test_steps_count_from_the_last_completed_one(taken_s: float, steps: int) -> None:
    assert evidence(taken_s, 5, *BOTH_USED).figures()["steps_max"] == steps


def test_milliseconds_last_until_the_slowest_rank_uses_the_value() -> None:
    figures = evidence(4.5, 5, *BOTH_USED).figures()
    assert figures["milliseconds_max"] == pytest.approx(1550)
    assert (figures["values_not_used"], figures["steps_where_ranks_differ"], figures["commands_not_applied"]) == (
        0,
    ) * 3
    assert figures["steps_per_s"] == pytest.approx((9 - 3) / (9.95 - 4.5))


def test_a_rank_that_changes_a_step_late_is_counted() -> None:
    late = evidence(4.5, 5, diary({6: ASKED, 10: BEFORE}), diary({7: ASKED, 10: BEFORE}))
    assert (late.differing_steps(), late.unused()) == ([6], [6])


def test_ranks_that_agree_on_another_value_than_the_asked_one_are_counted() -> None:
    wrong = evidence(4.5, 5, diary({6: 2e-4, 10: BEFORE}), diary({6: 2e-4, 10: BEFORE}))
    assert (wrong.differing_steps(), wrong.unused()) == ([], [6])


def test_a_rank_that_stops_early_is_counted() -> None:
    short = evidence(4.5, 5, diary({6: ASKED, 10: BEFORE}), diary({6: ASKED}, steps=range(1, 9)))
    assert (short.differing_steps(), short.unused()) == ([9, 10], [10])


def test_of_two_commands_at_one_boundary_the_last_one_must_be_used() -> None:
    first, second = uuid4(), uuid4()
    sent = [Sent(first, 2e-4, 4.1), Sent(second, ASKED, 4.2)]
    settled = [applied(first, 5), applied(second, 5)]
    assert Evidence(sent, settled, BOTH_USED).unused() == []
    assert Evidence(sent, settled[::-1], BOTH_USED).unused() == [6]


def test_a_command_that_was_never_applied_is_counted() -> None:
    lost, refused, good = (Sent(uuid4(), rate, taken) for rate, taken in ((1e-4, 3.1), (2e-4, 3.2), (ASKED, 4.5)))
    rejected = CommandSettled(uuid=refused.uuid, status="rejected", step=5, generation=1, reason="no")
    figures = Evidence([lost, refused, good], [rejected, applied(good.uuid, 5)], BOTH_USED).figures()
    assert (figures["commands_not_applied"], figures["values_not_used"]) == (2, 0)
