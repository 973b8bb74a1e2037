"""Steerable Hugging Face Trainer, with as few overrides as possible; private ones as read in Transformers 5.23.

    from ray_jobs.hf.trainer import make_interactive
    trainer = make_interactive(Trainer)(model=model, args=args, train_dataset=data)

Started by `steer submit`, the trainer can be steered. Started by hand, it is the class that it was made from.
"""

import logging
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from ray_jobs.checkpoint import restore
from ray_jobs.checkpoint.batch import plan_batch
from ray_jobs.config.deepspeed_features import check
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.digest.fingerprints import fingerprint
from ray_jobs.hf import script_callbacks
from ray_jobs.hf.callbacks import (
    CheckpointCallback,
    InteractiveCallback,
    LoggingCallback,
    RunPauseCallback,
)
from ray_jobs.hf.held_out import evaluate_held_out
from ray_jobs.hf.live import apply_batch_plan, engine_of
from ray_jobs.hf.sample_losses import labels_of, sample_losses
from ray_jobs.hf.steered_data import SteeredData
from ray_jobs.process import context
from ray_jobs.process.cpu_setup import check_data_parallel
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering.actions import Extensible, ScriptExtensions
from ray_jobs.steering.rollback import LeaveForBranch, release

log = logging.getLogger(__name__)

T = TypeVar("T", bound=type[Trainer])


class Steered(SteeredData, Extensible):
    """Mixin that makes a Trainer's subclass steerable and resumes the run. Comes before the Trainer in the MRO.

    Of Transformers' Trainer it extends `train`, and the places inside of it where a checkpoint is loaded and where a
    step is over: after its logging and its evaluation, before the next step. `SteeredData` orders the samples.
    """

    # The step whose logging is over.
    _logged_step = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._run = run = context.current()
        self.script_extensions = ScriptExtensions()
        super().__init__(*args, **kwargs)
        if run is None:
            log.warning("not started by `steer submit`: this trainer runs, but cannot be steered")
            return
        self._steering = steering = SteeredRun(run)
        for callback in (
            InteractiveCallback(self._as_trainer, steering, self.script_extensions),
            RunPauseCallback(steering),
            CheckpointCallback(steering),
            LoggingCallback(steering),
        ):
            self._as_trainer.add_callback(callback)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train from where the run was. A failure is reported to the control server and raised again.

        Raises `LeaveForBranch` when the run continues on another branch.
        """
        steering, training, this = self._steering, cast(Any, super()), self._as_trainer
        if steering is None:
            return training.train(resume_from_checkpoint, *args, **kwargs)
        try:
            plan = steering.open(self._check_steerable, lambda: fingerprint(self._steered_model, this.train_dataset))
            self._keep_global_batch(plan)
            self.script_extensions.close()
            if isinstance(this.train_dataset, MixtureDataset):
                this.train_dataset.begin()
            begin_at = str(plan.state_folder) if plan.checkpoint else resume_from_checkpoint
            output = training.train(begin_at, *args, **kwargs)
        except Exception as error:
            steering.fail(self._step, error)
            raise
        except SystemExit:
            steering.break_off(self._step, this.state.max_steps)
            raise
        steering.close(self._step)
        if steering.leaving:
            release(engine_of(this))
            raise LeaveForBranch
        return output

    @property
    def _steered_model(self) -> nn.Module:
        return cast(nn.Module, self._as_trainer.model)

    def _check_steerable(self) -> None:
        """Raise unless this Trainer can be steered: `Invalid`, or `Refused` for an unsupported feature of DeepSpeed."""
        args = self._as_trainer.args
        check_data_parallel(args)
        config = getattr(getattr(args, "hf_deepspeed_config", None), "config", None)
        check(self._steered_model, engine_of(self._as_trainer), config, getattr(args, "parallelism_config", None))

    def _keep_global_batch(self, plan: ResumePlan) -> None:
        """Keep the run's global batch on these ranks. Raises `Invalid` if they cannot share it."""
        args, run = self._as_trainer.args, self._run
        assert run is not None
        per_rank = args.per_device_train_batch_size * args.gradient_accumulation_steps
        wanted = per_rank * (run.ranks or args.world_size)
        if plan.manifest is not None and plan.manifest.global_batch_samples:
            wanted = plan.manifest.global_batch_samples
        if wanted != per_rank * args.world_size:
            shared = plan_batch(wanted, args.per_device_train_batch_size, args.world_size)
            log.warning("%d ranks share a global batch of %d samples: %s", args.world_size, wanted, shared)
            apply_batch_plan(self._as_trainer, shared)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> Any:
        plan, training = self._plan, cast(Any, super())
        if plan is None:
            return training._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = training._prepare_for_training(max_steps, train_dataloader, None)
        this = self._as_trainer
        assert this.optimizer is not None
        restore.load(self._steered_model, this.optimizer, engine_of(this), plan)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._plan is None:
            cast(Any, super())._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_callback_state(self) -> None:
        plan, steering = self._plan, self._steering
        if plan is None or steering is None:
            cast(Any, super())._load_callback_state()
        else:
            script_callbacks.put_back(self._as_trainer, restore.script_state(plan, steering.opened().rank))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss of a micro-batch, and note it for the checks of the training's health."""
        loss: torch.Tensor = cast(Any, super()).training_step(*args, **kwargs)
        if self._health is not None:
            self._health.signs.add_loss(loss)
        self._micro_batch += 1
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, and time the forward pass of a training step; every few steps, note it by source."""
        compute, signs = cast(Any, super()).compute_loss, self._health.signs if self._health is not None else None
        if signs is None or not model.training:
            return compute(model, inputs, *args, **kwargs)
        labels = labels_of(inputs) if signs.sources.is_due and not args and self._has_plain_loss() else None
        if labels is None or kwargs.get("return_outputs"):
            with signs.clock.running(inputs):
                return compute(model, inputs, *args, **kwargs)
        with signs.clock.running(inputs):
            loss, outputs = compute(model, inputs, **(kwargs | {"return_outputs": True}))
        if (losses := sample_losses(self._steered_model, outputs, labels)) is not None:
            self.note_sample_losses(losses)
        return loss

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and tell the loss of each source on the records that it holds out: `eval_loss/NAME`."""
        theirs, data = cast(Any, super()).evaluate, self._mixture
        if eval_dataset is not None or data is None or not data.order.held_out(1):
            return cast(dict[str, float], theirs(eval_dataset, *args, **kwargs))
        has_own = self._as_trainer.eval_dataset is not None
        metrics: dict[str, float] = theirs(None, *args, **kwargs) if has_own else {}
        told = evaluate_held_out(self._as_trainer, data, self._steering)
        self._as_trainer.log(dict(told))
        return metrics | told

    def _has_plain_loss(self) -> bool:
        """Return whether a training step's loss is Transformers' own, which can tell the outputs, too."""
        mro = type(self).__mro__
        theirs = next(base for base in mro[mro.index(Steered) + 1 :] if "compute_loss" in vars(base))
        return theirs is Trainer

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        if self._health is not None and self._logged_step != self._step:
            self._health.signs.step_over()
            self._health.signs.note("grad_norm", grad_norm)
        cast(Any, super())._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        # Transformers calls this again at the end of an epoch, whose evaluation belongs to its last step: what is
        # saved at that step has it, and what restores that step does not owe it.
        first, self._logged_step = self._logged_step != self._step, self._step
        if self._steering is None or (first and self._ends_its_epoch()):
            return
        if self._steering.opened().is_open(self._step):
            self._steering.boundary(self._step)

    def _ends_its_epoch(self) -> bool:
        control = self._as_trainer.control
        ends = self._step == self._last_step_of_epoch
        return bool(ends or control.should_epoch_stop or control.should_training_stop)


def make_interactive(trainer_class: T) -> T:
    """Return a subclass of `trainer_class` that can be steered and resumes the run."""
    name = f"Interactive{trainer_class.__name__.removeprefix('Interactive')}"
    return type(name, (Steered, trainer_class), {"__doc__": Steered.__doc__})  # type: ignore[return-value]


def steering_of(trainer: Trainer) -> SteeredRun:
    """Return the steered run of a Trainer made by `make_interactive`. Raises `RuntimeError` for any other one."""
    steering: SteeredRun | None = getattr(trainer, "_steering", None)
    if steering is None:
        raise RuntimeError("this trainer is not steered: `steer submit` starts one that is")
    return steering


InteractiveTrainer = make_interactive(Trainer)
