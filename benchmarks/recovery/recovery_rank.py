"""SIGKILL of one rank: seconds until the training makes new steps, beside stock. As `recovery`, but all nodes live."""

from benchmarks.catalogue import Say
from benchmarks.harness.result import Result
from benchmarks.recovery.recovery import QUICK_STOCK_FAULTS, TARGETS, measure_fault


def measure(n: int, quick: bool, say: Say) -> Result:
    """`n` faults in each arm. Raises `SteerwayError` if an arm does not start, or does not come back."""
    return measure_fault("rank", n, QUICK_STOCK_FAULTS if quick else n, TARGETS, say)
