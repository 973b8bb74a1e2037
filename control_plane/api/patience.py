"""How long a client repeats a request that nobody has answered.

A gateway whose process has died is back within a few seconds; whoever asks meanwhile should not have to ask again.
"""

from typing import TYPE_CHECKING

from control_plane.config import Settings
from control_plane.core.model.errors import Unavailable

if TYPE_CHECKING:
    import tenacity

COMES_BACK_WITHIN_S = 8.0
"""What Ray Serve needs to start its proxy or the gateway's replica again: 3 to 4 s on two busy cores."""

FIRST_WAIT_S, MAX_WAIT_S = 0.25, 1.0
"""The wait before the second try, which doubles, and the longest; both with jitter."""


def patience_of(settings: Settings) -> float:
    """Seconds for which it makes sense to ask again: none if the gateway is this machine's and no cluster is up."""
    may_be_there = settings.url is not None or settings.cluster_file.exists()
    return COMES_BACK_WITHIN_S if may_be_there else 0.0


def retrying(tries: int, patience_s: float, most_s: float) -> "tenacity.Retrying":
    """Repeats what raises `Unavailable`: `tries` times, or for `patience_s` if that is longer, and never beyond
    `most_s`. Raises what the last try raised."""
    import tenacity

    enough = tenacity.stop_all(tenacity.stop_after_attempt(tries), tenacity.stop_after_delay(patience_s))
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        stop=enough | tenacity.stop_after_delay(max(most_s, patience_s)),
        wait=tenacity.wait_exponential(multiplier=FIRST_WAIT_S, max=MAX_WAIT_S) + tenacity.wait_random(0, FIRST_WAIT_S),
        reraise=True,
    )
