"""Metrics of a training to the control server, with the learning rates that the step used."""

import time
from collections.abc import Mapping

from control_plane.api.messages import Point
from control_plane.core.model.records import SKIPPED_STEPS
from ray_jobs.process.plain_values import number
from ray_jobs.rank.link import Link
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.steering import skipped_steps

NOT_FORWARDED = {"learning_rate", "epoch", "step", "total_flos"}
"""Logged by Transformers and not forwarded: its learning rate is sometimes the next step's, so we read our own."""


class StepLog:
    """Sends one rank's metrics; without a link (all ranks but 0) they are dropped."""

    def __init__(self, training: LiveTraining, link: Link | None) -> None:
        self._training, self._link = training, link
        self._rates: list[float] = []
        self._last = (training.loop.step, time.monotonic())
        self._names: set[str] = set()

    def names(self) -> frozenset[str]:
        """Return the names of the metrics that were sent."""
        return frozenset(self._names)

    def before_step(self) -> None:
        """Note the learning rates that the coming step will use."""
        self._rates = [float(group["lr"]) for group in self._training.groups()]

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """Send the numbers among `metrics`; with a `loss` also learning rates, speed and skipped steps."""
        if self._link is None or not metrics:
            return
        numbers = {name: number(value) for name, value in metrics.items() if name not in NOT_FORWARDED}
        values = {name: value for name, value in numbers.items() if value is not None}
        if "loss" in values:
            values |= self._rate_values() | self._speed(step)
            if count := skipped_steps.skipped_steps(self._training):
                values[SKIPPED_STEPS] = count
        self._names |= values.keys()
        now_s = time.time()
        self._link.measure([Point(step=step, name=name, value=value, time_s=now_s) for name, value in values.items()])

    def _rate_values(self) -> dict[str, float]:
        """Return group 0's learning rate as `lr`, another group's as `lr/1`, ... while it differs from group 0's."""
        first, *others = self._rates
        return {"lr": first} | {f"lr/{index}": rate for index, rate in enumerate(others, 1) if rate != first}

    def _speed(self, step: int) -> dict[str, float]:
        (last_step, last_s), now_s = self._last, time.monotonic()
        self._last = (step, now_s)
        return {"steps_per_s": (step - last_step) / (now_s - last_s)} if step > last_step and now_s > last_s else {}
