"""Detectors of the health monitor, one class a kind of alert or a family of kinds that share a window."""

from collections.abc import Callable

from control_plane.core.health.detectors.dynamics import BadDynamics
from control_plane.core.health.detectors.layers import AttentionBlowUp, DeadUnits, ExplodingLayer, VanishingLayer
from control_plane.core.health.detectors.machines import (
    CheckpointTooOld,
    DataStarvation,
    MemoryNearLimit,
    StalledPhase,
    Straggler,
)
from control_plane.core.health.detectors.numbers import NonFinite, Overflow
from control_plane.core.health.detectors.spikes import GradientSpike, LossSpike
from control_plane.core.health.detectors.trends import Forgetting, Plateau, SlowDivergence
from control_plane.core.health.findings import Detector
from control_plane.core.health.settings import HealthSettings

DETECTORS: tuple[Callable[[HealthSettings], Detector], ...] = (
    lambda settings: NonFinite(settings.non_finite),
    lambda settings: Overflow(settings.precision),
    lambda settings: LossSpike(settings.loss_spike),
    lambda settings: GradientSpike(settings.gradient_spike),
    lambda settings: SlowDivergence(settings.divergence),
    lambda settings: Plateau(settings.plateau),
    lambda settings: Forgetting(settings.forgetting),
    lambda settings: DeadUnits(settings.dead_units),
    lambda settings: VanishingLayer(settings.layers),
    lambda settings: ExplodingLayer(settings.layers),
    lambda settings: AttentionBlowUp(settings.attention),
    lambda settings: Straggler(settings.straggler),
    lambda settings: StalledPhase(settings.stall),
    lambda settings: DataStarvation(settings.starvation),
    lambda settings: MemoryNearLimit(settings.memory),
    lambda settings: CheckpointTooOld(settings.checkpoints),
    lambda settings: BadDynamics(settings.dynamics),
)
"""All detectors, in the order in which alerts of one step are raised."""
