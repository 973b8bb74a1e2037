"""Recovery from SIGKILL of one rank: seconds to the first new step, beside stock; as `recovery`, but no node dies."""

from benchmarks.catalogue import Say
from benchmarks.harness.result import Result
from benchmarks.recovery.recovery import QUICK_STOCK_FAULTS, TARGETS, measure_fault


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` faults in each arm. Raises `SteerwayError` if an arm does not start or recover."""
    return measure_fault("rank", n, QUICK_STOCK_FAULTS if quick else n, TARGETS, say)
