"""Retry policy of clients for unanswered requests.

A gateway whose process has died is back within seconds; requests in between should succeed without a manual retry.
"""

from typing import TYPE_CHECKING

from control_plane.config import Settings
from control_plane.core.model.errors import Unavailable

if TYPE_CHECKING:
    import tenacity

COMES_BACK_WITHIN_S = 8.0
"""Ray Serve restarts its proxy or the gateway's replica within 3 to 4 s on two busy cores; twice that."""

FIRST_WAIT_S, MAX_WAIT_S = 0.25, 1.0
"""Exponential backoff: the first wait and the longest; both with jitter."""


def patience_of(settings: Settings) -> float:
    """Return the seconds for which to retry: 0 if the gateway is this machine's and no cluster is up."""
    may_be_there = settings.url is not None or settings.cluster_file.exists()
    return COMES_BACK_WITHIN_S if may_be_there else 0.0


def retrying(tries: int, patience_s: float, most_s: float) -> "tenacity.Retrying":
    """Return a retry policy for `Unavailable`: `tries` times, or for `patience_s` if that is longer, never beyond
    `most_s`. It raises the last try's error."""
    import tenacity

    enough = tenacity.stop_all(tenacity.stop_after_attempt(tries), tenacity.stop_after_delay(patience_s))
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        stop=enough | tenacity.stop_after_delay(max(most_s, patience_s)),
        wait=tenacity.wait_exponential(multiplier=FIRST_WAIT_S, max=MAX_WAIT_S) + tenacity.wait_random(0, FIRST_WAIT_S),
        reraise=True,
    )
