"""A replay of a script with several trainings is compared training by training: each has steps of its own."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.api.messages import Point, Report
from control_plane.compare.replay_check import ReplayVerdict, judge
from control_plane.core.model.records import Death, Parent, StateDigested
from control_plane.core.model.values import LeftOut
from control_plane.storage.layout import RunFiles
from tests.server.rig import CREATED, Rig, start
from tests.server.virtual_time import run

Life = tuple[int, int, int, bool]
"""Which training, the step that was restored, the last step that was made, and whether the trainers failed then."""

UNDISTURBED: Sequence[Life] = ((1, 0, 4, False), (2, 0, 4, False))
FAILED_IN_THE_SECOND: Sequence[Life] = ((1, 0, 4, False), (2, 0, 3, True), (1, 2, 4, False), (2, 2, 4, False))


def lived(
    root: Path, lives: Sequence[Life], other: Mapping[tuple[int, int], float] = {}, parent: Parent | None = None
) -> RunFiles:
    """A run whose losses and digests follow from training and step; `other` has other losses there."""

    async def story() -> None:
        server = Rig(root).serve(CREATED.model_copy(update={"parent": parent}))
        for generation, (training, restored, last, fails) in enumerate(lives, start=1):
            await server.start_generation(replace(start(generation, step=restored), training=training))
            for step in range(restored + 1, last + 1):
                loss = other.get((training, step), training + step / 10)
                name = f"{training}.{step}.{loss}"
                digest = StateDigested(generation=generation, step=step, ranks=(name,), samples=name)
                point = Point(step=step, name="loss", value=loss, time_s=float(step))
                await server.report(Report(generation=generation, digests=(digest,), points=(point,)))
            if fails:
                await server.fail_generation(generation, (Death(rank=0, reason="a fault"),))
            else:
                await server.end_generation(generation, "finished", last, None)

    root.mkdir()
    run(story())
    return RunFiles(root)


def test_trainings_that_were_made_again_in_part_are_compared_each_with_its_own(tmp_path: Path) -> None:
    again, once = lived(tmp_path / "a", UNDISTURBED), lived(tmp_path / "b", FAILED_IN_THE_SECOND)
    for verdict in (judge(again, once), judge(once, again)):
        assert verdict == ReplayVerdict(verdict="identical", digests=8, losses=8)


def test_difference_is_named_with_its_training(tmp_path: Path) -> None:
    once = lived(tmp_path / "a", UNDISTURBED)
    second = judge(lived(tmp_path / "b", UNDISTURBED, {(2, 2): 9.0}), once)
    assert second.sentence().startswith(
        "divergent: the first difference is at step 2 of main, training 2 of the script: rank 0 differs"
    )
    both = judge(lived(tmp_path / "c", UNDISTURBED, {(2, 2): 9.0, (1, 3): 9.0}), once)
    assert both.first is not None
    assert (both.first.training, both.first.step) == (1, 3)


@pytest.mark.parametrize(
    ("training", "step", "digests", "losses", "differs_from"),
    [(1, 2, 1, 2, (1, 3)), (2, 2, 5, 6, (2, 3)), (1, 1, 0, 1, (1, 2))],
)
def test_replay_that_leaves_a_command_out_is_compared_until_its_step(
    tmp_path: Path, training: int, step: int, digests: int, losses: int, differs_from: tuple[int, int]
) -> None:
    """A state is digested after the commands of its step, and a loss is measured before them."""
    once = lived(tmp_path / "once", UNDISTURBED)
    without = Parent(kind="replay", run=CREATED.run, without=LeftOut(command=UUID(int=1), step=step, training=training))
    verdict = judge(lived(tmp_path / "a", UNDISTURBED, {differs_from: 9.0}, without), once)
    assert verdict == ReplayVerdict(verdict="identical", digests=digests, losses=losses, until_step=step)
    assert f"losses until step {step} are equal" in verdict.sentence()
    early = judge(lived(tmp_path / "b", UNDISTURBED, {(training, step): 9.0}, without), once)
    assert early.verdict == "divergent"
    assert early.first is not None
    assert (early.first.training, early.first.step) == (training, step)
    # The other way around, and against another replay without it.
    assert judge(once, RunFiles(tmp_path / "a")).verdict == "identical"
    assert judge(RunFiles(tmp_path / "a"), RunFiles(tmp_path / "b")).verdict == "divergent"
    # A replay of such a replay leaves nothing out of it.
    twice = lived(tmp_path / "c", UNDISTURBED, {differs_from: 9.0}, without.model_copy(update={"without": None}))
    assert judge(twice, RunFiles(tmp_path / "a")) == ReplayVerdict(verdict="identical", digests=8, losses=8)


def test_losses_that_do_not_say_of_which_training_they_are_are_not_compared(tmp_path: Path) -> None:
    """As earlier releases kept them: by branch and step alone."""
    files, once = lived(tmp_path / "a", FAILED_IN_THE_SECOND), lived(tmp_path / "b", UNDISTURBED)
    with closing(sqlite3.connect(files.metrics)) as database, database:
        database.execute("ALTER TABLE points DROP COLUMN training")
    verdict = judge(files, once)
    assert (verdict.verdict, verdict.digests, verdict.losses) == ("identical", 8, 0)
    assert "losses were not compared" in verdict.notes[0]
