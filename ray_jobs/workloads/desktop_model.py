"""Small diffusion model that predicts the next frame of a desktop from the last frames and the input event.

Rectified flow (Liu et al. 2023, arXiv:2209.03003): a noisy frame is `(1 - level) * frame + level * noise`; the network
predicts the frame itself, as a change of the last one, and a few Euler steps go from noise to it. Levels are drawn
uniformly, then shifted (Esser et al. 2024, arXiv:2403.03206, eq. 23): above 1 the model trains more on noisy frames.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import interpolate

from ray_jobs.workloads.desktop_screen import CHANNELS, HEIGHT, LAST_FRAMES, WIDTH

EVENT_MAPS = 3
GROUPS = 4
LEVEL_FEATURES = 32
SAMPLING_STEPS = 4
CHANGED_WEIGHT = 9.0
"""Additional weight, in the loss, of pixels that change: they are few, and without it they are learned last."""


class Block(nn.Module):
    """Residual block: two convolutions, of which the second's input is scaled and shifted by the noise level."""

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, entering), nn.SiLU(), nn.Conv2d(entering, width, 3, padding=1))
        self.by_level = nn.Linear(LEVEL_FEATURES, 2 * width)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.past = nn.Conv2d(entering, width, 1) if entering != width else nn.Identity()

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Return the features, shape `(n, width, h, w)`; `level`: `(n, LEVEL_FEATURES)`."""
        scale, shift = self.by_level(level)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.first(x)) * (1 + scale) + shift
        out: torch.Tensor = self.past(x) + self.second(nn.functional.silu(hidden))
        return out


class Denoiser(nn.Module):
    """U-Net of three resolutions; its smallest one knows the mean of the whole screen.

    Args:
        width: features at full resolution; twice as many at a half and a quarter of it.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(1, LEVEL_FEATURES), nn.SiLU(), nn.Linear(LEVEL_FEATURES, LEVEL_FEATURES))
        self.enter = nn.Conv2d(CHANNELS * (1 + LAST_FRAMES) + EVENT_MAPS, width, 3, padding=1)
        self.full = Block(width, width)
        self.to_half = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = Block(2 * width, 2 * width)
        self.to_quarter = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.quarter = Block(2 * width, 2 * width)
        # What happens at one place, such as a click, may change the screen at any other.
        cells = HEIGHT // 4 * (WIDTH // 4)
        self.mixed = nn.Sequential(nn.Conv2d(2 * width, 4, 1), nn.Flatten(), nn.Linear(4 * cells, 4 * cells), nn.SiLU())
        self.unmixed = nn.Conv2d(4, 2 * width, 1)
        self.middle_up = Block(4 * width, 2 * width)
        self.full_up = Block(3 * width, width)
        self.leave = nn.Conv2d(width, CHANNELS, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, frames: torch.Tensor, event: torch.Tensor
    ) -> torch.Tensor:
        """Return the predicted next frame.

        Args:
            noisy: the next frame with noise, `(n, CHANNELS, HEIGHT, WIDTH)`, in -1..1 without it.
            level: of the noise, `(n,)`, in 0..1.
            frames: the last ones, `(n, LAST_FRAMES, CHANNELS, HEIGHT, WIDTH)`, in -1..1.
            event: `(n, 4)`, as `desktop_screen.EVENT_FIELDS`.
        """
        known = self.level(level[:, None])
        x = self.full(self.enter(torch.cat([noisy, frames.flatten(1, 2), event_maps(event)], dim=1)), known)
        half = self.middle(self.to_half(x), known)
        quarter = self.quarter(self.to_quarter(half), known)
        mixed = self.mixed(quarter).view(len(x), 4, *quarter.shape[2:])
        up = interpolate(quarter + self.unmixed(mixed), scale_factor=2)
        up = interpolate(self.middle_up(torch.cat([up, half], dim=1), known), scale_factor=2)
        change: torch.Tensor = self.leave(self.full_up(torch.cat([up, x], dim=1), known))
        return frames[:, -1] + change


def event_maps(event: torch.Tensor) -> torch.Tensor:
    """Return events as maps, `(n, EVENT_MAPS, HEIGHT, WIDTH)`: 1 where the cursor is; the same if a button is held."""
    maps = torch.zeros(len(event), EVENT_MAPS, HEIGHT, WIDTH)
    x, y = event[:, 0].long(), event[:, 1].long()
    rows = torch.arange(len(event))
    for channel, value in enumerate((torch.ones(len(event)), event[:, 2].float(), event[:, 3].float())):
        maps[rows, channel, y, x] = value
    return maps


def shifted(level: torch.Tensor, shift: float) -> torch.Tensor:
    """Return noise levels moved towards 1 for a shift above 1, towards 0 below it."""
    return shift * level / (1 + (shift - 1) * level)


def diffusion_loss(
    model: nn.Module, batch: Sequence[torch.Tensor], level: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return the weighted mean squared error of predicted frames.

    Args:
        batch: last frames, events, next frames, as `Denoiser.forward` takes them.
        level: of the noise, `(n,)`.
        noise: normally distributed, of the next frames' shape.
    """
    frames, event, after = batch
    at = level[:, None, None, None]
    error = model((1 - at) * after + at * noise, level, frames, event) - after
    return ((1 + CHANGED_WEIGHT * changed(frames, after)) * error.square()).mean()


def changed(frames: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return which pixels of the next frame differ from the last one, `(n, 1, HEIGHT, WIDTH)`."""
    return (after != frames[:, -1]).any(dim=1, keepdim=True)


@torch.no_grad()
def predict(
    model: nn.Module, frames: torch.Tensor, event: torch.Tensor, seed: int = 0, steps: int = SAMPLING_STEPS
) -> torch.Tensor:
    """Return next frames in -1..1, from noise in `steps` steps; the noise depends on `seed` only."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(frames[:, -1].shape, generator=generator)
    levels = torch.linspace(1, 0, steps + 1)
    for level, lower in pairwise(levels):
        frame = model(x, level.expand(len(x)), frames, event)
        x = frame + lower / level * (x - frame)
    return x


def changed_error(predicted: torch.Tensor, frames: torch.Tensor, after: torch.Tensor) -> float:
    """Return the mean absolute error, in shares of the full brightness, over the pixels in which the next frame differs
    from the last one; so whoever repeats the last frame is not rewarded for what stays as it was."""
    differs = changed(frames, after).expand_as(after)
    return float((predicted.clamp(-1, 1) - after).abs()[differs].mean() / 2)
