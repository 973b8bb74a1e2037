"""Small, valid examples of every word of the core, for tests to vary."""

from typing import Any
from uuid import UUID

from control_plane.core.model.commands import INTENT, Command, Intent, SetLearningRate
from control_plane.core.model.health import Alert, AlertCleared, AlertRaised, Cleared, Evidence
from control_plane.core.model.proposals import ProposalClosed, TrialStarted
from control_plane.core.model.records import (
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Death,
    Entry,
    GenerationEnded,
    GenerationLost,
    GenerationRecovered,
    GenerationStarted,
    Parent,
    RankPlace,
    Record,
    RefusedCheckpoint,
    RunClosed,
    RunCreated,
    RunResumed,
    StateDigested,
    TermStarted,
)
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules.decisions import GenerationStart

SHA = "a5" * 32
KNOBS = {"lr": [1e-3, 5e-4], "groups": ["decay", "no_decay"]}
EVERY_INTENT: tuple[dict[str, Any], ...] = (
    {"kind": "set_learning_rate", "value": 1e-4},
    {"kind": "set_learning_rate", "factor": 0.5, "group": "decay", "schedule": "hold"},
    {"kind": "pause"},
    {"kind": "resume"},
    {"kind": "stop", "save": True},
    {"kind": "save_checkpoint", "label": "before the change"},
    {"kind": "evaluate"},
    {
        "kind": "set_knobs",
        "changes": [{"knob": "weight_decay", "value": 0.1, "group": 0}, {"knob": "x", "factor": 2.0}],
    },
    {"kind": "set_schedule", "shape": "cosine", "end": 0.1, "warmup_steps": 10, "peak": 2.0, "over_steps": 100},
    {"kind": "freeze", "parameters": "transformer.h.0.*"},
    {"kind": "unfreeze", "parameters": "*"},
    {"kind": "reset_parameters", "modules": "lm_head", "seed": 7},
    {"kind": "skip_samples", "samples": 200},
    {"kind": "set_mixture", "weights": {"web": 0.7, "fresh": 0.3}},
    {
        "kind": "add_source",
        "source": "fresh",
        "settings": {"format": "jsonl", "live": True, "weight": 0.5, "fields": {"text": "text", "label": "integer"}},
    },
    {"kind": "remove_source", "source": "web"},
    {"kind": "split_source", "source": "web", "into": "news", "shards": [SHA], "weight": 0.1},
    {
        "kind": "add_shards",
        "source": "fresh",
        "shards": [{"source": "fresh", "sha256": SHA, "records": 746, "bytes": 88_000}],
    },
    {"kind": "withdraw_samples", "source": "fresh", "shard": SHA, "rows": [0, 7]},
    {"kind": "run_action", "name": "reshuffle", "arguments": {"seed": 7, "all": True}},
    {"kind": "pin_checkpoint", "checkpoint": "c1", "pinned": False},
    {"kind": "delete_checkpoint", "checkpoint": "c1"},
    {"kind": "cancel", "command": "00000000-0000-0000-0000-000000000001"},
    {"kind": "rollback", "branch": "main"},
    {
        "kind": "rollback",
        "checkpoint": "c1",
        "branch": "second-try",
        "first": [{"kind": "freeze", "parameters": "transformer.h.0.*"}],
    },
    {"kind": "adopt_checkpoint", "run": "fork-1", "checkpoint": "step-11-g1", "branch": "adopted"},
    {"kind": "acknowledge_alert", "alert": 7, "note": "seen"},
    {"kind": "snooze_alert", "alert": 7, "until_step": 500},
    {"kind": "start_agent", "settings": {"policy": "rule", "mode": "suggest", "grants": {"actions": ["reshuffle"]}}},
    {"kind": "stop_agent"},
    {"kind": "propose", "intent": {"kind": "set_learning_rate", "factor": 0.5}},
    {"kind": "withdraw_proposal", "proposal": "00000000-0000-0000-0000-000000000001"},
    {
        "kind": "answer_proposal",
        "proposal": "00000000-0000-0000-0000-000000000001",
        "approve": True,
        "intent": {"kind": "set_learning_rate", "factor": 0.75},
    },
    {
        "kind": "note_effect",
        "command": "00000000-0000-0000-0000-000000000001",
        "metric": "loss",
        "before": 3.5,
        "steps": 20,
        "judgement": "unclear",
    },
)


PROPOSED = 1 + [body["kind"] for body in EVERY_INTENT].index("propose")


def uuid(number: int) -> UUID:
    """The uuid with this number."""
    return UUID(int=number)


def intent(kind: str, **body: Any) -> Intent:
    """An intent of this kind."""
    return INTENT.validate_python({"kind": kind, **body})


def command(number: int, kind: str = "evaluate", not_before_step: int | None = None, **body: Any) -> Command:
    """Command `number`, of this kind."""
    return Command(uuid=uuid(number), author="ann", intent=intent(kind, **body), not_before_step=not_before_step)


def place(rank: int) -> RankPlace:
    """Where this rank runs."""
    return RankPlace(rank=rank, node="10.0.0.1", pid=100 + rank, device="cpu")


def start(number: int = 900, ranks: int = 2, total_steps: int = 100, **changes: Any) -> GenerationStart:
    """An announcement of trainers."""
    fields: dict[str, Any] = {"step": 0, "knobs": KNOBS, "facts": {"model": "tiny"}} | changes
    return GenerationStart(
        uuid=uuid(number), ranks=tuple(place(rank) for rank in range(ranks)), total_steps=total_steps, **fields
    )


def created(run: str = "run-1", config_sha256: str = "c0ffee") -> RunCreated:
    """The first record of a run."""
    return RunCreated(run=run, name="a run", author="ann", config_sha256=config_sha256)


def started(number: int = 900, generation: int = 1, ranks: int = 2, **changes: Any) -> GenerationStarted:
    """A generation of trainers with 2 parameter groups and 100 steps."""
    fields: dict[str, Any] = {"step": 0, "total_steps": 100, "knobs": KNOBS} | changes
    return GenerationStarted(
        uuid=uuid(number), generation=generation, ranks=tuple(place(rank) for rank in range(ranks)), **fields
    )


def accepted(number: int, kind: str = "evaluate", **body: Any) -> CommandAccepted:
    """Command `number` is durable."""
    return CommandAccepted(command=command(number, kind, **body))


def settled(number: int, status: Any = "applied", step: int | None = 10, **changes: Any) -> CommandSettled:
    """Command `number` has its end."""
    fields: dict[str, Any] = {"generation": 1} | changes
    return CommandSettled(uuid=uuid(number), status=status, step=step, **fields)


def repeated(number: int, generation: int = 2, step: int = 10, status: Any = "applied", **body: Any) -> CommandRepeated:
    """Command `number` was carried out again."""
    return CommandRepeated(uuid=uuid(number), generation=generation, step=step, status=status, **body)


def committed(step: int, generation: int = 1, **body: Any) -> CheckpointCommitted:
    """A checkpoint of the state after this step."""
    name = f"step-{step}-g{generation}"
    return CheckpointCommitted(
        checkpoint=name, step=step, generation=generation, path=f"checkpoints/{name}", size_bytes=5, **body
    )


def digested(step: int, generation: int = 1, ranks: tuple[str, ...] | None = None, samples: str = "s") -> StateDigested:
    """Two ranks have digested what they have live."""
    return StateDigested(generation=generation, step=step, ranks=ranks or (f"a{step}", f"b{step}"), samples=samples)


def alert(kind: Any = "loss_spike", step: int = 12, onset_step: int = 11, **body: Any) -> Alert:
    """An alert with its evidence."""
    evidence = Evidence(sign="loss", value=9.5, threshold=4.0, window_steps=128, mean=3.1, deviation=0.15)
    fields: dict[str, Any] = {"level": "warning", "sentence": "the loss has jumped", "evidence": (evidence,)} | body
    return Alert(kind=kind, step=step, onset_step=onset_step, **fields)


def cleared(of: Alert, step: int = 20) -> Cleared:
    """The alert's condition has ended."""
    return Cleared(
        kind=of.kind, subject=of.subject, onset_step=of.onset_step, step=step, branch=of.branch, training=of.training
    )


def lost(step: int, generation: int = 1, silent_s: float = 0.25) -> GenerationLost:
    """The trainers died."""
    death = Death(rank=1, node="10.0.0.2", reason="SIGKILL")
    return GenerationLost(generation=generation, step=step, silent_s=silent_s, deaths=(death,))


def recovered(step: int, generation: int = 2, lost_steps: int = 0) -> GenerationRecovered:
    """The first step after a loss."""
    phases_s = {"detect": 0.25, "re-form": 3.0, "load": 1.5, "first step": 0.1}
    return GenerationRecovered(generation=generation, step=step, lost_steps=lost_steps, phases_s=phases_s)


def every_record() -> tuple[Record, ...]:
    """One record of every type, with every intent, and floats that decimal digits round badly."""
    applied = settled(1, before={"lr": [0.1 + 0.2]}, after={"lr": [5e-324, 1.7976931348623157e308]}, world_size=2)
    commands = tuple(
        CommandAccepted(command=Command(uuid=uuid(n), author="ann", intent=INTENT.validate_python(body), reason="why"))
        for n, body in enumerate(EVERY_INTENT, start=1)
    )
    return (
        created(),
        TermStarted(term=1, recovered=1),
        started(),
        *commands,
        applied,
        settled(2, "rejected", reason="rank 1: no such group"),
        settled(3, "expired", None),
        CheckpointCommitted(checkpoint="c1", step=10, generation=1, path="checkpoints/c1", label="x", size_bytes=5),
        committed(11, pinned=True, metrics={"loss": 0.1 + 0.2}, world_size=2, manifest_sha256="ab" * 32),
        CheckpointFailed(checkpoint="step-12-g1", step=12, generation=1, reason="the disk is full"),
        CheckpointPinned(checkpoint="c1", pinned=True),
        CheckpointDiscarded(checkpoint="c1", reason="older than the last 1"),
        BranchStarted(branch="second-try", parent="main", checkpoint="step-11-g1", step=11, rollback=uuid(18)),
        CommandScheduled(uuid=uuid(4), step=11),
        BranchResumed(branch="main", rollback=uuid(17)),
        BranchAdopted(branch="adopted", origin=Parent(kind="adopted", run="fork-1", checkpoint="step-11-g1", step=11)),
        digested(13),
        settled(PROPOSED, step=None, generation=None),
        TrialStarted(
            proposal=uuid(PROPOSED),
            intent=SetLearningRate(factor=0.5),
            steps=20,
            branch="main",
            trial_branch="trial-1",
            by="ann",
        ),
        ProposalClosed(proposal=uuid(PROPOSED), verdict="rejected", by="ann", reason="not now"),
        AlertRaised(alert=alert(), generation=1, reflex="loss_spike", declined="its budget is used up"),
        AlertCleared(alert=30, cleared=cleared(alert()), generation=1),
        lost(14),
        started(901, 2, step=0, checkpoint=None, refused=(RefusedCheckpoint(checkpoint="step-11-g1", reason="a bit"),)),
        repeated(1, after=applied.after),
        recovered(1, lost_steps=14),
        GenerationEnded(generation=2, ending="stopped", step=12, reason="asked to"),
        RunClosed(ending="stopped", reason=None),
        RunResumed(author="ann"),
    )


def state_after(*records: Record) -> RunState:
    """The state after these records."""
    state = RunState()
    for record in records:
        evolve(state, Entry(seq=state.seq + 1, time="2030-01-01T00:00:00Z", record=record))
    return state


def running(*records: Record) -> RunState:
    """A run with trainers, and then these records."""
    return state_after(created(), TermStarted(term=1, recovered=1), started(), *records)
