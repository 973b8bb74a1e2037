"""Outcome of a run of the study: its loss at the end, and who counts as rescued."""

import math

from benchmarks.studies.plan import CHARACTERS
from benchmarks.studies.results import Row

CHANCE = math.log(len(CHARACTERS))
"""Loss of a model that knows nothing: what is above, or not finite, counts as this."""

RESCUED = 1.05


def loss_of(row: Row) -> float:
    """Return the loss on held-out text at the end of a run."""
    loss = row["eval_loss"]
    return min(loss, CHANCE) if isinstance(loss, float) and math.isfinite(loss) else CHANCE


def is_rescued(loss: float, oracle: float) -> bool:
    """Return whether a run ended within 5 % of the oracle's loss on the same seed."""
    return loss <= oracle * RESCUED
