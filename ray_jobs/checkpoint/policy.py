"""Checkpoint policy: saves on command and every k steps, begun at a boundary and finished in the background."""

import logging
import math
from dataclasses import dataclass
from typing import Protocol

from control_plane.core.boundary import Applied
from control_plane.core.model.commands import Command, SaveCheckpoint
from control_plane.core.model.health import Trust
from control_plane.core.model.records import CheckpointCommitted, Readback
from ray_jobs.checkpoint import save
from ray_jobs.checkpoint.capture import model_shapes
from ray_jobs.checkpoint.writer import CheckpointWriter
from ray_jobs.process.context import RunContext
from ray_jobs.process.plain_values import number
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.rank.session import RankSession

log = logging.getLogger(__name__)

LAST_SAVE_WAIT_S = 600.0
"""Timeout at the end of the training for a save that is still being written."""


class HealthChecks(Protocol):
    """Checks of the training's health, whose verdict goes with a checkpoint."""

    # Of the newest committed checkpoint.
    saved_step: int

    def settle(self) -> None:
        """Collective. Judge all that was measured so far."""

    def trust(self) -> tuple[Trust, tuple[str, ...]]:
        """Return the verdict for a checkpoint saved now, and its reasons."""


@dataclass(frozen=True)
class _Begun:
    """Training whose checkpoints are saved."""

    training: LiveTraining
    session: RankSession
    plan: ResumePlan
    writer: CheckpointWriter


class CheckpointSaver:
    """Saves on command and every `every_steps` steps (0: never). Also the applier of `save_checkpoint`."""

    def __init__(self, context: RunContext) -> None:
        self._context, self.every_steps = context, context.checkpoint_every_steps
        self._training: _Begun | None = None
        self._shapes: Readback | None = None
        # None: nothing is measured, and no checkpoint is called trusted or suspect.
        self.health: HealthChecks | None = None
        # Verdicts by the names of the checkpoints that are being written.
        self._verdicts: dict[str, tuple[Trust, tuple[str, ...]]] = {}
        # The command that asked for a checkpoint, by the checkpoint's name.
        self._asked: dict[str, Command] = {}

    def begin(self, training: LiveTraining, session: RankSession, plan: ResumePlan) -> None:
        """Create the writer and register the applier."""
        context, world_size = self._context, session.collectives.world_size
        writer = CheckpointWriter(context.files, session.rank, world_size, context.key)
        self._training = _Begun(training, session, plan, writer)
        session.register("save_checkpoint", self)
        session.chores.append(self._report_ended)
        if context.overlaps_copies:
            training.partitions.torch_optimizer.register_step_pre_hook(lambda *_: writer.wait_for_copy())
            session.before_change.append(writer.wait_for_copy)

    @property
    def writer(self) -> CheckpointWriter:
        """Checkpoint writer of this rank. Raises `RuntimeError` outside of training."""
        return self._begun.writer

    @property
    def _begun(self) -> _Begun:
        if self._training is None:
            raise RuntimeError("the training has not begun")
        return self._training

    def after_step(self, step: int) -> None:
        """Collective, if a checkpoint is due: begin a save. The step is the same on all ranks."""
        if not self.every_steps or step % self.every_steps:
            return
        session = self._begun.session
        if save.busy_anywhere(session.collectives, self.writer):
            session.fail_checkpoint(f"step-{step:08d}", step, "the one before it is still being written")
            return
        if reason := session.collectives.first_reason(self._reason_no_space()):
            session.fail_checkpoint(f"step-{step:08d}", step, reason)
            return
        try:
            self._begin(step, None, False)
        except RuntimeError as error:
            session.fail_checkpoint(f"step-{step:08d}", step, str(error))

    def check(self, command: Command) -> str | None:
        """Reject if the disk has no room, or another save is still being written."""
        busy = self.writer.busy
        return (
            f"checkpoint {busy} is still being written; ask again when it is done" if busy else self._reason_no_space()
        )

    def apply(self, command: Command, step: int) -> Applied:
        """Collective. Begin a save; the command is settled when the checkpoint is committed or has failed.

        Raises `RuntimeError` on every rank if it cannot begin.
        """
        assert isinstance(command.intent, SaveCheckpoint)
        if command.intent.name is not None:
            # A rollback will go there, at a step that is known: it has to be there by then.
            return Applied(before={}, after=self.apply_now(step, command.intent))
        name = self._begin(step, command.intent.label, command.intent.pin)
        self._asked[name] = command
        self._begun.session.deferred.add(command.uuid)
        return Applied(before={}, after={"checkpoint": name})

    def apply_now(self, step: int, wanted: SaveCheckpoint = SaveCheckpoint()) -> Readback:
        """Collective. Save synchronously. Raises `RuntimeError` on every rank if it fails."""
        session = self._begun.session
        verdict = self._judge()
        session.phase("saving")
        saved = save.save_now(
            self._begun.training,
            self._context.files,
            session.collectives,
            self.writer,
            self._about(step, wanted.label, wanted.pin),
            wanted.name,
        )
        session.phase("training")
        if isinstance(saved, str):
            raise RuntimeError(saved)
        self._commit(saved, verdict)
        return {"checkpoint": saved.checkpoint, "size_bytes": saved.size_bytes}

    def undo(self, command: Command) -> None:
        """Do nothing: a committed checkpoint does no harm, and a failed one has been removed."""

    def finish(self) -> None:
        """Wait for a save that is still being written."""
        if not self.writer.drain(LAST_SAVE_WAIT_S):
            log.error("checkpoint %s was not finished in time", self.writer.busy)
        self._report_ended()

    def _reason_no_space(self) -> str | None:
        return save.reason_no_space(self._begun.training.model, self._context.files)

    def _begin(self, step: int, label: str | None, pinned: bool) -> str:
        session, verdict = self._begun.session, self._judge()
        session.phase("saving")
        try:
            name = save.begin_save(
                self._begun.training,
                self._context.files,
                session.collectives,
                self.writer,
                self._about(step, label, pinned),
                overlaps=self._context.overlaps_copies,
            )
        finally:
            session.phase("training")
        self._verdicts[name] = verdict
        return name

    def _judge(self) -> tuple[Trust, tuple[str, ...]]:
        """Collective. Return the verdict of the health checks for a checkpoint that is saved now."""
        if self.health is None:
            return "unknown", ("health is switched off",)
        self.health.settle()
        return self.health.trust()

    def _about(self, step: int, label: str | None, pinned: bool) -> Readback:
        training, session, plan = self._begun.training, self._begun.session, self._begun.plan
        batch = training.global_batch_samples
        return (
            {
                "generation": session.replica.generation,
                "branch": plan.branch,
                "step": step,
                "label": label,
                "pinned": pinned,
                "knobs": training.readings(),
                "settled": tuple(str(uuid) for uuid in session.replica.ledger),
                "decided_here": tuple(str(uuid) for uuid in session.replica.decided_at(step)),
                "metrics": _metrics(training.loop.log_history),
                "samples_consumed": batch * step,
                "global_batch_samples": batch,
                "accumulation_steps": training.accumulation_steps,
            }
            | self._model()
            | self._number()
        )

    def _model(self) -> Readback:
        if self._shapes is None:
            sha256, parameters = model_shapes(self._begun.training.model)
            self._shapes = {"model_sha256": sha256, "model_parameters": parameters}
        return self._shapes

    def _number(self) -> Readback:
        """Return the training's number from the second one on: older releases can read a first one's manifest."""
        training = self._begun.plan.training
        return {"training": training} if training > 1 else {}

    def _report_ended(self) -> None:
        for ended in self.writer.finished():
            session, asked = self._begun.session, self._asked.pop(ended.name, None)
            verdict = self._verdicts.pop(ended.name, ("unknown", ()))
            if ended.committed is not None:
                self._report_committed(ended.committed, asked, verdict)
            elif ended.reason is not None and asked is None:
                session.fail_checkpoint(ended.name, int(ended.about["step"]), ended.reason)
            elif asked is not None:
                session.conclude(asked.uuid, ended.reason, {})

    def _report_committed(
        self, committed: CheckpointCommitted, asked: Command | None, verdict: tuple[Trust, tuple[str, ...]]
    ) -> None:
        session = self._begun.session
        if asked is not None:
            after = {"checkpoint": committed.checkpoint, "size_bytes": committed.size_bytes}
            session.conclude(asked.uuid, None, after)
            assert isinstance(asked.intent, SaveCheckpoint)
            # People's words are for people: the journal has them, and the manifest, which is signed, does not.
            committed = committed.model_copy(update={"note": asked.intent.note})
        self._commit(committed, verdict)

    def _commit(self, committed: CheckpointCommitted, verdict: tuple[Trust, tuple[str, ...]]) -> None:
        trust, reasons = verdict
        committed = committed.model_copy(update={"health": trust, "health_reasons": reasons})
        if self.health is not None:
            self.health.saved_step = max(self.health.saved_step, committed.step)
        self._begun.session.commit_checkpoint(committed)


def _metrics(history: list[Readback]) -> dict[str, float]:
    """Return the newest value of every evaluation metric, for retention of the best checkpoints."""
    newest: dict[str, float] = {}
    for logged in history:
        newest |= {name: value for name, value in logged.items() if name.startswith("eval_")}
    measured = {name: number(value) for name, value in newest.items()}
    return {name: float(value) for name, value in measured.items() if value is not None and math.isfinite(value)}
