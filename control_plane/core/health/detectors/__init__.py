"""Detectors of the health monitor, one class a kind of alert or a family of kinds that share a window."""

from collections.abc import Callable

from control_plane.core.health.detectors.numbers import NonFinite, Overflow
from control_plane.core.health.findings import Detector
from control_plane.core.health.settings import HealthSettings

DETECTORS: tuple[Callable[[HealthSettings], Detector], ...] = (
    lambda settings: NonFinite(settings.non_finite),
    lambda settings: Overflow(settings.precision),
)
"""All detectors, in the order in which alerts of one step are raised."""
