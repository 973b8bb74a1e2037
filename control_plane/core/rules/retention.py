"""Which checkpoints may go: a pure rule, with a reason for each.

Whatever the settings say: the newest stays, a pinned one stays, one in use stays, one that something stands on stays.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from control_plane.core.model.commands import MAX_STEP, Words


class Retention(Words):
    """What to keep besides what always stays. A checkpoint goes if none of these rules wants it."""

    keep_last: int = Field(default=3, ge=1, le=MAX_STEP)
    keep_every_steps: int = Field(
        default=0, ge=0, le=MAX_STEP, description="the first one of every so many steps; 0: no such rule"
    )
    keep_best: int = Field(default=0, ge=0, le=MAX_STEP)
    best_metric: str | None = "eval_loss"
    best_mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What the rule needs to know of one checkpoint. `base_of` counts the branches and forks that stand on it."""

    checkpoint: str
    step: int
    pinned: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    base_of: int = 0
    # After a rollback a newer checkpoint has a smaller step. Where the seq of its record is given, that decides.
    seq: int = 0


def to_discard(
    checkpoints: Sequence[CheckpointFacts], retention: Retention, in_use: Collection[str]
) -> list[tuple[str, str]]:
    """The checkpoints that may go, oldest first, each with the reason. The order of `checkpoints` says nothing."""
    by_age = sorted(checkpoints, key=_age)
    kept = {facts.checkpoint for facts in by_age[-retention.keep_last :]}
    kept |= {facts.checkpoint for facts in by_age if facts.pinned or facts.base_of > 0}
    kept |= _first_of_each_span(by_age, retention.keep_every_steps) | _best(by_age, retention) | set(in_use)
    reason = _reason(retention)
    return [(facts.checkpoint, reason) for facts in by_age if facts.checkpoint not in kept]


def _age(facts: CheckpointFacts) -> tuple[int, int, str]:
    return facts.seq, facts.step, facts.checkpoint


def _first_of_each_span(by_age: Sequence[CheckpointFacts], steps: int) -> set[str]:
    """Saves need not fall on multiples; the first one of a span stays the first, however often this is asked."""
    if not steps:
        return set()
    first = dict[int, CheckpointFacts]()
    for facts in sorted(by_age, key=lambda facts: (facts.step, facts.checkpoint)):
        first.setdefault(facts.step // steps, facts)
    return {facts.checkpoint for facts in first.values()}


def _best(by_age: Sequence[CheckpointFacts], retention: Retention) -> set[str]:
    """Of equal ones the older is the better, so that a newer one displaces it only by being better."""
    name, sign = retention.best_metric, 1 if retention.best_mode == "min" else -1
    if name is None:
        return set()
    measured = [facts for facts in by_age if math.isfinite(facts.metrics.get(name, math.nan))]
    ranked = sorted(measured, key=lambda facts: (sign * facts.metrics[name], _age(facts)))
    return {facts.checkpoint for facts in ranked[: retention.keep_best]}


def _reason(retention: Retention) -> str:
    rules = [f"the last {retention.keep_last}"]
    if retention.keep_every_steps:
        rules.append(f"the first of every {retention.keep_every_steps} steps")
    if retention.keep_best and retention.best_metric is not None:
        extreme = "lowest" if retention.best_mode == "min" else "highest"
        rules.append(f"the {retention.keep_best} with the {extreme} {retention.best_metric}")
    told = " or ".join([", ".join(rules[:-1]), rules[-1]] if len(rules) > 1 else rules)
    return f"not among {told}; not pinned, not in use, and nothing stands on it"
