"""Steerable training loop of a script's own: plain PyTorch with torch.distributed, or a DeepSpeed engine.

    session = TrainingSession(engine=engine, total_steps=1000)
    with session:                          # opens, and restores where the run was
        for step in session.steps():       # from there to the end, or until somebody stops the run
            loss = ...                     # forward, backward, the optimizer's step
            session.step({"loss": loss})   # the boundary: commands, a pause, a checkpoint when one is due

Started by `steer submit`, the loop can be steered. Started by hand, it is a loop. Transformers is not imported.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from control_plane.core.model.errors import Invalid
from ray_jobs.checkpoint import loop_state, restore
from ray_jobs.config.deepspeed_features import check
from ray_jobs.data.mixture.course import Reference
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.mixture.held_out import Alone, held_out_losses
from ray_jobs.data.mixture.phase import Sample
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.digest.fingerprints import fingerprint
from ray_jobs.loop.live import PlainLoop, global_batch_of, live
from ray_jobs.process import context
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering import skipped_steps
from ray_jobs.steering.actions import Extensible, ScriptExtensions
from ray_jobs.steering.appliers import UnsupportedApplier, evaluating
from ray_jobs.steering.rollback import LeaveForBranch, release
from ray_jobs.steering.schedule import Scheduler

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

Metric = int | float | torch.Tensor

MAX_METRIC_CHARS = 64
EVALUATED = "eval_"
"""Prefix of metrics that are kept with a checkpoint, for retention of the best ones."""


class TrainingSession(Extensible):
    """Steerable training loop. One iteration of the loop is one step of the optimizer, on every rank alike.

    `state` is for the script: its content (per rank; anything that `torch.save` takes) is saved in checkpoints and
    restored after a failure. Weights, optimizer, schedule, random generators and knobs are saved without it.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        engine: "DeepSpeedEngine | None" = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
        tell_every_steps: int = 1,
        sample_order: SampleOrder | None = None,
        global_batch_samples: int = 0,
        data: MixtureDataset | None = None,
    ) -> None:
        """Either `model` and `optimizer`, or a DeepSpeed `engine` with its own; the model is on its device already.

        Parameter groups are known by their `"name"`. The script steps `scheduler` as it always did; an engine steps
        its own. `seed` is for ranks that a checkpoint does not know. With a `sample_order`, from which the loop takes
        `samples()`, or with `global_batch_samples`, if it reads its data by `data_step`, samples can be skipped by
        command. With `data` of the run's sources and `global_batch_samples`, the loop takes `references()` of it.
        Raises `Invalid` if something is missing.
        """
        if (engine is None) == (model is None or optimizer is None):
            raise Invalid("give either an engine, or a model and its optimizer")
        if total_steps < 1 or tell_every_steps < 1:
            raise Invalid(f"total_steps ({total_steps}) and tell_every_steps ({tell_every_steps}) are at least 1")
        self.script_extensions = ScriptExtensions()
        if engine is not None:
            model, optimizer = engine.module, engine.optimizer
        assert model is not None
        assert optimizer is not None
        self._model, self._optimizer, self._engine, self._seed = model, optimizer, engine, seed
        self._scheduler: Scheduler | None = (
            scheduler if scheduler is not None else getattr(engine, "lr_scheduler", None)
        )
        if sample_order is not None:
            global_batch_samples = sample_order.global_batch_samples
        self._loop = PlainLoop(
            total_steps,
            sample_order=sample_order,
            global_batch_samples=global_batch_samples,
            log_every_steps=tell_every_steps,
        )
        if data is not None:
            data.begin()
            self._loop.mixture, data.global_batch_samples = data, global_batch_samples
            if sample_order is not None or global_batch_samples < 1:
                raise Invalid("data of the run's sources needs global_batch_samples, and takes no sample_order")
        self._check_global_batch()
        self._tell_every_steps = tell_every_steps
        self._steering: SteeredRun | None = None
        self._random: loop_state.Progress | None = None
        self._is_open = self._is_over = self._in_a_step = False

    @property
    def state(self) -> dict[str, Any]:
        """State of the script's own, saved in checkpoints and restored after a failure."""
        return self.script_extensions.state

    @property
    def global_step(self) -> int:
        """Number of steps made since the beginning of the run."""
        return self._loop.step

    @property
    def total_steps(self) -> int:
        """Number of steps to make."""
        return self._loop.total_steps

    @property
    def data_step(self) -> int:
        """Global batches before the coming step's: those of the steps that were made, and those that were skipped."""
        return self._loop.skipped.data_step(self.global_step + 1) - 1

    def samples(self) -> npt.NDArray[np.int64]:
        """Return the sample ids of the coming step's global batch, in order; rank r of W takes its part of them.

        Raises `RuntimeError` if the session was not given a `sample_order`.
        """
        order = self._loop.sample_order
        if order is None:
            raise RuntimeError("session.samples() needs a sample_order, which was not given to this TrainingSession")
        return order.batch(self.data_step + 1)

    def references(self) -> list[Sample]:
        """Return the records of the coming step's global batch, in order, for `data[reference]`; rank r of W takes its
        part of them.

        Raises `RuntimeError` if the session was not given `data`.
        """
        if self._loop.mixture is None:
            raise RuntimeError("session.references() needs data, which was not given to this TrainingSession")
        return self._loop.mixture.batch(self.data_step + 1)

    def note_sample_losses(self, losses: torch.Tensor, references: Sequence[Sample] | None = None) -> None:
        """Note the losses of samples of this step on this rank, to tell them by source; used every ten steps only.

        Args:
            losses: one a sample, in their order, shape `(samples,)`. May be called for each micro-batch.
            references: of these samples; by default `references()[rank::ranks]`, all of this rank's.

        Raises: `Invalid` if the numbers of losses and of references differ.
        """
        steering, mixture = self._steering, self._loop.mixture
        health = steering.health if steering is not None else None
        if steering is None or health is None or mixture is None or not health.signs.sources.is_due:
            return
        if references is None:
            collectives = steering.opened().collectives
            references = health.signs.sources.of_step()[collectives.rank :: collectives.world_size]
        if losses.numel() != len(references):
            raise Invalid(f"{losses.numel()} losses were noted for {len(references)} samples: give one a sample")
        health.signs.sources.add(references, losses)

    def held_out_losses(
        self, losses_of: Callable[[list[Any]], torch.Tensor], batch_samples: int = 32
    ) -> dict[str, float]:
        """Collective. Return the loss of each source on what it holds out: `eval_loss/NAME` and `eval_error/NAME`.

        Give them to `step` as metrics. The model is in its evaluation mode meanwhile, and the random generators are
        put back afterwards; every evaluation begins with the same random numbers.

        Args:
            losses_of: returns the loss of each of these samples, shape `(samples,)`, or their mean.
            batch_samples: the most that it is given at a time.

        Raises `RuntimeError` if the session was not given `data`.
        """
        data, steering = self._loop.mixture, self._steering
        if data is None:
            raise RuntimeError("session.held_out_losses() needs data, which was not given to this TrainingSession")
        ranks = steering.opened().collectives if steering is not None else Alone()

        def of_references(references: Sequence[Reference]) -> torch.Tensor:
            if steering is not None:
                steering.beat("evaluating")
            return losses_of([data[reference] for reference in references])

        with evaluating(self._model):
            return held_out_losses(data, of_references, ranks, batch_samples)

    def __enter__(self) -> Self:
        """Collective. Open, restore, and announce this start.

        Raises: `SteerwayError` if the run may not start, `Diverged` if what is restored is not what was saved.
        """
        self._is_open = True
        run = context.current()
        if run is None:
            log.warning("not started by `steer submit`: this loop runs, but cannot be steered")
            return self
        self._steering = steering = SteeredRun(run)
        try:
            self._begin(steering)
        except Exception as error:
            steering.fail(self.global_step, error)
            raise
        return self

    def _begin(self, steering: SteeredRun) -> None:
        """Collective. Load the checkpoint, wrap the schedule, restore the rest, and announce the trainers."""
        model, optimizer, engine = self._model, self._optimizer, self._engine
        plan = steering.open(lambda: check(model, engine), lambda: fingerprint(model, None))
        self._check_batch(plan)
        if plan.manifest is not None:
            restore.load(model, optimizer, engine, plan)
            self._loop.step = plan.manifest.step
        training = live(
            self._loop,
            model,
            optimizer,
            engine,
            self._scheduler,
            saver=steering.saver,
            extensions=self.script_extensions,
            limits=steering.context.limits,
            is_stopping=lambda: steering.is_stopping,
        )
        steering.begin(training, UnsupportedApplier("this run has no evaluation set"))
        steering.register_lifecycle()
        steering.begin_saving()
        if plan.checkpoint:  # first: an action that is replayed in `announce` may draw from the generators
            restore.random_generators(self._seed, plan, steering.opened().rank)
        steering.announce()
        if steering.health is not None:
            steering.health.signs.clock.watch(model)
        self._random = {"random": loop_state.random_state()} if plan.checkpoint else None
        self._is_over = steering.is_over

    def _check_batch(self, plan: ResumePlan) -> None:
        """Raise `Invalid` if the script's global batch is not the run's: only the script can change it."""
        wanted = plan.manifest.global_batch_samples if plan.manifest is not None else 0
        batch = global_batch_of(self._engine) or self._loop.global_batch_samples
        if wanted and batch and wanted != batch:
            raise Invalid(
                f"the run's steps take {wanted} samples over all ranks, and this script's take {batch}: let its "
                "'train_batch_size' be the same on any number of ranks"
            )

    def _check_global_batch(self) -> None:
        """Raise `Invalid` if the engine's steps take another number of samples than the script says."""
        told, batch = self._loop.global_batch_samples, global_batch_of(self._engine)
        if told < 0 or (told and batch and told != batch):
            raise Invalid(
                f"a global batch of {told} samples was given, by sample_order or global_batch_samples"
                + (f", and a step of this engine takes {batch}" if batch else "; it is at least 1")
            )

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
        while not self._is_over and self.global_step < self.total_steps and not self._loop.stopping:
            if not self._loop.has_samples:
                log.warning(
                    "the training ends at step %d: its sources do not repeat, and are exhausted", self.global_step
                )
                return
            self._begin_step()
            yield self.global_step
            if self._in_a_step:
                raise RuntimeError("each round of `for step in session.steps()` calls session.step() once")

    def step(self, metrics: Mapping[str, Metric] | None = None) -> None:
        """Collective. End a step: send metrics, save a due checkpoint, apply commands, and block while paused.

        `metrics` are numbers or tensors of one element; rank 0's are told. Raises `Invalid` for anything else,
        `Diverged` on every rank if the ranks could not be brought back to agreement.
        """
        if not self._in_a_step:
            raise RuntimeError("session.step() is called once in each round of `for step in session.steps()`")
        self._in_a_step = False
        metrics = metrics or {}
        _check(metrics)
        self._loop.step += 1
        if self._steering is None:
            return
        if self._steering.health is not None:
            self._steering.health.signs.end_of_loop(metrics)
        self._step_schedule(self._steering)
        self._send(metrics, self._steering)
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
            steering.beat("ending")
            steering.saver.finish()
            steering.close(self.global_step)
            if steering.leaving:
                release(self._engine)
                raise LeaveForBranch
        elif isinstance(error, SystemExit):
            steering.break_off(self.global_step, self.total_steps)
        else:
            steering.fail(self.global_step, error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _begin_step(self) -> None:
        self._in_a_step = True
        if self._steering is not None:
            self._steering.begin_step()
            if self._steering.log is not None:
                self._steering.log.before_step()

    def _step_schedule(self, steering: SteeredRun) -> None:
        """Step the schedule in a loop without a scheduler, if `set_schedule` has planned one.

        Without a plan the rates are left alone: the script may set them. A skipped step does not move the schedule.
        """
        training = steering.training
        if (
            self._scheduler is None
            and "course" in training.schedule.modes()
            and not skipped_steps.was_skipped(training)
        ):
            training.schedule.step()

    def _send(self, metrics: Mapping[str, Metric], steering: SteeredRun) -> None:
        if steering.opened().link is None or steering.log is None:
            return
        is_due = self.global_step % self._tell_every_steps == 0
        # Reading a number off a GPU waits for it: only what is sent is read.
        values = {name: _number(value) for name, value in metrics.items() if is_due or name.startswith(EVALUATED)}
        steering.log.log(self.global_step, values)
        evaluated = {name: value for name, value in values.items() if name.startswith(EVALUATED)}
        if evaluated:
            history = self._loop.log_history
            self._loop.log_history = [dict(history[-1] if history else {}) | evaluated]


def _check(metrics: Mapping[str, Metric]) -> None:
    """Raise `Invalid` for unfit metrics, on every rank alike and without waiting for a GPU."""
    for name, value in metrics.items():
        if not 0 < len(name) <= MAX_METRIC_CHARS:
            raise Invalid(f"the measurement {name!r}: a name has 1 to {MAX_METRIC_CHARS} characters")
        is_number = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float)
        if not is_number:
            raise Invalid(f"the measurement {name!r} is {value!r}, but has to be a number or a tensor of one element")


def _number(value: Metric) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
