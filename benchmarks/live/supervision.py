"""Supervision of the cluster's services: SIGKILL of each, and the seconds until it answers again.

Proxy, replica and controller of Ray Serve, and the console, each killed `n` times in turns. A kill is over when the
part is a new process and five questions in a row, 0.1 s apart, were answered; the figure is the time from the kill to
the first of these five. The gateway answers beside a controller that is away, so that one's figure is near zero.
"""

import signal
import time
from collections.abc import Callable

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import own_cluster
from benchmarks.harness.quantiles import median
from benchmarks.harness.result import Bound, Result
from benchmarks.storm.faults import living
from cluster.parts import answers
from control_plane.config import Settings
from control_plane.core.model.errors import SteerwayError

PARTS = ("proxy", "replica", "Serve controller", "console")
ASK_EVERY_S, ANSWERS_IN_A_ROW = 0.1, 5
BACK_WITHIN_S = 60.0
CALM_S = 3.0
"""Time between two kills, for a part to finish its start."""

TARGET_S = 5.0


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` kills of each part. Raises `SteerwayError` if the cluster or a part does not start again."""
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    with own_cluster(say) as where:
        urls = dict.fromkeys(PARTS, where.own_gateway_health_url)
        urls["console"] = where.own_console_health_url
        for number in range(n):
            for part in PARTS:
                time.sleep(CALM_S)
                seconds[part].append(_kill(where, part, urls[part]))
                say(f"supervision: {number + 1} of {n}, the {part}: answers after {seconds[part][-1]:.1f} s")
    return Result(figures_of(seconds), targets(), n)


def targets() -> dict[str, Bound]:
    """Return the targets: every restart within the limit."""
    return {f"{_name(part)}_s_max": {"max": TARGET_S} for part in PARTS}


def figures_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return least, median and greatest seconds, by part."""
    figures: dict[str, float] = {}
    for part, measured in seconds.items():
        figures |= {f"{_name(part)}_s_min": min(measured), f"{_name(part)}_s_p50": median(measured)}
        figures[f"{_name(part)}_s_max"] = max(measured)
    return figures


def _name(part: str) -> str:
    return part.replace(" ", "_").lower()


def _kill(where: Settings, part: str, url: str) -> float:
    before = living(where, part)
    if not before:
        raise SteerwayError(f"the {part} has no process to kill")
    for process in before:
        process.send_signal(signal.SIGKILL)
    back_s = first_of_a_row(lambda: answers(url), lambda: bool(set(living(where, part)) - set(before)))
    if back_s is None:
        raise SteerwayError(f"the {part} did not restart within {BACK_WITHIN_S:g} s")
    return back_s


def first_of_a_row(
    ask: Callable[[], bool],
    is_replaced: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Return the seconds to the first of `ANSWERS_IN_A_ROW` answers in a row, after the process was replaced."""
    began_s = clock()
    first_s, count = 0.0, 0
    while clock() - began_s < BACK_WITHIN_S:
        if ask():
            first_s = clock() - began_s if not count else first_s
            count += 1
            if count >= ANSWERS_IN_A_ROW and is_replaced():
                return first_s
        else:
            count = 0
        sleep(ASK_EVERY_S)
    return None
