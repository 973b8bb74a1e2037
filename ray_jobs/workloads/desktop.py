"""Diffusion model of a simulated desktop, in plain PyTorch, on data that may change while it trains.

    sources:
      base: {format: arrays, path: "base/*.npz", fields: {...}}      # `desktop_screen.FIELDS`
      fresh: {format: arrays, live: true, weight: 0.0, fields: {...}}

The model predicts the next frame from the last ones and the input event. Behaviours that its data lacks come in by a
live source. The knob `noise/shift` says at which noise levels it learns; the learning rate is steered like any other.
Samples and noise of a step depend on the seed only, not on the number of ranks.
"""

import argparse
import io
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from control_plane.core.model.errors import Invalid
from ray_jobs.data.mixture.dataset import MixtureDataset, mixture
from ray_jobs.loop.session import TrainingSession
from ray_jobs.workloads.desktop_model import Denoiser, changed_error, diffusion_loss, predict, shifted
from ray_jobs.workloads.desktop_screen import MISSING, OLD, records_of, sequence
from ray_jobs.workloads.policy_gradient import average_gradients

HELD_OUT = 1_000_000
"""Seeds of the sequences that the model is evaluated on begin here: data that is sent has smaller ones."""

OLD_SEQUENCES, MISSING_SEQUENCES = 8, 24
"""Held-out sequences of each behaviour. Of the missing ones only what changes more than the cursor is looked at."""

LEAST_SHIFT, MOST_SHIFT = 0.1, 10.0

CLIPPING_NORM = 1.0
WARM_UP_STEPS, LEAST_OF_RATE = 50, 0.05
"""The learning rate rises to its peak in these steps, or a tenth of all, and falls as half a cosine to this part."""

log = logging.getLogger(__name__)

Transitions = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Last frames, events, and next frames, as `Denoiser.forward` takes them."""


def part_of_rate(made: int, total_steps: int) -> float:
    """Return the part of the peak learning rate, after `made` of `total_steps` steps."""
    falls = (1 + math.cos(math.pi * made / total_steps)) / 2
    rising = min(WARM_UP_STEPS, max(1, total_steps // 10))
    return min(1.0, (made + 1) / rising) * (LEAST_OF_RATE + (1 - LEAST_OF_RATE) * falls)


class NoiseShift:
    """Shift of the noise levels that the model learns at; see `desktop_model.shifted`."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def set(self, value: float) -> None:
        """Set it; the next step draws by it."""
        self.value = value


def tensors_of(record: dict[str, Any]) -> Transitions:
    """Return one transition, or several, with frames in -1..1."""
    frames, event, after = (torch.from_numpy(np.asarray(record[name])) for name in ("frames", "event", "next"))
    return frames.float() / 127.5 - 1, event.long(), after.float() / 127.5 - 1


def held_out() -> dict[str, Transitions]:
    """Return the transitions that errors are measured on, by `old` and `missing`: the same for every run."""
    seeds = range(HELD_OUT, HELD_OUT + OLD_SEQUENCES), range(HELD_OUT, HELD_OUT + MISSING_SEQUENCES)
    old = records_of([sequence(behaviour, seed) for behaviour in OLD for seed in seeds[0]])
    missing = records_of([sequence(behaviour, seed) for behaviour in MISSING for seed in seeds[1]], telling_only=True)
    return {"old": tensors_of(old), "missing": tensors_of(missing)}


class Training:
    """One training, of a model that is built by the seed.

    Args:
        total_steps: steps to make.
        samples: of a step, over all ranks.
        evaluate_every: steps between evaluations; 0: none. Rank 0 evaluates.
        shown: folder for `frames-STEP.npz`, predictions of the held-out missing behaviours; None: none are written.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        seed: int = 0,
        samples: int = 32,
        rate: float = 2e-3,
        evaluate_every: int = 0,
        shown: Path | None = None,
        data: MixtureDataset | None = None,
    ) -> None:
        """Build model and session. Raises `Invalid` if the ranks do not divide the samples of a step."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        if samples % ranks:
            raise Invalid(f"{samples} samples of a step cannot be divided evenly among {ranks} ranks")
        self._own = slice(self._rank * samples // ranks, (self._rank + 1) * samples // ranks)
        self._seed, self._samples, self._shown, self._evaluate_every = seed, samples, shown, evaluate_every
        self._held_out = held_out() if evaluate_every and self._rank == 0 else {}
        torch.manual_seed(seed)
        self.model = Denoiser()
        self.optimizer = torch.optim.Adam([{"params": self.model.parameters(), "lr": rate, "name": "denoiser"}])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda made: part_of_rate(made, total_steps))
        self.shift = NoiseShift()
        self.data = data if data is not None else mixture(tensors_of)
        self.session = TrainingSession(
            self.model,
            self.optimizer,
            scheduler=self.schedule,
            total_steps=total_steps,
            data=self.data,
            global_batch_samples=samples,
        )
        self.session.register_knob(
            "noise/shift",
            get=lambda: self.shift.value,
            set=self.shift.set,
            least=LEAST_SHIFT,
            most=MOST_SHIFT,
            description="shift of the noise levels that are trained on: above 1 towards noise",
        )

    def train(self) -> None:
        """Collective. Train to the end, or until the run is stopped."""
        with self.session:
            for made in self.session.steps():
                began_s = time.monotonic()
                metrics: dict[str, Any] = {"loss": self._step(made + 1)}
                metrics["own_step_s"] = time.monotonic() - began_s
                if self._held_out and (made + 1) % self._evaluate_every == 0:
                    metrics |= self.evaluate(made + 1)
                self.session.step(metrics)

    def _step(self, step: int) -> torch.Tensor:
        """Collective. Make a step of the optimizer, and return this rank's loss."""
        references = self.session.references()[self._own]
        frames, event, after = (torch.stack(parts) for parts in zip(*(self.data[at] for at in references), strict=True))
        # Drawn for all ranks, so that their number does not matter.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        level = shifted(torch.rand(self._samples, generator=generator), self.shift.value)[self._own]
        noise = torch.randn((self._samples, *after.shape[1:]), generator=generator)[self._own]
        loss = diffusion_loss(self.model, (frames, event, after), level, noise)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIPPING_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def evaluate(self, step: int) -> dict[str, float]:
        """Return `eval_old` and `eval_missing`: errors of sampled frames, see `desktop_model.changed_error`."""
        errors = {}
        for name, (frames, event, after) in self._held_out.items():
            predicted = predict(self.model, frames, event)
            errors[f"eval_{name}"] = changed_error(predicted, frames, after)
            if name == "missing" and self._shown is not None:
                _write(self._shown / f"frames-{step}.npz", frames[:, -1], event, after, predicted)
        return errors


def _write(path: Path, *parts: torch.Tensor) -> None:
    """Write last frames, events, next frames and predicted ones; frames as uint8."""
    names = ("last", "event", "next", "predicted")
    arrays = {name: part if name == "event" else _pixels(part) for name, part in zip(names, parts, strict=True)}
    content = io.BytesIO()
    np.savez(content, **{name: part.numpy() for name, part in arrays.items()})  # type: ignore[arg-type]
    path.write_bytes(content.getvalue())


def _pixels(frames: torch.Tensor) -> torch.Tensor:
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def main() -> None:
    """Train on the ranks of torch.distributed, or in a single process, on the sources of the run's config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=32, help="samples of a step, over all ranks")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps between evaluations; 0: none")
    parser.add_argument("--shown", type=Path, help="folder for predicted frames")
    given = parser.parse_args()
    training = Training(
        given.steps,
        seed=given.seed,
        samples=given.samples,
        rate=given.rate,
        evaluate_every=given.evaluate_every,
        shown=given.shown,
    )
    training.train()
    log.info("finished at step %d", training.session.global_step)


if __name__ == "__main__":
    main()
