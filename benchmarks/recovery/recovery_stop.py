"""Recovery from SIGSTOP of one rank, which makes its peers hang: seconds to the first new step, beside stock.

Stock waits for Ray Train's timeout of a silent worker (10 minutes), so it gets one fault only, and a time limit after
that; if it is exceeded, `stock_gave_up` is 1, and its seconds are a lower bound.
"""

from benchmarks.catalogue import Say
from benchmarks.harness.result import Bound, Result
from benchmarks.recovery.ours import steered
from benchmarks.recovery.recovery import RECOVERY_WAIT_S, SAVE_EVERY_STEPS, NotBack, RecoveryTrial, faults, result_of
from benchmarks.recovery.stock import stock

STOCK_WAIT_S = 780.0
QUICK_STOCK_WAIT_S = 60.0
TARGETS: dict[str, Bound] = {
    "ours_seconds_worst": {"max": 15},
    "ours_steps_lost_worst": {"max": 2 * SAVE_EVERY_STEPS},
    "ours_old_ranks_left": {"max": 0},
    "stock_over_ours": {"min": 5},
}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` faults in Steerway's arm, one in the other. Raises `SteerwayError` if an arm does not start."""
    ours = faults(lambda: steered(say, "recovery-stop", SAVE_EVERY_STEPS), "stop", n, RECOVERY_WAIT_S, say)
    wait_s = QUICK_STOCK_WAIT_S if quick else STOCK_WAIT_S
    theirs: list[RecoveryTrial] = []
    try:
        theirs = faults(lambda: stock(say, SAVE_EVERY_STEPS), "stop", 1, wait_s, say)
    except NotBack as gave_up:
        say(f"recovery: {gave_up.reason}")
    return result_of("stop", n, ours, theirs, TARGETS, gave_up_after_s=wait_s)
