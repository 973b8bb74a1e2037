"""Lifecycle of a steered training on one rank: open, restore, announce, boundaries, end.

    open        before the engine is built: watchdog, link to the control server, resume plan
    begin       with the live training: restore the loop state, register the appliers
    announce    start a generation of trainers, when every applier is registered
    begin_step, boundary     around every optimizer step
    close, fail, break_off   one of them ends it

All but the last two are collectives. They are called by a Trainer's callbacks, and by a script's `TrainingSession`.
"""

import logging
import os
import time
from collections.abc import Callable

from control_plane.api.messages import Restart
from control_plane.core.model.data import MIXTURE
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.intents.data import DATA_KINDS
from control_plane.core.model.records import GenerationEnding, RankPlace, Readback
from control_plane.storage.checkpoint.store import Manifest, list_checkpoints
from ray_jobs.checkpoint import restore
from ray_jobs.checkpoint.policy import CheckpointSaver
from ray_jobs.checkpoint.resume_plan import examine, make_plan
from ray_jobs.digest.stream import DigestStream
from ray_jobs.health.rank_health import RankHealth
from ray_jobs.monitor.nccl import collective_timeout_s
from ray_jobs.monitor.verdict import Timeouts
from ray_jobs.monitor.watchdog import Watchdog, open_monitor_port
from ray_jobs.process.collectives import BOUNDARY_TIMEOUT_S, Collectives
from ray_jobs.process.context import RunContext, node_name
from ray_jobs.process.ddp_timeout import raise_group_timeouts
from ray_jobs.process.error_text import error_text
from ray_jobs.rank import inexact, shared_nodes
from ray_jobs.rank.link import FAILED_WAIT_S, Link
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.rank.session import RankSession
from ray_jobs.rank.step_log import StepLog
from ray_jobs.steering import skipped_steps
from ray_jobs.steering.actions import ActionsApplier
from ray_jobs.steering.appliers import (
    Applier,
    FlagApplier,
    LearningRateApplier,
    ScheduleApplier,
    StopApplier,
)
from ray_jobs.steering.knobs import KnobsApplier
from ray_jobs.steering.mixing import MixtureApplier
from ray_jobs.steering.parameters import register_parameter_appliers
from ray_jobs.steering.pause_offload import PauseOffload
from ray_jobs.steering.rollback import LeaveForBranch, RollbackApplier
from ray_jobs.steering.skipping import SkipApplier

log = logging.getLogger(__name__)

EXIT_SUPERSEDED = 76
"""Exit status of a rank that was superseded by another generation."""


class SteeredRun:
    """One rank's part in a steered run, for the trainings of one Trainer or of one loop."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.saver = CheckpointSaver(context)
        self.session: RankSession | None = None
        self.plan: ResumePlan | None = None
        self.log: StepLog | None = None
        # Signs and checks of the training's health; None before `begin`, and where they are switched off.
        self.health: RankHealth | None = None
        self._training: LiveTraining | None = None
        self._pause_offload: PauseOffload | None = None
        self._watchdog: Watchdog | None = None
        self._digests: DigestStream | None = None
        # Loaded at, while the first step after a restart has not been made (monotonic).
        self._restarting_s: float | None = None
        self._stepped = self._was_paused = False
        # What was restored is the end of the training: it had made its last step, or had been stopped.
        self.is_over = False

    def opened(self) -> RankSession:
        """Return the session. Raises `RuntimeError` outside of training."""
        if self.session is None:
            raise RuntimeError("the training has not begun")
        return self.session

    @property
    def training(self) -> LiveTraining:
        """Live training. Raises `RuntimeError` before `begin`."""
        if self._training is None:
            raise RuntimeError("the training has not begun")
        return self._training

    @property
    def leaving(self) -> bool:
        """True if this training has ended because the run continues on another branch."""
        return self.session is not None and self.session.replica.leaving is not None

    @property
    def is_stopping(self) -> bool:
        """True if a command has stopped the run."""
        return self.session is not None and self.session.replica.stopping

    def open(self, check: Callable[[], None], fingerprint: Callable[[], str]) -> ResumePlan:
        """Collective, before the engine is built. Return where the training begins.

        Args:
            check: raises if this training cannot be steered.
            fingerprint: computes the training's fingerprint, on rank 0.

        Raises: `SteerwayError` if the run may not start; `LeaveForBranch` once more in a script that has caught it and
        goes on with another training.
        """
        if self.context.trainings.left:
            raise LeaveForBranch
        check()
        hang_after_s, user_code_s = self.context.hang_after_s, self.context.user_code_s
        patience_s = BOUNDARY_TIMEOUT_S if hang_after_s is None else collective_timeout_s(user_code_s)
        collectives = Collectives(patience_s)
        if hang_after_s is not None:
            self._watch(collectives, Timeouts(hang_after_s, user_code_s))
        link = Link(self.context.connect, self._superseded) if collectives.rank == 0 else None
        self.session = RankSession(
            collectives,
            link,
            total_steps=lambda: self.training.loop.total_steps,
            beat=self.beat,
            read_knobs=lambda: self.training.readings(),
            beside=lambda: skipped_steps.readings(self.training),
            rest=self._rest,
        )
        self.plan = make_plan(collectives, link, self.context, fingerprint)
        return self.plan

    def _watch(self, collectives: Collectives, bounds: Timeouts) -> None:
        exit_reason_file = self.context.files.exit_reason(collectives.rank)
        self._watchdog = Watchdog(bounds, exit_reason_file, open_monitor_port(collectives, node_name()))
        self._watchdog.start()

    def _rest(self, resting: bool) -> None:
        if self._pause_offload is not None:
            self._pause_offload.rest(resting)

    def begin(self, training: LiveTraining, evaluation: Applier) -> None:
        """Collective. Restore the loop state, and register the appliers; `evaluation` is the one of `evaluate`.

        Raises: `Diverged` if what is restored differs.
        """
        session, limits = self.opened(), self.context.limits
        if self._training is not None:
            self._training.frozen.hold(())  # a second training begins with nothing frozen
        self._training = training
        if self.plan is not None and self.plan.checkpoint:
            restore.finish(training, self.plan, session.collectives)
        if self.context.health is not None and self.plan is not None:
            self.health = RankHealth(training, session, self.context.health, self.plan)
            self.saver.health = self.health
        session.register("set_learning_rate", LearningRateApplier(training, limits))
        session.register("set_schedule", ScheduleApplier(training, limits))
        session.register("set_knobs", KnobsApplier(training.knobs, session.replica.repeating))
        session.register("skip_samples", SkipApplier(training))
        for kind in DATA_KINDS:
            session.register(kind, MixtureApplier(training))
        session.register("run_action", ActionsApplier(training.extensions.actions))
        session.register("evaluate", evaluation)
        register_parameter_appliers(session, training)
        if self.context.offload_pauses:
            self._pause_offload = PauseOffload(training.engine)

    def register_lifecycle(self) -> None:
        """Register the appliers of pause, resume, stop and rollback. The boundary itself holds a pause."""
        session = self.opened()
        session.register("pause", FlagApplier("paused", True))
        session.register("resume", FlagApplier("paused", False))
        session.register("stop", StopApplier(self._stop, self.saver.apply_now))
        session.register("rollback", RollbackApplier(self._find, self._model_mismatch, self._stop, session.check))

    def begin_saving(self) -> None:
        """Register the applier of `save_checkpoint`, and save every few steps from now on."""
        assert self.plan is not None
        self.saver.begin(self.training, self.opened(), self.plan)

    def _stop(self, stopping: bool) -> None:
        self.training.loop.stopping = stopping

    def _find(self, checkpoint: str) -> Manifest | str:
        session, context = self.opened(), self.context
        session.beat("saving")  # reading all of it may take longer than a step
        root = context.files.checkpoints / checkpoint
        try:
            # Rank 0 alone can ask; one vote against it is enough.
            known = session.link.recorded(checkpoint) if session.link is not None else None
            recorded = known.manifest_sha256 if known is not None else ""
            manifest = examine(root, context.key, session.collectives, context.files.run, recorded)
        except SteerwayError as error:
            manifest = error.reason
        session.beat("training")
        if isinstance(manifest, str) or not self._is_of_this_training(manifest):
            return manifest
        return restore.model_mismatch(self.training.model, manifest) or manifest

    def _model_mismatch(self, branch: str) -> str | None:
        """Return the reason why the branch's model, by its newest checkpoint, is not this one, or None."""
        known = list_checkpoints(self.context.files.checkpoints, self.context.key)
        own = [manifest for manifest in known if manifest.branch == branch and self._is_of_this_training(manifest)]
        return restore.model_mismatch(self.training.model, own[-1]) if own else None

    def _is_of_this_training(self, manifest: Manifest) -> bool:
        return self.plan is not None and self.plan.training == manifest.training

    def announce(self) -> None:
        """Collective. Announce this generation of trainers, once every applier is registered.

        Sets `is_over` if there is nothing left to train.
        """
        session, plan, training = self.opened(), self.plan, self.training
        assert plan is not None
        place = RankPlace(rank=session.rank, node=node_name(), pid=os.getpid(), device=str(training.device))
        step, total_steps = training.loop.step, training.loop.total_steps
        generation = session.start(place, step, training.readings(), self._facts(), plan, self.context.retention)
        log.info("generation %d: steered from step %d to %d", generation, step, total_steps)
        self._digests = DigestStream(training, session, self.context.files, self.context.digest_every_steps)
        self._restarting_s = time.monotonic() if generation > 1 else None
        self._loaded_s = max(0.0, time.time() - self.context.started_at_s)
        if step == 0 and plan.checkpoint is None:
            self._digests.before_the_first_step()
        session.hold(step)
        if self._watchdog is not None:
            raise_group_timeouts(collective_timeout_s(self.context.user_code_s))
        ended = plan.checkpoint is not None and restore.had_ended(plan, session.rank)
        self.is_over = step >= total_steps or session.replica.stopping or self.leaving or ended
        if self.is_over:
            log.info("nothing is left to train: the last step was made before this start")
        self.log = StepLog(training, session.link)
        if self.health is not None:
            self.health.logged = self.log.names
            self.health.signs.begin()

    def _facts(self) -> Readback:
        training, engine, order = self.training, self.training.engine, self.training.loop.sample_order
        mixture = training.loop.mixture
        left_out = {"samples_left_out": order.left_out} if order is not None and order.left_out else {}
        batch = {"global_batch_samples": training.global_batch_samples} if training.global_batch_samples else {}
        return (
            self.context.facts
            | batch
            | left_out
            | (
                {MIXTURE: mixture.status(training.loop.skipped.data_step(training.loop.step + 1))}
                if mixture is not None
                else {}
            )
            | inexact.facts(training.inexact, self.opened().collectives)
            | (shared_nodes.facts(self.opened().collectives) if self.context.spreads else {})
            | (self.health.facts() if self.health is not None else {})
            | {
                "zero_stage": engine.zero_optimization_stage() if engine is not None else None,
                "optimizer": training.optimizer_name,
                "schedule": training.schedule_name,
                "knobs": training.knobs.facts(),
                "actions": training.extensions.actions.facts(),
            }
        )

    def begin_step(self) -> None:
        """Collective. Start the boundary's broadcast, which overlaps with the step."""
        self.beat("training")
        step = self.training.loop.step + 1
        self.opened().begin_step(step)
        if self.health is not None:
            self.health.begin_step(step)

    def boundary(self, step: int) -> None:
        """Collective. Run the boundary after `step`, when logging and evaluation of the step are done: judge its
        health, save a checkpoint that is due, and carry out commands."""
        session, health = self.opened(), self.health
        if health is not None:
            health.end_step(step)
        began_s = time.perf_counter()
        self.saver.after_step(step)
        saved_s, self._was_paused = time.perf_counter(), False
        session.end_step(step)
        if health is not None:
            health.signs.phase("checkpoint", saved_s - began_s)
            health.signs.phase("pause" if self._was_paused else "command", time.perf_counter() - saved_s)
        # Here the state is what it will be at this step after a loss: its commands are carried out, whoever gave them.
        if self._digests is not None:
            self._digests.after_boundary(step)
        if self._restarting_s is not None and session.link is not None:
            first_step_s, started_at_s = time.monotonic() - self._restarting_s, self.context.started_at_s
            session.link.restarted(
                Restart(started_at_s=started_at_s, loaded_s=self._loaded_s, first_step_s=first_step_s, step=step)
            )
        self._restarting_s = None
        if not self._stepped:
            self._stepped = True
            self.context.on_first_step()
        if health is not None:
            health.signs.begin()

    def close(self, step: int) -> None:
        """Collective. End the generation: rank 0 flushes its reports, and waits until they are confirmed."""
        session = self.opened()
        ending: GenerationEnding = "stopped" if session.replica.stopping else "finished"
        if self.health is not None:
            self.health.close()
        if session.link is not None:
            session.link.close("left" if self.leaving else ending, step, None)
        self.context.trainings.left = self.leaving
        self._end()

    def fail(self, step: int, error: Exception) -> None:
        """Report to the control server that the training raised, if this rank has a link; other ranks are restarted."""
        self.context.trainings.failed_at = step
        if self.session is not None and self.session.link is not None:
            self.session.link.close("failed", step, error_text(error), FAILED_WAIT_S)
        self._end()

    def break_off(self, step: int, total_steps: int) -> None:
        """Report a `sys.exit` of the script in the middle of the training as its failure."""
        self.context.trainings.broken_off = f"in the middle of its training, at step {step} of {total_steps}"
        self.fail(step, RuntimeError(f"the script called sys.exit {self.context.trainings.broken_off}"))

    def _end(self) -> None:
        if self.health is not None:
            self.health.leave()
        if self._digests is not None:
            self._digests.close()
        if self._watchdog is not None:
            self._watchdog.stop()

    def beat(self, phase: str) -> None:
        """Report progress to the watchdog."""
        self._was_paused = self._was_paused or phase == "paused"
        if self._watchdog is not None:
            self._watchdog.beat(phase)

    def _superseded(self, reason: str) -> None:
        """Exit, fenced off by a newer generation: two must not write into one run."""
        log.error("superseded: %s", reason)
        if self.context.hang_after_s is not None:
            os._exit(EXIT_SUPERSEDED)
