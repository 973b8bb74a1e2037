"""The plan of kills, its figures, and what the verdict holds against a journal."""

from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks.kills.campaign import ERROR_POINTS, KILL_POINTS, CampaignPlan, CampaignResult, planned_faults
from benchmarks.kills.clients import LoadOperator, ServerLocation
from benchmarks.kills.kills import figures, main
from benchmarks.kills.rank import Rank
from benchmarks.kills.verdict import judge
from control_plane.storage.failpoints import parse
from control_plane.storage.journal.writer import Journal
from tests.storage.facts import NOW, accepted, settled


def test_plan_takes_every_point_in_its_turn_and_is_the_seeds_own() -> None:
    count = len(KILL_POINTS)
    plan = list(islice(planned_faults(CampaignPlan(3)), 2 * count))
    assert [sorted(fault.point for fault in half) for half in (plan[:count], plan[count:])] == [sorted(KILL_POINTS)] * 2
    assert (
        plan
        == list(islice(planned_faults(CampaignPlan(3)), 2 * count))
        != list(islice(planned_faults(CampaignPlan(4)), 2 * count))
    )


@pytest.mark.parametrize("kinds", [("kill",), ("stop", "kill"), ("error",)])
def test_plan_is_made_of_specifications_that_make_sense(kinds: tuple[str, ...]) -> None:
    for fault in islice(planned_faults(CampaignPlan(1, kinds=kinds)), 200):  # type: ignore[arg-type]
        assert fault.point in parse(fault.failpoints)
        if fault.kind == "error":
            assert set(parse(fault.failpoints)) == set(ERROR_POINTS)


def test_figures_count_points_that_were_never_reached() -> None:
    seen = CampaignResult(took_s=2.0)
    seen.kills.update({KILL_POINTS[0]: 3, "from outside": 5})
    told = figures(seen)
    assert (told["kills"], told["points"], told["points_not_reached"]) == (8, 1, len(KILL_POINTS) - 1)
    assert (told["kills_per_s"], told["at_most_per_1000_kills"]) == (4, 375)


def test_verdict_names_what_was_lost_and_what_was_done_twice(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    writer = Journal.open(tmp_path / "journal")
    writer.append([accepted(1), accepted(2), accepted(2)], NOW)
    writer.append([settled(1), settled(1), settled(2)], NOW)
    operator, rank = LoadOperator(ServerLocation(), "a"), Rank(ServerLocation(), "b", tmp_path)
    operator.acknowledged = {UUID(int=1): 1, UUID(int=2): 9, UUID(int=3): 4}
    operator.refused = [UUID(int=2)]
    rank.offered_again = [UUID(int=1)]
    verdict = judge(tmp_path, [operator, rank])
    assert (verdict.lost, verdict.twice, verdict.entries) == (2, 3, 6)
    assert f"{UUID(int=2)} was refused, but is in the journal" in verdict.problems


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--kinds", "explode"], "'explode' is none of kill, stop, error"),
        (["--points", "here"], "'here' is none of journal.folder.before_create"),
        (["--errors", "3"], "--errors needs --kinds error"),
    ],
)
def test_plan_that_makes_no_sense_is_refused(
    arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kills", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert complaint in capsys.readouterr().err
