"""Training script of the study: a pre-trained GPT-2 on Wikitext-2, with a linear decay, in a loop of its own.

It knows nothing of interventions. The study trains it in its own processes; the run that was watched was submitted:
see `watched`.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.studies.human import plan
from benchmarks.studies.human.texts import evenly, texts
from benchmarks.studies.human.weights import evaluated, load_into, loss_of, new_model
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.loop.session import TrainingSession


class Script:
    """Fine-tuning of one run. `rate`: learning rate at its beginning; `state`: pre-trained weights."""

    def __init__(self, rate: float, seed: int, steps: int, state: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(seed)  # of dropout
        self._steps, data = steps, texts()
        self._model = new_model()
        load_into(self._model, state)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=rate, weight_decay=plan.WEIGHT_DECAY)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: max(0.0, 1 - step / steps))
        self._train, self._order = data.train, SampleOrder(len(data.train), seed, plan.BATCH)
        self._shown = evenly(data.evaluation, plan.EVALUATED_BLOCKS)
        self._final = evenly(data.evaluation, plan.FINAL_BLOCKS)
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.evals: list[tuple[int, float]] = []
        self.step_ends_s: list[float] = []
        """Time of each step's end, boundary and all, since the first step began."""

    def train(self, opened: Callable[[TrainingSession], None] = lambda session: None) -> None:
        """Train to the end. `opened` is called once the session is open, before the first step."""
        session = TrainingSession(
            self._model, self._optimizer, total_steps=self._steps, scheduler=self._scheduler, sample_order=self._order
        )
        self._model.train()
        with session:
            opened(session)
            began_s = time.monotonic()
            self.evals.append((0, evaluated(self._model, self._shown)))
            for made in session.steps():
                session.step(self._step(made + 1, session.samples()))
                self.step_ends_s.append(time.monotonic() - began_s)

    def _step(self, step: int, samples: Any) -> dict[str, float]:
        self.rates.append(float(self._optimizer.param_groups[0]["lr"]))
        loss = loss_of(self._model, self._train[torch.from_numpy(samples)])
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), plan.CLIPPING)
        self._optimizer.step()
        self._scheduler.step()
        self.losses.append(loss.item())
        metrics = {"loss": loss.item(), "grad_norm": norm.item()}
        if step % plan.EVALUATE_EVERY_STEPS == 0:
            self.evals.append((step, evaluated(self._model, self._shown)))
            metrics["eval_loss"] = self.evals[-1][1]
        return metrics

    def final_loss(self) -> float:
        """Return the loss on many blocks of the evaluation text, in nats a token."""
        return evaluated(self._model, self._final)
