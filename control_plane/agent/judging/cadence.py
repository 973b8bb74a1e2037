"""Adaptive cadence: how many steps until the next look. Rarely at a healthy run, often at a doubtful one."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from control_plane.agent.policy import Observation

MOST = 4
"""The cadence stays between a quarter of `every_steps` and four times it."""

CLEAR = 2.0
"""Standard errors by which the newer half of the losses must lie above the older one to be a rise."""


STEP_TIME = "own_step_s"
"""Sign that tells how long a step takes at least."""

HUGE = 1e100
"""No loss; its square would overflow."""


def next_look(every_steps: int, seen: Observation, healthy_looks: int, cool_down_steps: int) -> int:
    """Return the steps from the last look to the next one.

    Args:
        every_steps: the cadence that the settings ask for.
        seen: the run now; a doubt that arises between two looks brings the next one forward.
        healthy_looks: looks in a row that found nothing to doubt and changed nothing; each two of them double the
            interval, up to four times `every_steps`.
        cool_down_steps: for so long after a change nothing may be changed, but its effect is looked at.

    Returns:
        At least a quarter of `every_steps`, at most four times it, and at least 1.
    """
    least = max(1, every_steps // MOST)
    if is_alarming(seen):
        return least
    if is_doubtful(seen, cool_down_steps):
        return max(least, every_steps // 2)
    return every_steps * min(MOST, 2 ** (healthy_looks // 2))


def idle_s(steps: int, latest: Mapping[str, float]) -> float:
    """Return the seconds that so many steps take at least, by the run's newest measurements; 0 if it is not known.

    Who looks at fixed steps need not ask in between, which costs processor time.
    """
    step_s = latest.get(STEP_TIME, 0.0)
    return steps * step_s if steps > 0 and 0 < step_s < HUGE else 0.0


def is_alarming(seen: Observation) -> bool:
    """Return whether a critical alert is open, or the newest loss is not finite or beyond all measure."""
    broken = bool(seen.losses) and not abs(seen.losses[-1][1]) < HUGE
    return broken or any(alert.level == "critical" for alert in seen.alerts)


def is_doubtful(seen: Observation, cool_down_steps: int) -> bool:
    """Return whether a warning is open, the loss rises, or a change is recent."""
    recent = seen.changed_at is not None and 0 <= seen.step - seen.changed_at < 2 * cool_down_steps
    return recent or bool(seen.alerts) or rises([loss for _, loss in seen.losses])


def rises(losses: Sequence[float]) -> bool:
    """Return whether the newer half of the losses lies above the older one by more than their noise."""
    finite = [loss for loss in losses if abs(loss) < HUGE]
    half = len(finite) // 2
    if half < 4:
        return False
    older, newer = finite[-2 * half : -half], finite[-half:]
    noise = math.sqrt((stdev(older) ** 2 + stdev(newer) ** 2) / half)
    return fmean(newer) - fmean(older) > CLEAR * noise
