"""Faults in a run that is killed, rolled back, or continued on fewer ranks, in the middle of a window: same alerts."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.health import AlertCleared, AlertRaised
from control_plane.core.model.records import BranchStarted, GenerationStarted
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from tests.ray_jobs.rank.test_steering import command
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.trials.interrupted_trials import DIES_AT, INTERRUPTED_AT, SAVED_AT, SPIKES_AT

pytestmark = [pytest.mark.jobs, pytest.mark.slow, pytest.mark.timeout(300)]

OF_TIMINGS = {"straggling_rank", "stalled_phase", "data_starvation", "memory_near_limit", "checkpoint_too_old"}
TRIALS = "tests.ray_jobs.trials.interrupted_trials:train_each"
CHECKPOINT = f"step-{SAVED_AT:08d}-g1"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("interrupted")
    back = command(INTERRUPTED_AT, kind="rollback", checkpoint=CHECKPOINT)
    trainings: dict[str, dict[str, Any]] = {
        "undisturbed": {},
        "killed": {"interrupted": True, "again": True},
        "rolled back": {"back": back},
        "elastic": {"interrupted": True, "full": True},
    }
    named = {name: folder / f"run-{at}" for at, name in enumerate(trainings)}
    specs = [one | {"root": str(named[name])} for name, one in trainings.items()]
    run_ranks(TRIALS, 2, {"trainings": specs}, folder / "two-ranks")
    run_ranks(TRIALS, 1, {"trainings": [{"root": str(named["elastic"])}]}, folder / "one-rank")
    return named


def records(root: Path, kind: type) -> list[Any]:
    return [entry.record for entry in read(RunFiles(root).journal) if isinstance(entry.record, kind)]


def alerts(root: Path) -> set[tuple[str, str, int]]:
    """Kind, subject and step of the alerts of signs that are no timings; a repeated one counts once."""
    raised = [record.alert for record in records(root, AlertRaised)]
    return {(one.kind, one.subject, one.step) for one in raised if one.kind not in OF_TIMINGS}


def test_undisturbed_run_raises_an_alert_for_each_fault(roots: dict[str, Path]) -> None:
    raised = {(kind, subject): step for kind, subject, step in alerts(roots["undisturbed"])}
    # Measured before the checkpoint, or at its step, and confirmed after it.
    assert raised["vanishing_layer", "blocks.0"] == SAVED_AT + 1
    assert DIES_AT < SAVED_AT < INTERRUPTED_AT < raised["dead_units", "blocks.1"] == 180
    assert raised["gradient_spike", ""] == SPIKES_AT, "after a window that was filled before and after"


@pytest.mark.parametrize("how", ["killed", "rolled back", "elastic"])
def test_run_that_is_interrupted_in_the_middle_of_a_window_raises_the_same_alerts(
    roots: dict[str, Path], how: str
) -> None:
    assert alerts(roots[how]) == alerts(roots["undisturbed"])
    starts = records(roots[how], GenerationStarted)
    assert [len(start.ranks) for start in starts] == ([2, 1] if how == "elastic" else [2, 2])
    assert [start.step for start in starts] == [0, SAVED_AT]
    assert len(records(roots[how], BranchStarted)) == (how == "rolled back")


def test_alert_of_a_rank_that_is_no_more_has_ended(roots: dict[str, Path]) -> None:
    entries = list(read(RunFiles(roots["elastic"]).journal))
    (raised,) = [
        entry for entry in entries if isinstance(entry.record, AlertRaised) and entry.record.alert.subject == "rank 1"
    ]
    assert raised.record.alert.kind == "memory_near_limit"
    ended = {record.alert: record for record in records(roots["elastic"], AlertCleared)}
    assert ended[raised.seq].generation == 2
