"""A small real training in half precision, whose signs a real health monitor judges: for screenshots of the console.

The loss scale grows until a gradient overflows, as it does in every fp16 training. At `TOO_FAST_AT` the learning rate
is far too high for a few steps, which kills units of the ReLU layers. No sign and no alert is made up.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from control_plane.api.messages import Point, Report
from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.health import HealthChange
from tests.ui.fake_trainer import FakeTrainer

WIDTH, BLOCKS, BATCH = 96, 5, 64
RATE, TOO_FAST = 0.05, 80.0
TOO_FAST_AT = range(360, 366)
EVERY = 5
DORMANT_BELOW = 0.025


class Block(torch.nn.Module):
    """A layer with ReLU; keeps what the last batch has done to its units."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        torch.nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        self.units = torch.zeros(WIDTH)
        self.std = 0.0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        out = torch.relu(self.linear(hidden))
        self.units, self.std = out.detach().float().abs().mean(0), float(out.detach().float().std())
        return out

    def dormant(self) -> float:
        """Share of units whose mean activation is at most 0.025 of the layer's mean."""
        return float((self.units <= DORMANT_BELOW * self.units.mean()).float().mean())


def training(seed: int = 5) -> Iterator[dict[str, float]]:
    """Yield the signs of one step after the other."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    teacher = torch.nn.Sequential(torch.nn.Linear(WIDTH, 10))
    blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))
    model = torch.nn.Sequential(*blocks, torch.nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=60)
    skipped, step = 0, 0
    while True:
        step += 1
        rate = RATE * (TOO_FAST if step in TOO_FAST_AT else 1.0)
        optimizer.param_groups[0]["lr"] = rate
        samples = torch.randn(BATCH, WIDTH)
        labels = teacher(samples).argmax(1)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = torch.nn.functional.cross_entropy(model(samples).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.unscale_(optimizer)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf))
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
        signs = {
            "loss": float(loss.detach()),
            "loss_local": float(loss.detach()),
            "lr": rate,
            "loss_scale": scale,
            "loss_scale_min": 1.0,
            "skipped_steps": float(skipped),
            "grad_norm": norm if math.isfinite(norm) else math.inf,
        }
        if step % EVERY == 0:
            for at, block in enumerate(blocks):
                signs |= {f"dormant/block.{at}": block.dormant(), f"hidden_std/block.{at}": block.std}
            parameters = list(model.parameters())
            for at in range(BLOCKS):
                old, new = before[2 * at], parameters[2 * at].detach()
                moved, weight = float((new - old).norm()), float(new.norm())
                signs |= {f"weight_norm/block.{at}": weight, f"update_norm/block.{at}": moved}
                signs[f"update_ratio/block.{at}"] = moved / weight if weight else 0.0
        yield signs


class MeasuredTrainer(FakeTrainer):
    """A rank 0 that reports the signs and alerts of a real training."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._signs, self.monitor, self.change = training(), HealthMonitor(HealthSettings()), HealthChange()

    def _measure(self) -> list[Point]:
        signs = next(self._signs)
        self.change = self.monitor.observe(self.done, signs)
        self.health = self.monitor.trust()[0]
        at_s = self.clock.unix_s()
        values = signs | {"steps_per_s": 8.2}
        return [Point(step=self.done, name=name, value=value, time_s=at_s) for name, value in values.items()]

    async def step(self) -> None:
        """Make a step, then report what the monitor says of it."""
        await super().step()
        if self.change.raised or self.change.cleared:
            await self.server.report(Report(generation=self.generation, health=(self.change,)))
            self.change = HealthChange()
