"""What a steered Trainer does around its steps: four callbacks, each with one concern.

    InteractiveCallback   the boundary itself, the live learning rate, evaluation
    RunPauseCallback      pause, resume, stop
    CheckpointCallback    saving, when asked and every k steps
    LoggingCallback       measurements to the control server

They are added in this order, and Transformers calls them in it. All ranks have all of them.
"""

import logging
import os
import socket
import time
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from control_plane.core.boundary import Applied
from control_plane.core.commands import Command, SaveCheckpoint
from control_plane.core.errors import Invalid
from control_plane.core.records import Ending, RankPlace
from control_plane.handle import Point
from ray_jobs import checkpoint_io
from ray_jobs.appliers import EvaluateApplier, FlagApplier, LearningRateApplier, StopApplier
from ray_jobs.collectives import Collectives
from ray_jobs.context import RunContext
from ray_jobs.link import Link
from ray_jobs.schedule import live_groups, steer_schedule
from ray_jobs.session import TrainingSession

log = logging.getLogger(__name__)

NOT_FORWARDED = {"learning_rate", "epoch", "step", "total_flos"}
"""What Transformers logs and we do not: its learning rate is sometimes the next step's, so we measure our own."""


class InteractiveCallback(TrainerCallback):
    """Opens the session, and holds a boundary after every optimizer step."""

    def __init__(self, trainer: Any, context: RunContext) -> None:
        self.trainer, self.context = trainer, context
        self.session: TrainingSession | None = None
        self.learning_rate: LearningRateApplier | None = None

    def opened(self) -> TrainingSession:
        """The session. Raises `RuntimeError` outside of training."""
        if self.session is None:
            raise RuntimeError("the training has not begun")
        return self.session

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Steer the schedule, open the session.

        Raises: `Invalid` if DeepSpeed was asked for and is not in force, or if the ranks would not share the data.
        """
        if args.world_size != dist.get_world_size():
            raise Invalid(
                f"accelerate sees {args.world_size} processes where torch.distributed has {dist.get_world_size()} "
                "ranks: each rank would train on the same samples"
            )
        if args.deepspeed and getattr(self.trainer, "deepspeed", None) is None:
            raise Invalid(
                "the training arguments name a DeepSpeed config, but accelerate left DeepSpeed out: `use_cpu=True` and "
                "ACCELERATE_USE_CPU do that; on a CPU, set DS_ACCELERATOR=cpu instead"
            )
        collectives = Collectives()
        self.session = TrainingSession(collectives, Link(self.context.connect) if collectives.rank == 0 else None)
        self.learning_rate = LearningRateApplier(self.trainer, steer_schedule(self.trainer))
        self.session.register("set_learning_rate", self.learning_rate)
        self.session.register("evaluate", EvaluateApplier(self.trainer))

    def begin(self, state: TrainerState) -> None:
        """Collective. Announce the trainers; the last callback calls this when every applier is registered."""
        assert self.learning_rate is not None
        place = RankPlace(
            rank=self.opened().rank,
            node=socket.gethostname(),
            pid=os.getpid(),
            device=str(self.trainer.args.device),
        )
        generation = self.opened().start(
            place, state.global_step, state.max_steps, self.learning_rate.knobs(), self._facts()
        )
        log.info("generation %d: steered from step %d to %d", generation, state.global_step, state.max_steps)

    def _facts(self) -> dict[str, Any]:
        engine = getattr(self.trainer, "deepspeed", None)
        return self.context.facts | {
            "zero_stage": engine.zero_optimization_stage() if engine is not None else None,
            "optimizer": type(self.trainer.optimizer.optimizer).__name__,
            "schedule": type(self.trainer.lr_scheduler).__name__,
        }

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. Issue the boundary's broadcast, which hides behind the step."""
        self.opened().begin_step(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Collective. The boundary."""
        self.opened().end_step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Rank 0 tells the control server, and waits until it knows everything."""
        session = self.opened()
        ending: Ending = "stopped" if session.replica.stopping else "finished"
        if session.link is not None:
            session.link.close(ending, state.global_step, None)


class RunPauseCallback(TrainerCallback):
    """Pause, resume and stop. The pause itself is held inside the boundary."""

    def __init__(self, interactive: InteractiveCallback, saving: "CheckpointCallback") -> None:
        self._interactive, self._saving = interactive, saving

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register."""

        def stop(stopping: bool) -> None:
            control.should_training_stop = stopping

        session = self._interactive.opened()
        session.register("pause", FlagApplier("paused", True))
        session.register("resume", FlagApplier("paused", False))
        session.register("stop", StopApplier(stop, self._saving))


class CheckpointCallback(TrainerCallback):
    """Saves when asked, and every `every_steps` steps. Is itself the applier of `save_checkpoint`."""

    def __init__(self, interactive: InteractiveCallback, every_steps: int) -> None:
        self._interactive, self._every_steps = interactive, every_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Register."""
        self._interactive.opened().register("save_checkpoint", self)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Collective, when it is time: the step number is the same on all ranks."""
        if self._every_steps and state.global_step % self._every_steps == 0:
            saved = self._save(state.global_step, None)
            if isinstance(saved, str):
                log.error("no checkpoint at step %d: %s", state.global_step, saved)

    def check(self, command: Command) -> str | None:
        """Needs room on the disk."""
        return checkpoint_io.space_refusal(self._interactive.trainer, self._interactive.context.files)

    def apply(self, command: Command, step: int) -> Applied:
        """Collective. Raises `RuntimeError` on every rank if there is no checkpoint in the end."""
        label = command.intent.label if isinstance(command.intent, SaveCheckpoint) else None
        saved = self._save(step, label)
        if isinstance(saved, str):
            raise RuntimeError(saved)
        return Applied(before={}, after={"checkpoint": saved.checkpoint, "size_bytes": saved.size_bytes})

    def undo(self, command: Command) -> None:
        """A checkpoint that exists does no harm, and one that failed has been removed."""

    def _save(self, step: int, label: str | None) -> Any:
        session, learning_rate = self._interactive.opened(), self._interactive.learning_rate
        assert learning_rate is not None
        session.phase("saving")
        saved = checkpoint_io.save(
            self._interactive.trainer,
            self._interactive.context.files,
            session.collectives,
            {
                "generation": session.replica.generation,
                "step": step,
                "label": label,
                "knobs": learning_rate.knobs(),
                "settled": tuple(str(uuid) for uuid in session.replica.ledger),
            },
        )
        session.phase("training")
        if not isinstance(saved, str):
            session.commit_checkpoint(saved)
        return saved


class LoggingCallback(TrainerCallback):
    """Sends what the Trainer logs to the control server, with the learning rate that the step really used."""

    def __init__(self, interactive: InteractiveCallback) -> None:
        self._interactive = interactive
        self._rates: list[float] = []
        self._last = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collective. All appliers are registered by now: announce the trainers."""
        self._groups = live_groups(self._interactive.trainer)
        self._interactive.begin(state)
        self._last = (state.global_step, time.monotonic())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The learning rates that the coming step will use."""
        self._rates = [float(group["lr"]) for group in self._groups()]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Rank 0's numbers; Transformers has already averaged the loss over the ranks.

        A script may evaluate before it trains: what it logs then belongs to no step of the run.
        """
        session = self._interactive.session
        link = session.link if session is not None else None
        if link is None or not logs:
            return
        values = {name: value for name, value in logs.items() if _is_measurement(name, value)}
        if "loss" in values:
            values |= self._rate_values() | self._speed(state.global_step)
        now_s = time.time()
        link.measure(
            [Point(step=state.global_step, name=name, value=value, time_s=now_s) for name, value in values.items()]
        )

    def _rate_values(self) -> dict[str, float]:
        """Group 0's as `lr`; another group's as `lr/1`, ... while it differs from group 0's."""
        first, *others = self._rates
        return {"lr": first} | {f"lr/{index}": rate for index, rate in enumerate(others, 1) if rate != first}

    def _speed(self, step: int) -> dict[str, float]:
        (last_step, last_s), now_s = self._last, time.monotonic()
        self._last = (step, now_s)
        return {"steps_per_s": (step - last_step) / (now_s - last_s)} if step > last_step and now_s > last_s else {}


def _is_measurement(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in NOT_FORWARDED


def close_failed(callbacks: list[Any], step: int, reason: str) -> None:
    """Tell the control server that the training raised, on the rank that has a link."""
    for callback in callbacks:
        if isinstance(callback, InteractiveCallback) and callback.session and callback.session.link:
            callback.session.link.close("failed", step, reason)
