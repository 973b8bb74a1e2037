"""Steerable Hugging Face Trainer, with as few overrides as possible; private ones as read in Transformers 5.23.

    from ray_jobs.hf.trainer import make_interactive
    trainer = make_interactive(Trainer)(model=model, args=args, train_dataset=data)

Started by `steer submit`, the trainer can be steered. Started by hand, it is the class that it was made from.
"""

import logging
import sys
import time
from collections.abc import Sized
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainingArguments

from ray_jobs.checkpoint import restore
from ray_jobs.checkpoint.batch import global_batch_samples, plan_batch
from ray_jobs.config.deepspeed_features import check
from ray_jobs.data.generators import seed_of, seeded
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.data.seeded_loading import LoaderSeeds
from ray_jobs.digest.fingerprints import fingerprint
from ray_jobs.health.rank_health import RankHealth
from ray_jobs.hf import script_callbacks
from ray_jobs.hf.callbacks import (
    CheckpointCallback,
    InteractiveCallback,
    LoggingCallback,
    RunPauseCallback,
)
from ray_jobs.hf.live import apply_batch_plan, engine_of
from ray_jobs.process import context
from ray_jobs.process.cpu_setup import check_data_parallel
from ray_jobs.rank.inexact import kept_generators
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering.actions import Extensible, ScriptExtensions
from ray_jobs.steering.rollback import LeaveForBranch, release

log = logging.getLogger(__name__)

T = TypeVar("T", bound=type[Trainer])


class Steered(Extensible):
    """Mixin that makes a Trainer's subclass steerable and resumes the run. Comes before the Trainer in the MRO.

    Of Transformers' Trainer it extends `train`, and the places inside of it where a checkpoint is loaded, where the
    samples are ordered, and where a step is over: after its logging and its evaluation, before the next step.
    """

    # Before a subclass's `__init__` is over, it may ask for its data loader.
    _steering: SteeredRun | None = None
    _order: SampleOrder | None = None
    _run: context.RunContext | None = None
    _draws: LoaderSeeds | None = None
    # What will not be after a failure what it would have been without one, in words.
    inexact: tuple[str, ...] = ()
    # The pass, from 0, and the steps made in it, where the data has no length.
    stream_place: tuple[int, int] | None = None
    # The step whose logging is over, and the one with which the present epoch ends.
    _logged_step = _last_step_of_epoch = -1

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
    def _as_trainer(self) -> Trainer:
        """This object, as what it is besides."""
        return cast(Trainer, self)

    @property
    def _steered_model(self) -> nn.Module:
        return cast(nn.Module, self._as_trainer.model)

    @property
    def _step(self) -> int:
        return int(self._as_trainer.state.global_step)

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

    @property
    def _plan(self) -> ResumePlan | None:
        """Resume plan of this training, if it begins at a checkpoint."""
        plan = self._steering.plan if self._steering is not None else None
        return plan if plan is not None and plan.checkpoint else None

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

    def _load_rng_state(self, checkpoint: str | None) -> None:
        plan = self._plan
        if plan is None:
            cast(Any, super())._load_rng_state(checkpoint)
        elif self._steering is not None:
            restore.random_generators(self._as_trainer.args.seed, plan, self._steering.opened().rank)

    @property
    def _health(self) -> RankHealth | None:
        return self._steering.health if self._steering is not None else None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss of a micro-batch, and note it for the checks of the training's health."""
        loss: torch.Tensor = cast(Any, super()).training_step(*args, **kwargs)
        if self._health is not None:
            self._health.signs.add_loss(loss)
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, and time the forward pass of a training step."""
        compute = cast(Any, super()).compute_loss
        if self._health is None or not model.training:
            return compute(model, inputs, *args, **kwargs)
        with self._health.signs.clock.running(inputs):
            return compute(model, inputs, *args, **kwargs)

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

    def get_train_dataloader(self) -> Any:
        """Return the loader; in a run, its random numbers are a function of the seed, the epoch and the batch."""
        this, theirs, run = self._as_trainer, cast(Any, super()).get_train_dataloader, self._run
        if run is None:
            return theirs()
        args, training = this.args, max(1, run.trainings.begun)
        seed = args.seed if args.data_seed is None else args.data_seed
        seed = seed if training == 1 else seed_of(seed, "training", training)
        self._draws = LoaderSeeds(seed, args.process_index)
        with seeded(seed):
            loader = theirs()
        self.inexact = (*self._draws.attach(loader), *self._data_reasons(loader), *self._filled_up_otherwise())
        return loader

    def _data_reasons(self, loader: DataLoader[Any]) -> list[str]:
        """Return the reasons why the data is not restored exactly, in words."""
        this, args = self._as_trainer, self._as_trainer.args
        reasons = [
            reason
            for name in ("train_dataset", "data_collator")
            for reason in kept_generators(getattr(this, name, None), name)
        ]
        if args.ignore_data_skip:
            reasons.append("the data of the epoch, which begins anew (ignore_data_skip)")
        if args.dataloader_num_workers > 1 and not args.dataloader_in_order:
            reasons.append(
                "the order of the batches, which come as the loader's workers are ready (dataloader_in_order)"
            )
        is_dispatched = type(loader).__name__ == "DataLoaderDispatcher"
        if is_dispatched and args.world_size > 1 and not isinstance(loader.dataset, IterableDataset):
            reasons.append("the samples of the epoch (dispatch_batches, with data that has a length)")
        return reasons

    def _filled_up_otherwise(self) -> list[str]:
        """Return an inexactness if an epoch's tail is kept on another number of ranks: its step differs."""
        order, plan, ranks = self._order, self._plan, self._as_trainer.args.world_size
        writers = plan.manifest.world_size if plan is not None and plan.manifest is not None else ranks
        if order is None or not order.has_a_tail or writers == ranks:
            return []
        return [f"the last step of each epoch, of a smaller batch (data.tail: keep), on {ranks} ranks after {writers}"]

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Any:
        this = self._as_trainer
        data = train_dataset if train_dataset is not None else this.train_dataset
        run = self._run
        if run is None or not _takes_our_order(type(this), data, this.args, run.keeps_the_tail):
            return cast(Any, super())._get_train_sampler(train_dataset)
        seed = this.args.seed if this.args.data_seed is None else this.args.data_seed
        self._order = order = SampleOrder(
            len(cast(Sized, data)), seed, global_batch_samples(this.args), run.keeps_the_tail
        )
        if order.left_out:
            counts = (order.left_out, order.n, len(order) // global_batch_samples(this.args))
            sentence = "%d of %d samples fill no global batch and are left out of each epoch, of %d steps (%s)"
            log.warning(sentence, *counts, "data.tail: keep trains on them")
        return order

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> tuple[Any, ...]:
        """Return Transformers' values, but with unlimited epochs, for a later `total_steps`; see `_run_epoch`."""
        epochs, *values, max_steps = cast(Any, super()).set_initial_training_values(args, dataloader)
        self._planned = int(epochs), int(max_steps)
        # Without a length Transformers reads on until the planned step, and cannot tell where an epoch ends.
        self.most_steps = int(max_steps) if epochs == sys.maxsize else None
        return (epochs if self._steering is None else sys.maxsize, *values, max_steps)

    def _init_training_state(self, max_steps: int, per_epoch: int, epochs: int, *rest: Any) -> Any:
        begun = cast(Any, super())._init_training_state(max_steps, per_epoch, self._planned[0], *rest)
        self.stream_place = (0, 0) if self.most_steps is not None else None
        if self.stream_place is None or self._plan is None or self._steering is None:
            return begun
        # Transformers takes `max_steps` for the length of a stream's pass.
        place = restore.stream_place(self._plan, self._steering.opened().rank)
        if place is None:
            return begun
        args, self.stream_place = self._as_trainer.args, place
        return place[0], 0 if args.ignore_data_skip else place[1] * args.gradient_accumulation_steps

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of a step, and count the position in data without a length."""
        began_s = time.perf_counter()
        batches, items = cast(Any, super()).get_batch_samples(*args, **kwargs)
        if self._health is not None:
            self._health.signs.waited_for_data(time.perf_counter() - began_s)
        if self.stream_place is not None and len(batches) == self._as_trainer.args.gradient_accumulation_steps:
            self.stream_place = (self.stream_place[0], self.stream_place[1] + 1)
        return batches, items

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        this, (epochs, steps) = self._as_trainer, self._planned
        if self._steering is not None and self._steering.is_over:
            # No step is left: what `train` answers then is what was restored, the whole training's.
            this.control.should_training_stop = True
            return None
        per_epoch, skipped = int(kwargs["num_update_steps_per_epoch"]), 0
        if kwargs["epoch"] == kwargs["epochs_trained"] and kwargs["resume_from_checkpoint"] is not None:
            skipped = int(kwargs["steps_trained_in_current_epoch"])
        if self._draws is not None:
            self._draws.begin(kwargs["epoch"], skipped)
        begun = skipped // this.args.gradient_accumulation_steps
        if self.stream_place is not None:
            self.stream_place = (kwargs["epoch"], begun)
        self._last_step_of_epoch = self._step + per_epoch - begun
        ran = cast(Any, super())._run_epoch(*args, **kwargs)
        if self._steering is not None and kwargs["epoch"] + 1 >= epochs and this.state.max_steps <= steps:
            this.control.should_training_stop = True
        return ran


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


def _takes_our_order(trainer_class: type[Trainer], data: object, args: TrainingArguments, keeps_the_tail: bool) -> bool:
    """Return whether the Trainer would use its own random order of a sized dataset, so that ours, which does not depend
    on the number of ranks, may replace it. A sampler of the user's, or another strategy, is kept."""
    theirs = next(base for base in trainer_class.__mro__ if base is not Steered and "_get_train_sampler" in vars(base))
    own = theirs is Trainer
    random = getattr(args, "train_sampling_strategy", "random") == "random"
    least = 1 if keeps_the_tail else global_batch_samples(args)
    return own and random and hasattr(data, "__len__") and len(data) >= least


InteractiveTrainer = make_interactive(Trainer)
