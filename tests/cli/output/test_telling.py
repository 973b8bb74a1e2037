"""What happened, in sentences that the terminal and the console share."""

import pytest

from control_plane.api.messages import Restarting
from control_plane.api.sentences import clean, describe_record, failed_ranks, format_change, format_seconds, format_size
from control_plane.cli.output import formatting
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    CommandAccepted,
    CommandRepeated,
    CommandSettled,
    Death,
    GenerationLost,
    GenerationRecovered,
    Readback,
    Record,
    RefusedCheckpoint,
    RunResumed,
)
from tests.core import examples

COMMAND = examples.command(1, "set_learning_rate", value=1e-4)
PHASES_S = {"first step": 0.6, "load": 1.0, "detect": 0.4, "re-form": 3.1}


def death(rank: int | None, node: str = "node-3", reason: str = "its process ended") -> Death:
    """One rank that was lost."""
    return Death(rank=rank, node=node, reason=reason)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            GenerationLost(generation=1, step=137, deaths=(death(1),)),
            "trainers failed at step 137: rank 1 on node-3 died (its process ended)",
        ),
        (GenerationLost(generation=1, step=137), "trainers failed at step 137"),
        (
            examples.started(generation=2).model_copy(update={"step": 120, "checkpoint": "step-00000120-g1"}),
            "generation 2 restored step-00000120-g1 (step 120) on 2 ranks",
        ),
        (
            examples.started(generation=2).model_copy(
                update={"refused": (RefusedCheckpoint(checkpoint="step-00000120-g1", reason="shard 1 is\ndamaged"),)}
            ),
            "generation 2 started on 2 ranks from step 0, without a checkpoint; "
            "step-00000120-g1 was refused: shard 1 is damaged",
        ),
        (examples.started(), "training started on 2 ranks from step 0"),
        (
            GenerationRecovered(generation=2, step=121, lost_steps=17, phases_s=PHASES_S),
            "training again at step 121: 17 steps lost; detect 0.4 s, re-form 3.1 s, load 1.0 s, first step 0.6 s",
        ),
        (GenerationRecovered(generation=2, step=121, lost_steps=0), "training again at step 121: no step lost"),
        (
            CommandRepeated(uuid=COMMAND.uuid, generation=2, step=130, status="applied"),
            "lr = 0.0001 applied again at step 130",
        ),
        (
            CommandRepeated(uuid=COMMAND.uuid, generation=2, step=130, status="failed", reason="rank 1: no"),
            "lr = 0.0001 could not be applied again at step 130: failed: rank 1: no",
        ),
        (
            CommandRepeated(uuid=examples.uuid(2), generation=2, step=130, status="applied"),
            "command 00000000 applied again at step 130",
        ),
        (
            CheckpointCommitted(
                checkpoint="c", step=120, generation=1, path="p", label="x", pinned=True, size_bytes=1_500_000
            ),
            "checkpoint c (x) at step 120, 1.5 MB, pinned",
        ),
        (
            CheckpointFailed(checkpoint="c", step=40, generation=1, reason="disk full"),
            "saving a checkpoint at step 40 failed: disk full",
        ),
        (CheckpointDiscarded(checkpoint="c", reason="3 newer ones"), "checkpoint c discarded: 3 newer ones"),
        (examples.digested(100), "state at step 100 digested on 2 ranks"),
        (RunResumed(author="ann"), "run resumed"),
        (
            CheckpointCommitted(checkpoint="c", step=120, generation=1, path="p", note="before\nthe surgery"),
            "checkpoint c at step 120: before the surgery",
        ),
        (CheckpointPinned(checkpoint="c", pinned=True), "checkpoint c pinned"),
        (CheckpointPinned(checkpoint="c", pinned=False), "checkpoint c no longer pinned"),
        (
            CommandAccepted(command=examples.command(3, "cancel", command=COMMAND.uuid)),
            "cancel 'lr = 0.0001'",
        ),
        (
            CommandAccepted(command=examples.command(3, "cancel", command=examples.uuid(2))),
            "cancel 'command 00000000'",
        ),
        (
            examples.settled(1, "cancelled", reason="cancelled by ann: it was a mistake"),
            "lr = 0.0001: cancelled at step 10 by ann: it was a mistake",
        ),
        (examples.settled(1, "expired", 30, reason="too late"), "lr = 0.0001: expired at step 30: too late"),
        (CommandSettled(uuid=COMMAND.uuid, status="applied"), "lr = 0.0001: applied at once"),
        (
            examples.settled(
                1, step=30, world_size=2, after={"lr": [1e-4], "skipped_steps": 3, "step_was_skipped": True}
            ),
            "lr = 0.0001: applied at step 30 (a step that was skipped) on 2 of 2 ranks",
        ),
    ],
)
def test_record_is_told_in_plain_words(record: Record, said: str) -> None:
    assert describe_record(record, {COMMAND.uuid: COMMAND}) == said


def test_every_record_has_a_sentence_in_one_line() -> None:
    for record in examples.every_record():
        assert describe_record(record, {})
        assert "\n" not in describe_record(record, {})


@pytest.mark.parametrize(
    ("deaths", "said"),
    [
        ((death(3), death(2)), "ranks 2 and 3 on node-3 died (its process ended)"),
        ((death(0, "a", "x"), death(1, "b", "x")), "rank 0 on a and rank 1 on b died (x)"),
        ((death(0, "a", "x"), death(1, "a", "y")), "rank 0 on a died (x); rank 1 on a died (y)"),
        ((death(None, ""),), "a worker without a rank died (its process ended)"),
        ((), ""),
    ],
)
def test_dead_of_one_reason_are_named_together(deaths: tuple[Death, ...], said: str) -> None:
    assert failed_ranks(deaths) == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_600, "1.0 MB"), (123_456_789, "123 MB"), (2.5e15, "2.5 PB")],
)
def test_size_has_a_unit_that_fits(size_bytes: int, said: str) -> None:
    assert format_size(size_bytes) == said


@pytest.mark.parametrize(("value_s", "said"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (340.6, "341 s")])
def test_seconds_stay_seconds(value_s: float, said: str) -> None:
    assert format_seconds(value_s) == said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"weight_decay": [0.01, 0.0]}, {"weight_decay": [0.1, 0.0]}, "weight_decay 0.01, 0 -> 0.1, 0"),
        ({"betas": [[0.9, 0.999]] * 2}, {"betas": [[0.9, 0.95]] * 2}, "betas (0.9, 0.999) -> (0.9, 0.95)"),
        ({"a": True, "b": 1, "c": None}, {"a": False, "b": 1, "c": "x\ny"}, "a true -> false; c none -> x y"),
        ({"frozen": {"h.0": 2}}, {"frozen": {"h.0": 2, "h.1": 3}}, "frozen h.0 2 -> h.0 2, h.1 3"),
        (None, {"loss": 1.0}, ""),
        ({}, None, ""),
    ],
)
def test_change_tells_what_became_of_what(before: Readback | None, after: Readback | None, said: str) -> None:
    assert format_change(before, after) == said


def test_clean_reason_is_one_short_line_that_no_terminal_obeys() -> None:
    assert clean("a\x1b[31m\n  b\u202e") == "a [31m b"
    assert len(clean("x" * 1000)) == 240


def test_start_that_is_put_off_is_told_with_its_count_and_reason() -> None:
    told = Restarting(failures=4, wait_s=4.0, left_s=3.4, alert=True, reason="killed\x1b[2J")
    assert formatting.restarting(told) == [
        ("restart", "starting again in 3 s after 4 failures without a new step: killed [2J"),
        ("warning", "the run fails again and again: see its logs, or stop it"),
    ]
    first = told.model_copy(update={"failures": 1, "left_s": 0.0, "alert": False})
    assert formatting.waiting_line(first) == "starting again after a failure: killed [2J"
