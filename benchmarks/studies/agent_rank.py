"""Rank of the agent's study: real steered trainings of a small model, one after the other, on one CPU.

Each is a script's own loop with `TrainingSession`, with a control server in rank 0's process and a journal on disk. A
result is appended to the file of results as soon as its run has ended.
"""

import asyncio
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.studies import corpus
from benchmarks.studies.pilot import Pilot, Reader, violations
from benchmarks.studies.plan import BATCH, EVALUATE_EVERY_STEPS, WARM_UP_STEPS, Trial
from benchmarks.studies.results import append
from benchmarks.studies.study_rules import rule_of
from control_plane.core.model.records import RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal import writer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steering.rollback import forget_training

WEIGHT_DECAY, CLIPPING = 0.01, 1.0
CURVE_EVERY_STEPS = 5
SHOWN_EVALUATION = 64
"""Samples of an evaluation while a run trains; the one at its end takes all that are held out."""


def run_trials(rank: int, spec: dict[str, Any]) -> int:
    """Run the trials, and append a result of each; return their number."""
    for index, given in enumerate(spec["trials"]):
        trial = Trial(**{name: value for name, value in given.items() if name != "key"})
        row = _run(trial, Path(spec["folder"]), f"study-{index}")
        append(Path(spec["results"]), {"key": given["key"]} | row)
    return len(spec["trials"])


def _run(trial: Trial, folder: Path, name: str) -> dict[str, Any]:
    began_s, cpu_s = time.monotonic(), time.process_time()
    files = RunFiles(folder / "runs" / name)
    files.root.mkdir(parents=True)
    created = RunCreated(run=files.run, name=files.run, author="study", config_sha256="0" * 64)
    server = ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics))
    loops: list[asyncio.AbstractEventLoop] = []

    def connect() -> Any:
        loops.append(asyncio.get_event_loop())  # of the link's thread, in which the control server lives
        return server

    context.enter(context.RunContext(files=files, connect=connect, key_file=folder / "key"))
    torch.manual_seed(trial.seed)
    script = Script(trial)
    try:
        script.train(lambda: Reader(server, loops[0]), files.run)
    finally:
        context.enter(None)
        forget_training()
    counts = script.pilot.counts if script.pilot is not None else None
    return {
        "trial": trial.spec(),
        "eval_loss": script.evaluate(corpus.held_out()),
        "losses": [_short(loss) for _, loss in script.losses[::CURVE_EVERY_STEPS]],
        "rates": [_short(rate) for rate in script.rates[::CURVE_EVERY_STEPS]],
        "looks": counts.looks if counts else 0,
        "sent": counts.sent if counts else 0,
        "refused": counts.refused if counts else 0,
        "rule_s": counts.rule_s if counts else 0.0,
        "violations": violations(list(writer.read(files.journal))),
        "episodes": script.pilot.episodes if trial.explores and script.pilot is not None else [],
        "seconds": time.monotonic() - began_s,
        "cpu_s": time.process_time() - cpu_s,
        "pid": os.getpid(),
    }


class Script:
    """Training script of a trial: it knows nothing of rules, but for the call of its pilot."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._model = corpus.Model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=trial.rate, weight_decay=WEIGHT_DECAY)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._share)
        self._data, self._held_out = corpus.batches(trial.seed, BATCH), corpus.held_out()
        self._clipping = CLIPPING
        self.losses: list[tuple[int, float]] = []
        self.evals: list[tuple[int, float]] = []
        self.grad_norms: list[tuple[int, float]] = []
        self.rates: list[float] = []
        self.pilot: Pilot | None = None

    def _share(self, step: int) -> float:
        """Return the schedule: the same warm-up in all arms, and a cosine or nothing after it."""
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        if self._trial.of.schedule == "constant":
            return warm
        return warm * (1 + math.cos(math.pi * min(1.0, step / self._trial.steps))) / 2

    def _set_clipping(self, norm: float) -> None:
        self._clipping = float(norm)

    def train(self, reader: Any, run: str) -> None:
        """Train to the end. `reader` makes the reader of the run's journal, once the training is open."""
        trial, total = self._trial, self._trial.steps
        session = TrainingSession(self._model, self._optimizer, total_steps=total, scheduler=self._scheduler)
        session.register_knob("gradient_clipping", lambda: self._clipping, self._set_clipping, least=0.0)
        with session:
            rule = rule_of(trial)
            if rule is not None:
                assert session._steering is not None
                link = session._steering.opened().link
                assert link is not None
                self.pilot = Pilot(rule, trial.of.every, reader(), link, run, total)
                self._look(0)
            for made in session.steps():
                metrics = self._step(made + 1)
                session.step(metrics)
                self._look(made + 1)

    def _look(self, step: int) -> None:
        if self.pilot is not None:
            rates = tuple(float(group["lr"]) for group in self._optimizer.param_groups)
            self.pilot.after_step(step, rates, self.losses, self.evals, self.grad_norms)

    def _step(self, step: int) -> dict[str, float]:
        self.rates.append(float(self._optimizer.param_groups[0]["lr"]))
        loss = corpus.loss_of(self._model, next(self._data))
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clipping or math.inf)
        if math.isfinite(norm.item()):
            self._optimizer.step()
        self._scheduler.step()
        self.losses.append((step, loss.item()))
        self.grad_norms.append((step, norm.item()))
        metrics = {"loss": loss.item(), "grad_norm": norm.item()}
        if self._trial.of.evaluates and step % EVALUATE_EVERY_STEPS == 0:
            self.evals.append((step, self.evaluate(corpus.first_of(self._held_out, SHOWN_EVALUATION))))
            metrics["eval_loss"] = self.evals[-1][1]
        return metrics

    def evaluate(self, batch: corpus.Batch) -> float:
        """Return the mean loss on held-out text, in nats a character."""
        with torch.no_grad():
            return corpus.loss_of(self._model, batch).item()


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
