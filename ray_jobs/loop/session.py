"""Steerable training loop of a script's own: plain PyTorch with torch.distributed, or a DeepSpeed engine.

    session = TrainingSession(engine=engine, total_steps=1000)
    with session:                          # opens, and restores where the run was
        for step in session.steps():       # from there to the end, or until somebody stops the run
            loss = ...                     # forward, backward, the optimizer's step
            session.step({"loss": loss})   # the boundary: commands, a pause, a checkpoint when one is due

Started by `steer submit`, the loop can be steered. Started by hand, it is a loop. The same callbacks stand around its
steps as around a Trainer's, and to them, to appliers and to checkpoints a `Loop` stands where a Trainer would.
"""

import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState, TrainingArguments

from control_plane.core.model.errors import Invalid
from control_plane.core.model.records import Readback
from ray_jobs.checkpoint import loop_state, restore
from ray_jobs.checkpoint.batch import global_batch_samples
from ray_jobs.checkpoint.policy import CheckpointCallback
from ray_jobs.checkpoint.resume_plan import Plan
from ray_jobs.hf.callbacks import InteractiveCallback, LoggingCallback, RunPauseCallback
from ray_jobs.rank import context
from ray_jobs.rank.session import RankSession
from ray_jobs.steering import skipped_steps
from ray_jobs.steering.actions import Extensible, OwnVocabulary
from ray_jobs.steering.rollback import LeaveForBranch, release

log = logging.getLogger(__name__)

MAX_METRIC_CHARS = 64
EVALUATED = "eval_"
"""Prefix of metrics that are kept with a checkpoint, for retention of the best ones."""


class OwnSchedule:
    """Scheduler that the script steps by itself; its `step` is redirected to the steered one."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler, self.step = scheduler, scheduler.step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's own state, without the attributes that `lead_to` has set."""
        return {name: value for name, value in self._scheduler.state_dict().items() if not callable(value)}

    def lead_to(self, steered: Any) -> None:
        """Redirect `step` and `get_last_lr` of the scheduler to the steered one."""
        self._scheduler.step, self._scheduler.get_last_lr = steered.step, steered.get_last_lr


class Loop:
    """Stand-in for a Trainer: the live objects of a loop, and as much of a Trainer's state as a loop has."""

    def __init__(
        self, model: Any, optimizer: Any, engine: Any, scheduler: Any, total_steps: int, seed: int, own: OwnVocabulary
    ) -> None:
        self.deepspeed, self.own_vocabulary = engine, own
        self.model = engine.module if engine is not None else model
        self.optimizer = engine.optimizer if engine is not None else optimizer
        engines = getattr(engine, "lr_scheduler", None)
        given = scheduler if scheduler is not None else engines
        self.schedule_name = type(given).__name__ if given is not None else None
        self._given = self.lr_scheduler = given if given is engines else OwnSchedule(given)
        self.steered_schedule: Any = None
        # No bound of the data's is known, see the knob `total_steps`.
        self.most_steps = None
        self.callback_handler = SimpleNamespace(lr_scheduler=None)
        self.state = TrainerState(max_steps=total_steps)
        self.control = TrainerControl()
        self.eval_dataset = None
        self.args = SimpleNamespace(
            seed=seed,
            deepspeed=None,
            logging_strategy="no",
            eval_strategy="no",
            max_steps=total_steps,
            device=engine.device if engine is not None else next(iter(model.parameters())).device,
            world_size=dist.get_world_size() if dist.is_initialized() else 1,
            per_device_train_batch_size=engine.train_micro_batch_size_per_gpu() if engine is not None else 0,
            gradient_accumulation_steps=engine.gradient_accumulation_steps() if engine is not None else 1,
        )
        # A Trainer averages its loss in here, and what restores one puts it back; a loop has no such sum.
        self._tr_loss = torch.zeros(())

    def steer(self) -> None:
        """Install `steered_schedule` where the script, or DeepSpeed's engine, steps a scheduler."""
        if isinstance(self._given, OwnSchedule):
            self._given.lead_to(self.steered_schedule)
        elif self._given is None and self.deepspeed is not None:
            self.deepspeed.lr_scheduler = None

    def step_schedule(self) -> None:
        """Step the schedule in a loop without a scheduler, if `set_schedule` has planned one.

        Without a plan the rates are left alone: the script may set them. A skipped step does not move the schedule.
        """
        if self._given is None and "course" in self.steered_schedule.modes() and not skipped_steps.was_skipped(self):
            self.steered_schedule.step()


class LoopSteering(InteractiveCallback):
    """Opens the rank's session, restores a loop's state, and runs a boundary after every step."""

    def _keep_the_batch(self, plan: Plan) -> None:
        """Raise `Invalid` if the script's global batch is not the run's: only the script can change it."""
        wanted = plan.manifest.global_batch_samples if plan.manifest is not None else 0
        batch = global_batch_samples(self.trainer.args)
        if wanted and batch and wanted != batch:
            raise Invalid(
                f"the run's steps take {wanted} samples over all ranks, and this script's take {batch}: let its "
                "'train_batch_size' be the same on any number of ranks"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Load the checkpoint, wrap the schedule, restore the rest. Raises `Diverged` if digests differ."""
        plan = self.plan
        if plan is not None and plan.manifest is not None:
            restore.load(self.trainer, plan)
            state.global_step = plan.manifest.step
        super().on_train_begin(args, state, control, **kwargs)

    def _make_knobs(self, session: RankSession) -> None:
        super()._make_knobs(session)
        self.trainer.steer()
        self.trainer.own_vocabulary.attach(session)

    def begin(self, state: TrainerState) -> None:
        """Collective. Restore random generators (a replayed action may draw from them) and announce the trainers."""
        if self.plan is not None and self.plan.checkpoint:
            restore.random_generators(self.trainer, self.plan, self.opened().rank)
        super().begin(state)

    def _facts(self) -> Readback:
        loop = self.trainer
        optimizer = getattr(loop.deepspeed, "basic_optimizer", loop.optimizer)
        return super()._facts() | {"optimizer": type(optimizer).__name__, "schedule": loop.schedule_name}


class TrainingSession(Extensible):
    """Steerable training loop. One iteration of the loop is one step of the optimizer, on every rank alike.

    `state` is for the script: its content (per rank; anything that `torch.save` takes) is saved in checkpoints and
    restored after a failure. Weights, optimizer, schedule, random generators and knobs are saved without it.
    """

    def __init__(
        self,
        model: Any = None,
        optimizer: Any = None,
        *,
        total_steps: int,
        engine: Any = None,
        scheduler: Any = None,
        seed: int = 0,
        tell_every_steps: int = 1,
    ) -> None:
        """Either `model` and `optimizer`, or a DeepSpeed `engine` with its own; the model is on its device already.

        Parameter groups are known by their `"name"`. The script steps `scheduler` as it always did; an engine steps
        its own. `seed` is for ranks that a checkpoint does not know. Raises `Invalid` if something is missing.
        """
        if (engine is None) == (model is None or optimizer is None):
            raise Invalid("give either an engine, or a model and its optimizer")
        if total_steps < 1 or tell_every_steps < 1:
            raise Invalid(f"total_steps ({total_steps}) and tell_every_steps ({tell_every_steps}) are at least 1")
        self.own_vocabulary = OwnVocabulary()
        self._loop = Loop(model, optimizer, engine, scheduler, total_steps, seed, self.own_vocabulary)
        self._tell_every_steps = tell_every_steps
        self._steering: LoopSteering | None = None
        self._random: loop_state.Progress | None = None
        self._is_open = self._is_over = self._in_a_step = False

    @property
    def state(self) -> dict[str, Any]:
        """State of the script's own, saved in checkpoints and restored after a failure."""
        return self.own_vocabulary.state

    @property
    def global_step(self) -> int:
        """Number of steps made since the beginning of the run."""
        return int(self._loop.state.global_step)

    @property
    def total_steps(self) -> int:
        """Number of steps to make."""
        return int(self._loop.state.max_steps)

    def __enter__(self) -> Self:
        """Collective. Open, restore, and announce this start.

        Raises: `SteerwayError` if the run may not start, `Diverged` if what is restored is not what was saved.
        """
        self._is_open = True
        run = context.current()
        if run is None:
            log.warning("not started by `steer submit`: this loop runs, but cannot be steered")
            return self
        steering = LoopSteering(self._loop, run)
        self._saving = steering.saving = CheckpointCallback(steering, run.checkpoint_every_steps)
        self._steering = steering
        self._logging = LoggingCallback(steering)
        try:
            plan = steering.open()
            for callback in (steering, RunPauseCallback(steering, self._saving), self._saving, self._logging):
                callback.on_train_begin(*self._stand_ins)
            self._random = {"random": loop_state.random_state()} if plan.checkpoint else None
            self._is_over = steering.is_over
        except Exception as error:
            steering.fail(self.global_step, error)
            raise
        return self

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps, as the number of steps made before each: `range(restored, total_steps)`.

        Ends early when the run is stopped. Raises `RuntimeError` if a round of the loop does not call `step`.
        """
        if not self._is_open:
            raise RuntimeError("the steps of a session are made inside of `with session:`")
        if self._random is not None:
            # Whatever the script has drawn since then: the coming step is the one after the save.
            loop_state.restore_random(self._random)
            self._random = None
        while not self._is_over and self.global_step < self.total_steps and not self._loop.control.should_training_stop:
            self._begin_step()
            yield self.global_step
            if self._in_a_step:
                raise RuntimeError("each round of `for step in session.steps()` calls session.step() once")

    def step(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Collective. End a step: send metrics, save a due checkpoint, apply commands, and block while paused.

        `metrics` are numbers or tensors of one element; rank 0's are told. Raises `Invalid` for anything else,
        `Diverged` on every rank if the ranks could not be brought back to agreement.
        """
        if not self._in_a_step:
            raise RuntimeError("session.step() is called once in each round of `for step in session.steps()`")
        self._in_a_step = False
        told = metrics or {}
        _check(told)
        self._loop.state.global_step += 1
        if self._steering is None:
            return
        self._loop.step_schedule()
        self._tell(told)
        self._saving.after_step(self.global_step)
        self._steering.boundary(self.global_step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for a save in progress, and report to the control server how the training ended.

        Raises `LeaveForBranch` when the run continues on another branch.
        """
        self._is_open = False
        steering = self._steering
        if steering is None:
            return
        if error is None:
            steering.on_train_end(*self._stand_ins)
            self._saving.on_train_end(*self._stand_ins)
            steering.close(self.global_step)
            if steering.leaving:
                release(self._loop.deepspeed)
                raise LeaveForBranch
        elif isinstance(error, SystemExit):
            steering.break_off(self.global_step)
        else:
            steering.fail(self.global_step, error if isinstance(error, Exception) else RuntimeError(repr(error)))

    @property
    def _stand_ins(self) -> tuple[TrainingArguments, TrainerState, TrainerControl]:
        """Arguments that a Trainer passes to its callbacks."""
        return cast(TrainingArguments, self._loop.args), self._loop.state, self._loop.control

    def _begin_step(self) -> None:
        self._in_a_step = True
        if self._steering is not None:
            self._steering.on_step_begin(*self._stand_ins)
            self._logging.on_step_begin(*self._stand_ins)

    def _tell(self, metrics: Mapping[str, Any]) -> None:
        assert self._steering is not None
        if self._steering.opened().link is None:
            return
        is_due = self.global_step % self._tell_every_steps == 0
        # Reading a number off a GPU waits for it: only what is told is read.
        values = {name: _number(value) for name, value in metrics.items() if is_due or name.startswith(EVALUATED)}
        self._logging.on_log(*self._stand_ins, logs=values)
        evaluated = {name: value for name, value in values.items() if name.startswith(EVALUATED)}
        if evaluated:
            history = self._loop.state.log_history
            self._loop.state.log_history = [dict(history[-1] if history else {}) | evaluated]


def _check(metrics: Mapping[str, Any]) -> None:
    """Raise `Invalid` for unfit metrics, on every rank alike and without waiting for a GPU."""
    for name, value in metrics.items():
        if not 0 < len(name) <= MAX_METRIC_CHARS:
            raise Invalid(f"the measurement {name!r}: a name has 1 to {MAX_METRIC_CHARS} characters")
        is_number = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float)
        if not is_number:
            raise Invalid(f"the measurement {name!r} is {value!r}, but has to be a number or a tensor of one element")


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
