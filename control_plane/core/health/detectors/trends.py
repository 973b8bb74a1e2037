"""Detectors of slow trends of the loss: divergence, plateau, and forgetting of older data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import sqrt
from typing import Any, ClassVar

from control_plane.core.health.detectors.spikes import FIRST_SAMPLES
from control_plane.core.health.detectors.spikes import LEAST_OF_FIRST as LEAST_SUDDEN_RISE
from control_plane.core.health.findings import Condition, Conditions, Detector, Ended, Finding, Look
from control_plane.core.health.settings import DivergenceSettings, ForgettingSettings, PlateauSettings
from control_plane.core.health.windows import BlockMeans, Window, mean, noise_between
from control_plane.core.model.health import MAX_EVIDENCE_VALUES, AlertKind, Evidence

BLOCKS = 8
"""Blocks of a window: means of so many steps are nearly normal, whatever the noise of a single step."""

LEAST_OF_FIRST = 0.02
"""Share of the first loss that a rise must have."""

SETTLED_WINDOWS = 8
"""Windows without a further rise after which the new level counts as the run's level, and the alert ends."""

BY_HEART = 0.1
"""Share of the training's first loss below which a held-out loss is that of data learned by heart."""

MOST_BLOCKS = 64
WINDOWS = 2
LR_BEGAN, LR_LEFT, LR_SAME = 0.75, 0.3, 0.8
"""Shares of the learning rate: in a warm-up it is less than the first, in a decay less than the second of its largest
value, and unchanged if above the third."""


def loss_of(look: Look) -> tuple[str, float] | None:
    """Return name and value of the loss that is there at every step."""
    for name in ("loss_local", "loss"):
        if (value := look.finite(name)) is not None:
            return name, value
    return None


class SlowDivergence(Detector):
    """Smoothed loss that rises above the best window so far.

    A window is eight blocks. Its mean is compared with the smallest one so far; the rise must exceed a share of that
    level, and a number of standard errors, with the noise taken from differences of neighbouring blocks.
    """

    name: ClassVar[str] = "slow_divergence"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("slow_divergence",)

    def __init__(self, settings: DivergenceSettings) -> None:
        self.settings = settings
        self.block = max(1, settings.window_steps // BLOCKS)
        self.pending: list[float] = []
        self.blocks = Window(4 * BLOCKS)
        self.first: float | None = None
        self.best: float | None = None
        self.best_step = 0
        self.top: float | None = None
        self.since_top = 0
        self.condition = Condition(confirm=2)

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Add the loss to its block, and judge when a block is complete."""
        loss = loss_of(look)
        if loss is None:
            return
        self.pending.append(loss[1])
        if len(self.pending) < self.block:
            return
        block, self.pending = mean(self.pending), []
        self.first = block if self.first is None else self.first
        self.blocks.push(block)
        if len(self.blocks) < BLOCKS:
            return
        now, noise = mean(self.blocks.values[-BLOCKS:]), noise_between(self.blocks.values) / sqrt(BLOCKS)
        if self.best is None or now < self.best:
            self.best, self.best_step, self.top = now, look.step, None
        threshold = self._threshold(noise)
        yield from self._judge(look, loss[0], now, threshold)

    def _threshold(self, noise: float) -> float:
        best, first = self.best or 0.0, abs(self.first or 0.0)
        # Two window means are compared: the noise of their difference.
        surely = self.settings.sigmas * noise * sqrt(2.0)
        return best + max(self.settings.rise * abs(best), LEAST_OF_FIRST * first, surely)

    def _judge(self, look: Look, sign: str, now: float, threshold: float) -> Iterator[Finding | Ended]:
        if self.top is None or now > self.top:
            self.top, self.since_top = now, 0
        else:
            self.since_top += 1
        best_step, best = self.best_step, self.best or 0.0
        if self.condition.is_open and self.since_top >= SETTLED_WINDOWS * BLOCKS:
            # The loss has stayed where it is: this is the level from which the next rise counts.
            self.best, self.best_step, self.top = now, look.step, None
            threshold = now + 1.0 + abs(now)
        match self.condition.note(look.step, now > threshold):
            case "began":
                self.condition.onset = best_step + 1
                evidence = Evidence(
                    sign=sign,
                    value=now,
                    threshold=threshold,
                    window_steps=self.block * BLOCKS,
                    mean=best,
                    recent=tuple(self.blocks.values[-MAX_EVIDENCE_VALUES:]),
                )
                yield Finding(
                    "slow_divergence",
                    "warning",
                    best_step + 1,
                    f"The smoothed {sign} has risen from {best:.4g}, its best until step {best_step}, to {now:.4g} at "
                    f"step {look.step}; more than {threshold:.4g} is no noise.",
                    (evidence,),
                    suggestion="set lr*=0.5",
                )
            case "ended":
                yield Ended("slow_divergence")

    def doubts(self) -> Iterable[str]:
        """Return whether the first window is filling, or the last one is in doubt."""
        if (self.pending or len(self.blocks)) and len(self.blocks) < BLOCKS:
            seen = len(self.blocks) * self.block + len(self.pending)
            yield f"loss trend: {seen} of {self.block * BLOCKS} steps seen"
        if self.condition.is_doubtful:
            yield "loss trend: a rise that may be a divergence"

    def state(self) -> dict[str, Any]:
        """Return blocks, levels and condition as JSON."""
        levels = [self.first, self.best, self.best_step, self.top, self.since_top]
        return {
            "block": self.block,
            "pending": list(self.pending),
            "blocks": self.blocks.state(),
            "levels": levels,
            "condition": self.condition.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; blocks of another length are forgotten."""
        self.condition.restore(state["condition"])
        if state["block"] != self.block:
            return
        self.pending = [float(value) for value in state["pending"]]
        self.blocks.restore(state["blocks"])
        self.first, self.best, best_step, self.top, since_top = state["levels"]
        self.best_step, self.since_top = int(best_step), int(since_top)


class Plateau(Detector):
    """Loss that no longer falls, while the learning rate has not been taken down.

    A line is fitted to the block means of the last two windows. They are flat if its fall over both windows, and two
    standard errors more, is less than a share of the level: noisy data ask for longer windows, they give no alert.
    """

    name: ClassVar[str] = "plateau"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("plateau",)

    def __init__(self, settings: PlateauSettings) -> None:
        self.settings = settings
        self.series = self._empty()
        self.first: float | None = None
        self.most_lr = 0.0
        self.condition = Condition(release=2)

    def _empty(self) -> BlockMeans:
        return BlockMeans(max(1, self.settings.window_steps // 10), MOST_BLOCKS, width=2)

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Add loss and learning rate to their blocks, and judge when a block is complete."""
        loss = loss_of(look)
        if loss is None:
            return
        lr = look.finite("lr")
        if not self.series.push((loss[1], 1.0 if lr is None else lr)):
            return
        blocks = self.series.blocks
        if self.first is None:
            self.first = blocks[0][0]
        self.most_lr = max(self.most_lr, blocks[-1][1])
        steps = len(blocks) * self.series.block
        window = max(self.settings.window_steps, self.settings.window_share * steps)
        count = round(WINDOWS * window / self.series.block)
        if count > len(blocks) - 1:
            return
        rows = blocks[-count:]
        yield from self._judge(look, loss[0], [row[0] for row in rows], [row[1] for row in rows])

    def _judge(
        self, look: Look, sign: str, losses: Sequence[float], rates: Sequence[float]
    ) -> Iterator[Finding | Ended]:
        slope, error = line_slope(losses)
        level, length = mean(losses), len(losses)
        fall, most_fall = -slope * length, (-slope + 2.0 * error) * length
        threshold = self.settings.least_improvement * abs(level)
        is_stuck = abs(level) > self.settings.converged_share * abs(self.first or 0.0)
        is_flat = most_fall < threshold and fall > -threshold and is_stuck and self._lr_is_up(rates)
        steps = length * self.series.block
        match self.condition.note(look.step, is_flat):
            case "began":
                onset = max(1, look.step - steps + 1)
                evidence = Evidence(
                    sign=sign,
                    value=fall,
                    threshold=threshold,
                    window_steps=steps,
                    mean=level,
                    deviation=error * length,
                    recent=tuple(losses[-MAX_EVIDENCE_VALUES:]),
                )
                yield Finding(
                    "plateau",
                    "info",
                    onset,
                    f"The smoothed {sign} has stayed at {level:.4g} for {steps} steps: it fell by {fall:.2g}, and less "
                    f"than {threshold:.2g} is called flat. The learning rate is {rates[-1]:.3g}.",
                    (evidence,),
                    suggestion="set lr*=0.5",
                )
            case "ended":
                yield Ended("plateau")

    def _lr_is_up(self, rates: Sequence[float]) -> bool:
        """Return whether the rate has neither been warmed up, or restarted, nor taken down in the two windows."""
        before, after = rates[0], rates[-1]
        is_constant = LR_SAME * before <= after <= before / LR_SAME
        return min(rates) >= LR_BEGAN * after and (is_constant or after >= LR_LEFT * self.most_lr)

    def state(self) -> dict[str, Any]:
        """Return blocks and condition as JSON."""
        return {
            "window": self.settings.window_steps,
            "series": self.series.state(),
            "first": self.first,
            "most_lr": self.most_lr,
            "condition": self.condition.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; blocks for another window are forgotten."""
        self.condition.restore(state["condition"])
        self.first, self.most_lr = state["first"], float(state["most_lr"])
        if state["window"] == self.settings.window_steps:
            self.series.restore(state["series"])


def line_slope(values: Sequence[float]) -> tuple[float, float]:
    """Return slope and its standard error of a least-squares line through values at 0, 1, 2, ...; at least three."""
    count = len(values)
    middle, level = (count - 1) / 2, mean(values)
    spread = sum((at - middle) ** 2 for at in range(count))
    slope = sum((at - middle) * (value - level) for at, value in enumerate(values)) / spread
    rest = sum((value - level - slope * (at - middle)) ** 2 for at, value in enumerate(values))
    return slope, sqrt(rest / (count - 2) / spread)


class Forgetting(Detector):
    """Held-out loss on older data that rises above its best value, per data set.

    Where the model has learned the older data by heart, its loss there may multiply and be small all the same: then a
    rise counts from a share of the training's first loss.
    """

    name: ClassVar[str] = "forgetting"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("forgetting",)

    WINDOW = 16

    def __init__(self, settings: ForgettingSettings) -> None:
        self.settings = settings
        self.windows: dict[str, Window] = {}
        self.best: dict[str, tuple[float, int]] = {}
        self.first: list[float] = []
        self.conditions = Conditions(confirm=2)

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Look at the held-out losses that were measured at this step."""
        if len(self.first) < FIRST_SAMPLES and (loss := loss_of(look)) is not None:
            self.first.append(loss[1])
        for own, value in look.family("heldout"):
            if own.endswith("_loss"):
                yield from self._judge(look, own.removesuffix("_loss"), value)

    def _judge(self, look: Look, name: str, value: float) -> Iterator[Finding | Ended]:
        window = self.windows.setdefault(name, Window(self.WINDOW))
        condition = self.conditions[name]
        best, best_step = self.best.setdefault(name, (value, look.step))
        noise = noise_between(window.values)
        first = abs(mean(self.first)) if self.first else 0.0
        least = LEAST_SUDDEN_RISE * first if abs(best) < BY_HEART * first else 0.0
        threshold = best + max(self.settings.rise * abs(best), self.settings.sigmas * noise, least)
        window.push(value)
        if value < best:
            self.best[name] = (value, look.step)
        is_bad = len(window) > self.settings.least_evaluations and value > threshold
        match condition.note(look.step, is_bad):
            case "began":
                evidence = Evidence(
                    sign=f"heldout/{name}_loss",
                    value=value,
                    threshold=threshold,
                    window_steps=look.step - best_step,
                    mean=best,
                    deviation=noise,
                    recent=tuple(window.values),
                )
                yield Finding(
                    "forgetting",
                    "warning",
                    best_step + 1,
                    f"The loss on {name}, which the training no longer sees, has risen from {best:.4g} at step "
                    f"{best_step} to {value:.4g} at step {look.step}: the model forgets it.",
                    (evidence,),
                    subject=name,
                    suggestion="set lr*=0.5",
                )
            case "ended":
                yield Ended("forgetting", name)

    def state(self) -> dict[str, Any]:
        """Return windows, best values and conditions as JSON."""
        windows = {name: [window.state(), list(self.best[name])] for name, window in self.windows.items()}
        return {"windows": windows, "first": list(self.first), "conditions": self.conditions.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.conditions.restore(state["conditions"])
        self.first = [float(value) for value in state["first"]]
        for name, (values, (best, step)) in state["windows"].items():
            self.windows[name] = Window(self.WINDOW)
            self.windows[name].restore(values)
            self.best[name] = (float(best), int(step))
