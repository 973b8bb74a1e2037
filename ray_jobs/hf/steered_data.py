"""Data of a steered Hugging Face Trainer: its order, its random numbers, and where it continues; a part of `Steered`.

Private methods as read in Transformers 5.23. An epoch is run in one or several parts: where samples are left out,
its iterator is begun anew at the step that is due, as Transformers does after a failure.
"""

import logging
import sys
import time
from collections.abc import Sized
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainingArguments

from ray_jobs.checkpoint import restore
from ray_jobs.checkpoint.batch import global_batch_samples
from ray_jobs.data.generators import seed_of, seeded
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.mixture.sampler import MixtureSampler
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.data.seeded_loading import LoaderSeeds
from ray_jobs.data.skipping import StreamPlace
from ray_jobs.health.rank_health import RankHealth
from ray_jobs.hf.data_position import DataMoved, DataPosition
from ray_jobs.process import context
from ray_jobs.rank.inexact import kept_generators
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.steered_run import SteeredRun

log = logging.getLogger(__name__)

MOVED = "moved"
"""Stands for a checkpoint where Transformers only asks whether there is one."""


class SteeredData:
    """Mixin for the data of a Trainer's subclass. Comes before the Trainer in the MRO."""

    # Before a subclass's `__init__` is over, it may ask for its data loader.
    _steering: SteeredRun | None = None
    _order: SampleOrder | None = None
    _mixture: MixtureDataset | None = None
    _mixture_sampler: MixtureSampler | None = None
    _run: context.RunContext | None = None
    _draws: LoaderSeeds | None = None
    # What will not be after a failure what it would have been without one, in words.
    inexact: tuple[str, ...] = ()
    # Why no samples can be left out of the data, in words.
    _fixed_data: tuple[str, ...] = ()
    # The last step of the present epoch.
    _last_step_of_epoch = -1
    # Number of the coming step's micro-batches that were trained on.
    _micro_batch = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._data_position = DataPosition()
        super().__init__(*args, **kwargs)

    @property
    def _as_trainer(self) -> Trainer:
        """This object, as what it is besides."""
        return cast(Trainer, self)

    @property
    def _step(self) -> int:
        return int(self._as_trainer.state.global_step)

    @property
    def _plan(self) -> ResumePlan | None:
        """Resume plan of this training, if it begins at a checkpoint."""
        plan = self._steering.plan if self._steering is not None else None
        return plan if plan is not None and plan.checkpoint else None

    @property
    def _health(self) -> RankHealth | None:
        return self._steering.health if self._steering is not None else None

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
        no_order = (*self._draws.attach(loader), *self._order_reasons(loader))
        own = (f"the order of the samples, which {name} of the script chooses" for name in self._draws.own_samplers)
        self._fixed_data = (*no_order, *own)
        kept = [
            reason
            for name in ("train_dataset", "data_collator")
            for reason in kept_generators(getattr(this, name, None), name)
        ]
        self.inexact = (*no_order, *kept, *self._filled_up_otherwise())
        return loader

    def _order_reasons(self, loader: DataLoader[Any]) -> list[str]:
        """Return the reasons why the order of the samples is not restored exactly, in words."""
        args, reasons = self._as_trainer.args, []
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
        if run is not None and isinstance(data, MixtureDataset) and _sampler_is_free(type(this)):
            self._mixture = data
            self._mixture_sampler = MixtureSampler(data, global_batch_samples(this.args))
            return self._mixture_sampler
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
        stream = StreamPlace() if self.most_steps is not None else None
        self._data_position = position = DataPosition(stream, is_restored=rest[0] is not None)
        if stream is None or self._plan is None or self._steering is None:
            return begun
        # Transformers takes `max_steps` for the length of a stream's pass.
        place = restore.stream_place(self._plan, self._steering.opened().rank)
        if place is None:
            return begun
        args, position.stream = self._as_trainer.args, place
        return place.passes, 0 if args.ignore_data_skip else place.steps * args.gradient_accumulation_steps

    def _load_rng_state(self, checkpoint: str | None) -> None:
        plan, position = self._plan, self._data_position
        if position.restore_random():
            return
        if plan is None:
            cast(Any, super())._load_rng_state(checkpoint)
        elif self._steering is not None:
            restore.random_generators(self._as_trainer.args.seed, plan, self._steering.opened().rank)
        position.is_restored = False

    def reason_not_to_skip(self) -> str | None:
        """Return the reason why no samples can be left out of this training's data, or None."""
        if self._fixed_data:
            return f"no samples can be skipped, since Steerway does not decide {'; '.join(self._fixed_data)}"
        early = self._as_trainer.control.should_epoch_stop or self._data_position.differs(self._step)
        return "no samples can be skipped, since the script ends its epochs early" if early else None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of a step; those that were left out are passed over before."""
        position, micro_batches = self._data_position, self._as_trainer.args.gradient_accumulation_steps
        batches_of_epoch = args[0] if args else kwargs["epoch_iterator"]
        if position.is_moved:
            self._leave(batches_of_epoch)
            raise DataMoved
        stream = position.stream
        while stream is not None and stream.due:
            if len(list(islice(batches_of_epoch, micro_batches))) < micro_batches:
                return [], None
            stream.drop()
            self._beat()
        self._micro_batch = 0
        began_s = time.perf_counter()
        batches, items = cast(Any, super()).get_batch_samples(*args, **kwargs)
        if self._health is not None:
            self._health.signs.waited_for_data(time.perf_counter() - began_s)
        if stream is not None and len(batches) == micro_batches:
            stream.steps += 1
        return batches, items

    def note_sample_losses(self, losses: torch.Tensor) -> None:
        """Note the losses of the samples of the micro-batch that is trained on, in their order, to tell them by source.

        For a script whose loss is its own: a `compute_loss` may call it. Others need not; every few steps only is it
        used. `losses`: one a sample, shape `(samples,)`.
        """
        health = self._health
        if health is None or not health.signs.sources.is_due or self._fixed_data:
            return
        args, samples = self._as_trainer.args, losses.numel()
        # Accelerate deals micro-batches of the global order to the ranks in turn.
        first = (self._micro_batch * args.world_size + args.process_index) * samples
        health.signs.sources.add(health.signs.sources.of_step()[first : first + samples], losses)

    def _leave(self, batches_of_epoch: Any) -> None:
        """End an iterator in the middle: its workers, and its place among accelerate's."""
        if hasattr(batches_of_epoch, "close"):
            batches_of_epoch.close()
        active = getattr(self._as_trainer.accelerator.gradient_state, "active_dataloader", None)
        if active is not None:
            active.end()

    def _beat(self) -> None:
        if self._steering is not None:
            self._steering.beat("training")

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        this, (epochs, steps), position = self._as_trainer, self._planned, self._data_position
        if self._steering is not None and self._steering.is_over:
            # No step is left: what `train` answers then is what was restored, the whole training's.
            this.control.should_training_stop = True
            return None
        per_epoch, micro_batches = int(kwargs["num_update_steps_per_epoch"]), this.args.gradient_accumulation_steps
        begun = 0
        if kwargs["epoch"] == kwargs["epochs_trained"] and kwargs["resume_from_checkpoint"] is not None:
            begun = int(kwargs["steps_trained_in_current_epoch"]) // micro_batches
        while True:
            epoch, begun, moved = position.begin_epoch(kwargs["epoch"], begun, self._step, per_epoch)
            if self._draws is not None:
                self._draws.begin(epoch, begun * micro_batches)
                if moved:
                    self._draws.forget_workers()
            if self._mixture_sampler is not None:
                self._mixture_sampler.skip = begun
            self._last_step_of_epoch = self._step + per_epoch - begun
            settings = kwargs | {"epoch": epoch}
            if moved:  # as Transformers continues in the middle of an epoch
                settings |= {"epochs_trained": epoch, "steps_trained_in_current_epoch": begun * micro_batches}
                settings["resume_from_checkpoint"] = kwargs["resume_from_checkpoint"] or MOVED
            try:
                ran = cast(Any, super())._run_epoch(*args, **settings)
                break
            except DataMoved:
                continue
        if self._mixture is not None and not self._mixture.has(position.skipped.data_step(self._step + 1)):
            log.warning("the training ends at step %d: its sources do not repeat, and are exhausted", self._step)
            this.control.should_training_stop = True
        self._end_epoch(epoch + 1 >= epochs + position.last_epochs(per_epoch) and this.state.max_steps <= steps)
        return ran

    def _end_epoch(self, is_last: bool) -> None:
        """Stop after the last planned epoch, and go on after a pass of a stream that was left out as a whole."""
        stream, steering = self._data_position.stream, self._steering
        if steering is not None and is_last:
            self._as_trainer.control.should_training_stop = True
        elif stream is not None and stream.skipped and not stream.steps and not _has_stopped(steering):
            self._as_trainer.control.should_training_stop = False  # Transformers takes it for data without a sample


def _has_stopped(steering: SteeredRun | None) -> bool:
    return steering is not None and (steering.is_stopping or steering.leaving)


def _sampler_is_free(trainer_class: type[Trainer]) -> bool:
    """Return whether the script leaves the sampler to the Trainer."""
    theirs = next(
        base for base in trainer_class.__mro__ if base is not SteeredData and "_get_train_sampler" in vars(base)
    )
    return theirs is Trainer


def _takes_our_order(trainer_class: type[Trainer], data: object, args: TrainingArguments, keeps_the_tail: bool) -> bool:
    """Return whether the Trainer would use its own random order of a sized dataset, so that ours, which does not depend
    on the number of ranks, may replace it. A sampler of the user's, or another strategy, is kept."""
    own = _sampler_is_free(trainer_class)
    random = getattr(args, "train_sampling_strategy", "random") == "random"
    least = 1 if keeps_the_tail else global_batch_samples(args)
    return own and random and hasattr(data, "__len__") and len(data) >= least
