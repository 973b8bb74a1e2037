"""Checkpoints that no record knows: which continue the history, which are let go of, which stay to be looked at."""

from dataclasses import replace
from uuid import UUID

import pytest

from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.records import (
    BranchStarted,
    CheckpointCommitted,
    CheckpointDiscarded,
    CommandAccepted,
    CommandSettled,
    Entry,
    GenerationLost,
    GenerationStarted,
    RankPlace,
    Record,
    RunCreated,
)
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules.unrecorded import UnrecordedCheckpoint, collect, reason_against, take_over

COMMAND = UUID(int=1)
CREATED = RunCreated(run="demo", name="Demo", author="ada", config_sha256="c" * 64)


def generation(number: int, step: int = 0, branch: str = "main", training: int = 1) -> GenerationStarted:
    return GenerationStarted(
        uuid=UUID(int=100 + number),
        generation=number,
        ranks=(
            RankPlace(rank=0, node="here", pid=1, device="cpu"),
            RankPlace(rank=1, node="there", pid=2, device="cpu"),
        ),
        step=step,
        total_steps=100,
        knobs={},
        branch=branch,
        training=training,
    )


def saved(step: int, number: int = 1, pinned: bool = False, branch: str = "main") -> CheckpointCommitted:
    return CheckpointCommitted(
        checkpoint=f"step-{step:08}-g{number}",
        step=step,
        generation=number,
        path=f"checkpoints/step-{step:08}-g{number}",
        pinned=pinned,
        world_size=2,
        branch=branch,
    )


def found(record: CheckpointCommitted, contained: tuple[UUID, ...] = (), reason: str = "") -> UnrecordedCheckpoint:
    return UnrecordedCheckpoint(record, "demo", frozenset(map(str, contained)), reason)


def history(*records: Record) -> RunState:
    state = RunState()
    for seq, record in enumerate((CREATED, *records), 1):
        evolve(state, Entry(seq=seq, time="2026-01-01T00:00:00.000Z", record=record))
    return state


def set_rate(step: int) -> tuple[Record, Record]:
    command = Command(uuid=COMMAND, author="ada", intent=SetLearningRate(value=1e-4))
    return CommandAccepted(command=command), CommandSettled(
        uuid=COMMAND, status="applied", step=step, generation=1, after={"lr": [1e-4]}, world_size=2
    )


LOST = (generation(1), saved(20))
ORPHAN = found(saved(40))
ROLLED_BACK = BranchStarted(
    rollback=UUID(int=9), branch="branch-2", parent="main", checkpoint=saved(20).checkpoint, step=20
)


def test_a_checkpoint_of_the_last_generation_is_taken_over_whether_or_not_its_failure_is_known() -> None:
    for state in (history(*LOST), history(*LOST, GenerationLost(generation=1, step=30))):
        assert take_over(state, [ORPHAN]) == [ORPHAN.record]
        assert collect(state, [ORPHAN]) == []
        for seq, record in enumerate(take_over(state, [ORPHAN]), state.seq + 1):
            evolve(state, Entry(seq=seq, time="2026-01-01T00:00:00.000Z", record=record))
        assert take_over(state, [ORPHAN]) == []  # idempotent


def test_what_the_journal_has_discarded_does_not_come_back() -> None:
    state = history(*LOST, CheckpointDiscarded(checkpoint=ORPHAN.record.checkpoint, reason="deleted by ada"))
    assert take_over(state, [ORPHAN]) == []
    assert collect(state, [ORPHAN]) == []


@pytest.mark.parametrize(
    ("state", "orphan", "why"),
    [
        (history(*LOST), found(saved(10), reason="model.pt has another size"), "does not verify"),
        (history(*LOST), replace(found(saved(10)), run="other"), "run other"),
        (history(*LOST, generation(2, 20), saved(60, 2)), found(saved(40, 1)), "generation 1, and the last one is 2"),
        (history(generation(1, 30), saved(40)), found(saved(20)), "before step 30"),
        (history(*LOST), found(saved(10, branch="branch-2")), "branch branch-2"),
        (history(*LOST), found(saved(10).model_copy(update={"training": 2})), "training 2"),
        (history(*LOST), found(saved(10).model_copy(update={"world_size": 1})), "1 ranks"),
        (history(*LOST), found(saved(10), (COMMAND,)), "whose outcome no record has"),
        (history(generation(1), *set_rate(5), saved(20)), found(saved(10)), "lacks"),
        (
            history(*LOST, ROLLED_BACK),
            found(saved(10)),
            "which the run has left",
        ),
    ],
    ids=["damaged", "run", "generation", "step", "branch", "training", "ranks", "undecided", "lacking", "left"],
)
def test_what_is_not_of_the_history_is_not_taken_over_but_let_go(
    state: RunState, orphan: UnrecordedCheckpoint, why: str
) -> None:
    assert why in (reason_against(state, orphan) or "")
    assert take_over(state, [orphan]) == []
    assert [record for record, _ in collect(state, [orphan])] == [orphan.record]


def test_a_command_counts_by_the_step_where_it_was_applied() -> None:
    state = history(generation(1), *set_rate(25), saved(20))
    assert reason_against(state, found(saved(20))) is None  # applied later: it will be repeated
    assert reason_against(state, found(saved(25))) is None  # at this very boundary: saved before or after it
    assert reason_against(state, found(saved(26))) is not None
    assert reason_against(state, found(saved(26), (COMMAND,))) is None


def test_pinned_ones_and_the_newest_are_never_let_go_of() -> None:
    state = history(*LOST, generation(2, 20))
    newest, pinned, older = found(saved(60)), found(saved(30, pinned=True)), found(saved(40))
    assert take_over(state, [newest, pinned, older]) == []
    assert [record.checkpoint for record, _ in collect(state, [newest, pinned, older])] == ["step-00000040-g1"]
