"""Callbacks of a steered Transformers Trainer, each with one concern.

    InteractiveCallback   the boundary itself, the live learning rate, evaluation
    RunPauseCallback      pause, resume, stop, roll back
    CheckpointCallback    saving, when asked and every k steps (see `saving`)
    LoggingCallback       metrics to the control server

They are added in this order, and Transformers calls them in it. All ranks have all of them.
"""

import logging
import os
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from control_plane.api.handle import Point, Restart
from control_plane.core.model.errors import Invalid, SteerwayError
from control_plane.core.model.records import SKIPPED_STEPS, GenerationEnding, RankPlace, Readback
from control_plane.storage.checkpoint.store import Manifest, list_checkpoints
from ray_jobs.checkpoint import restore
from ray_jobs.checkpoint.batch import plan_batch
from ray_jobs.checkpoint.policy import CheckpointCallback
from ray_jobs.checkpoint.resume_plan import Plan, examine, make_plan
from ray_jobs.checkpoint.universal import apply_batch_plan
from ray_jobs.config import deepspeed_features
from ray_jobs.digest.fingerprints import fingerprint
from ray_jobs.digest.stream import DigestStream
from ray_jobs.driver.nccl import collective_timeout_s
from ray_jobs.hf.hf_knobs import register_trainer_knobs
from ray_jobs.monitor.verdict import Bounds
from ray_jobs.monitor.watchdog import Watchdog, arrange
from ray_jobs.rank import inexact
from ray_jobs.rank.collectives import BOUNDARY_TIMEOUT_S, Collectives
from ray_jobs.rank.context import RunContext, node_name
from ray_jobs.rank.cpu_setup import check_together
from ray_jobs.rank.ddp_timeout import let_groups_wait
from ray_jobs.rank.error_text import told
from ray_jobs.rank.link import FAILED_WAIT_S, Link
from ray_jobs.rank.plain_values import number
from ray_jobs.rank.session import RankSession
from ray_jobs.steering import skipped_steps
from ray_jobs.steering.appliers import EvaluateApplier, FlagApplier, LearningRateApplier, ScheduleApplier, StopApplier
from ray_jobs.steering.freezing import frozen_parameters
from ray_jobs.steering.knobs import Knobs, KnobsApplier
from ray_jobs.steering.module_knobs import register_module_knobs
from ray_jobs.steering.parameters import register_parameter_appliers
from ray_jobs.steering.pause_offload import PausedMemory
from ray_jobs.steering.rollback import LeaveForBranch, RollbackApplier
from ray_jobs.steering.schedule import live_groups, steer_schedule

log = logging.getLogger(__name__)

EXIT_SUPERSEDED = 76
"""Exit status of a rank that was superseded by another generation."""

NOT_FORWARDED = {"learning_rate", "epoch", "step", "total_flos"}
"""Logged by Transformers and not forwarded: its learning rate is sometimes the next step's, so we read our own."""


class InteractiveCallback(TrainerCallback):
    """Opens the rank's session, restores the checkpoint, and runs a boundary after every optimizer step."""

    def __init__(self, trainer: Any, context: RunContext) -> None:
        self.trainer, self.context = trainer, context
        self.session: RankSession | None = None
        self.saving: CheckpointCallback | None = None
        self.plan: Plan | None = None
        self._learning_rate: LearningRateApplier | None = None
        self._watchdog: Watchdog | None = None
        self._digests: DigestStream | None = None
        # Loaded at, while the first step after a restart has not been made (monotonic).
        self._restarting_s: float | None = None
        self._stepped = False
        # What was restored is the end of the training: it had made its last step, or had been stopped.
        self.is_over = False

    def opened(self) -> RankSession:
        """Return the session. Raises `RuntimeError` outside of training."""
        if self.session is None:
            raise RuntimeError("the training has not begun")
        return self.session

    @property
    def leaving(self) -> bool:
        """True if this training has ended because the run continues on another branch."""
        return self.session is not None and self.session.replica.leaving is not None

    def knobs(self) -> Readback:
        """Return every value that can be steered, read from the live objects."""
        assert self._learning_rate is not None
        frozen = frozen_parameters(self.trainer)
        still = frozen.readings() if frozen.names else {}
        return self._learning_rate.knobs() | self.opened().knobs.readings() | still

    def open(self) -> Plan:
        """Collective, before the engine is built: get the resume plan, and keep the global batch on these ranks.

        Raises: `SteerwayError` if the run may not start, `Invalid` if these ranks cannot share the global batch;
        `LeaveForBranch` once more in a script that has caught it and goes on with another training.
        """
        args = self.trainer.args
        if self.context.trainings.left:
            raise LeaveForBranch
        check_together(args)
        deepspeed_features.check(self.trainer)
        hang_after_s, user_code_s = self.context.hang_after_s, self.context.user_code_s
        patience_s = BOUNDARY_TIMEOUT_S if hang_after_s is None else collective_timeout_s(user_code_s)
        collectives = Collectives(patience_s)
        if hang_after_s is not None:
            self._watch(collectives, Bounds(hang_after_s, user_code_s))
        link = Link(self.context.connect, self._superseded) if collectives.rank == 0 else None
        self.session = RankSession(collectives, link, knobs=Knobs(self.context.limits), beat=self._beat)
        plan = make_plan(collectives, link, self.context, lambda: fingerprint(self.trainer))
        self._keep_the_batch(plan)
        self.plan = plan
        return plan

    def _watch(self, collectives: Collectives, bounds: Bounds) -> None:
        last_words = self.context.files.last_words(collectives.rank)
        self._watchdog = Watchdog(bounds, last_words, arrange(collectives, node_name()))
        self._watchdog.start()

    def _keep_the_batch(self, plan: Plan) -> None:
        args = self.trainer.args
        per_rank = args.per_device_train_batch_size * args.gradient_accumulation_steps
        wanted = per_rank * (self.context.ranks or args.world_size)
        if plan.manifest is not None and plan.manifest.global_batch_samples:
            wanted = plan.manifest.global_batch_samples
        if wanted != per_rank * args.world_size:
            shared = plan_batch(wanted, args.per_device_train_batch_size, args.world_size)
            log.warning("%d ranks share a global batch of %d samples: %s", args.world_size, wanted, shared)
            apply_batch_plan(self.trainer, shared)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Wrap the schedule, register appliers, and restore the checkpoint.

        Raises: `Invalid` if DeepSpeed was asked for and is not in force, `Diverged` if what is restored differs.
        """
        if args.deepspeed and getattr(self.trainer, "deepspeed", None) is None:
            raise Invalid(
                "the training arguments name a DeepSpeed config, but accelerate left DeepSpeed out: `use_cpu=True` and "
                "ACCELERATE_USE_CPU do that; on a CPU, set DS_ACCELERATOR=cpu instead"
            )
        session = self.opened()
        self._make_knobs(session)
        if self.plan is not None and self.plan.checkpoint:
            restore.finish(self.trainer, self.plan, session.collectives)
        session.register("set_knobs", KnobsApplier(session.knobs, session.replica.repeating))
        register_parameter_appliers(session, self.trainer)
        session.read_knobs = self.knobs
        session.beside = lambda: skipped_steps.readings(self.trainer)
        if self.context.offload_pauses:
            session.rest = PausedMemory(self.trainer).rest
        session.register("evaluate", EvaluateApplier(self.trainer))

    def _make_knobs(self, session: RankSession) -> None:
        """Create knobs and schedule before the restore, which may have to set them."""
        schedule, limits = steer_schedule(self.trainer), self.context.limits
        session.knobs.group_names = lambda: schedule.names
        register_trainer_knobs(session.knobs, self.trainer, self.saving)
        register_module_knobs(session.knobs, self.trainer.model)
        self.trainer.steered_knobs = session.knobs
        self._learning_rate = LearningRateApplier(self.trainer, schedule, limits)
        session.register("set_learning_rate", self._learning_rate)
        session.register("set_schedule", ScheduleApplier(self.trainer, schedule, limits))

    def begin(self, state: TrainerState) -> None:
        """Collective. Announce this generation of trainers, once every applier is registered.

        Sets `is_over` if there is nothing left to train.
        """
        session, plan = self.opened(), self.plan
        assert plan is not None
        place = RankPlace(
            rank=session.rank,
            node=node_name(),
            pid=os.getpid(),
            device=str(self.trainer.args.device),
        )
        step, total_steps = state.global_step, state.max_steps
        generation = session.start(place, step, total_steps, self.knobs(), self._facts(), plan, self.context.retention)
        log.info("generation %d: steered from step %d to %d", generation, step, total_steps)
        self._digests = DigestStream(self.trainer, session, self.context.files, self.context.digest_every_steps)
        self._restarting_s = time.monotonic() if generation > 1 else None
        self._loaded_s = max(0.0, time.time() - self.context.started_at_s)
        if step == 0 and plan.checkpoint is None:
            self._digests.before_the_first_step()
        session.hold(step)
        if self._watchdog is not None:
            let_groups_wait(collective_timeout_s(self.context.user_code_s))
        ended = plan.checkpoint is not None and restore.had_ended(plan, session.rank)
        self.is_over = step >= total_steps or session.replica.stopping or self.leaving or ended
        if self.is_over:
            log.info("nothing is left to train: the last step was made before this start")

    def _facts(self) -> dict[str, Any]:
        engine, order = getattr(self.trainer, "deepspeed", None), getattr(self.trainer, "_order", None)
        left_out = {"samples_left_out": order.left_out} if order is not None and order.left_out else {}
        return (
            self.context.facts
            | left_out
            | inexact.facts(self.trainer, self.opened().collectives)
            | {
                "zero_stage": engine.zero_optimization_stage() if engine is not None else None,
                "optimizer": type(getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)).__name__,
                "schedule": type(self.trainer.lr_scheduler).__name__,
                "knobs": self.opened().knobs.facts(),
                "actions": self.trainer.own_vocabulary.actions.facts(),
            }
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Start the boundary's broadcast, which overlaps with the step."""
        self._beat("training")
        self.opened().begin_step(state.global_step + 1)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report progress to the watchdog after a micro-batch."""
        self._beat("training")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report progress to the watchdog after an evaluation batch."""
        self._beat("evaluating")

    def boundary(self, step: int) -> None:
        """Collective. Run the boundary after `step`, when logging and evaluation of the step are done."""
        session = self.opened()
        session.end_step(step)
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

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the ending phase to the watchdog; the control server is told in `close`, after the last save."""
        self._beat("ending")

    def close(self, step: int) -> None:
        """End the generation: rank 0 flushes its reports to the control server and waits for the confirmation."""
        session = self.opened()
        ending: GenerationEnding = "stopped" if session.replica.stopping else "finished"
        if session.link is not None:
            session.link.close("left" if self.leaving else ending, step, None)
        self.context.trainings.left = self.leaving
        self._end()

    def fail(self, step: int, error: Exception) -> None:
        """Report to the control server that the training raised, if this rank has a link; other ranks are restarted."""
        self.context.trainings.failed_at = step
        if self.session is not None and self.session.link is not None:
            self.session.link.close("failed", step, told(error), FAILED_WAIT_S)
        self._end()

    def break_off(self, step: int) -> None:
        """Report a `sys.exit` of the script in the middle of the training as its failure."""
        state = self.trainer.state
        self.context.trainings.broken_off = f"in the middle of its training, at step {step} of {state.max_steps}"
        self.fail(step, RuntimeError(f"the script called sys.exit {self.context.trainings.broken_off}"))

    def _end(self) -> None:
        if self._digests is not None:
            self._digests.close()
        if self._watchdog is not None:
            self._watchdog.stop()

    def _beat(self, phase: str) -> None:
        if self._watchdog is not None:
            self._watchdog.beat(phase)

    def _superseded(self, reason: str) -> None:
        """Exit, fenced off by a newer generation: two must not write into one run."""
        log.error("superseded: %s", reason)
        if self.context.hang_after_s is not None:
            os._exit(EXIT_SUPERSEDED)


class RunPauseCallback(TrainerCallback):
    """Registers the appliers of pause, resume, stop and rollback. The boundary itself holds a pause."""

    def __init__(self, interactive: InteractiveCallback, saving: CheckpointCallback) -> None:
        self._interactive, self._saving = interactive, saving

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register the appliers."""

        def stop(stopping: bool) -> None:
            self._interactive.trainer.control.should_training_stop = stopping

        session = self._interactive.opened()
        session.register("pause", FlagApplier("paused", True))
        session.register("resume", FlagApplier("paused", False))
        session.register("stop", StopApplier(stop, self._saving.apply_now))
        session.register("rollback", RollbackApplier(self._find, self._misfit, stop, session.check))

    def _find(self, checkpoint: str) -> Manifest | str:
        session, context = self._interactive.opened(), self._interactive.context
        session.beat("saving")  # reading all of it may take longer than a step
        root = context.files.checkpoints / checkpoint
        try:
            # Rank 0 alone can ask; one vote against it is enough.
            known = session.link.recorded(checkpoint) if session.link is not None else None
            recorded = known.manifest_sha256 if known is not None else ""
            found = examine(root, context.key, session.collectives, context.files.run, recorded)
        except SteerwayError as error:
            found = error.reason
        session.beat("training")
        if isinstance(found, str) or not self._is_of_this_training(found):
            return found
        return restore.misfit(self._interactive.trainer, found) or found

    def _misfit(self, branch: str) -> str | None:
        """Return the reason why the branch's model, by its newest checkpoint, is not this one, or None."""
        context = self._interactive.context
        known = list_checkpoints(context.files.checkpoints, context.key)
        own = [each for each in known if each.branch == branch and self._is_of_this_training(each)]
        return restore.misfit(self._interactive.trainer, own[-1]) if own else None

    def _is_of_this_training(self, manifest: Manifest) -> bool:
        plan = self._interactive.plan
        return plan is not None and plan.training == manifest.training


class LoggingCallback(TrainerCallback):
    """Sends the Trainer's logs to the control server, with the learning rate that the step used."""

    def __init__(self, interactive: InteractiveCallback) -> None:
        self._interactive = interactive
        self._rates: list[float] = []
        self._last = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Announce this generation: all appliers are registered by now."""
        self._groups = live_groups(self._interactive.trainer)
        self._interactive.begin(state)
        self._last = (state.global_step, time.monotonic())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rates that the coming step will use."""
        self._rates = [float(group["lr"]) for group in self._groups()]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Forward rank 0's numbers; Transformers has already averaged the loss over the ranks.

        Logs of an evaluation before the training are dropped: they belong to no step of the run.
        """
        session = self._interactive.session
        link = session.link if session is not None else None
        if link is None or not logs:
            return
        numbers = {name: number(value) for name, value in logs.items() if name not in NOT_FORWARDED}
        values = {name: value for name, value in numbers.items() if value is not None}
        if "loss" in values:
            values |= self._rate_values() | self._speed(state.global_step)
            if count := skipped_steps.skipped_steps(self._interactive.trainer):
                values[SKIPPED_STEPS] = count
        now_s = time.time()
        link.measure(
            [Point(step=state.global_step, name=name, value=value, time_s=now_s) for name, value in values.items()]
        )

    def _rate_values(self) -> dict[str, float]:
        """Return group 0's learning rate as `lr`, another group's as `lr/1`, ... while it differs from group 0's."""
        first, *others = self._rates
        return {"lr": first} | {f"lr/{index}": rate for index, rate in enumerate(others, 1) if rate != first}

    def _speed(self, step: int) -> dict[str, float]:
        (last_step, last_s), now_s = self._last, time.monotonic()
        self._last = (step, now_s)
        return {"steps_per_s": (step - last_step) / (now_s - last_s)} if step > last_step and now_s > last_s else {}
