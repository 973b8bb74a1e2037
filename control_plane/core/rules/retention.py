"""Checkpoint retention: a pure rule for which checkpoints may be discarded, with a reason for each.

Whatever the settings: the newest, pinned, used, and base checkpoints of branches and forks are kept.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAX_STEP


class Retention(Message):
    """Retention settings: checkpoints to keep besides those always kept. One that no rule keeps is discarded."""

    keep_last: int = Field(default=3, ge=1, le=MAX_STEP)
    keep_every_steps: int = Field(
        default=0, ge=0, le=MAX_STEP, description="the first one of every so many steps; 0: no such rule"
    )
    keep_best: int = Field(default=0, ge=0, le=MAX_STEP)
    best_metric: str | None = "eval_loss"
    best_mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """Input of the retention rule for one checkpoint. `base_of` counts the branches and forks that start at it."""

    checkpoint: str
    step: int
    pinned: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    base_of: int = 0
    # After a rollback a newer checkpoint may have a smaller step: the seq of its record, where given, decides.
    seq: int = 0


def to_discard(
    checkpoints: Sequence[CheckpointFacts], retention: Retention, in_use: Collection[str]
) -> list[tuple[str, str]]:
    """Return the checkpoints to discard, oldest first, each with the reason. `checkpoints` may be in any order."""
    by_age = sorted(checkpoints, key=_age)
    kept = {facts.checkpoint for facts in by_age[-retention.keep_last :]}
    kept |= {facts.checkpoint for facts in by_age if facts.pinned or facts.base_of > 0}
    kept |= _first_of_each_span(by_age, retention.keep_every_steps) | _best(by_age, retention) | set(in_use)
    reason = _reason(retention)
    return [(facts.checkpoint, reason) for facts in by_age if facts.checkpoint not in kept]


def _age(facts: CheckpointFacts) -> tuple[int, int, str]:
    return facts.seq, facts.step, facts.checkpoint


def _first_of_each_span(by_age: Sequence[CheckpointFacts], steps: int) -> set[str]:
    """Return the first checkpoint of every span of `steps`. Saves need not fall on multiples; the result is stable."""
    if not steps:
        return set()
    first = dict[int, CheckpointFacts]()
    for facts in sorted(by_age, key=lambda facts: (facts.step, facts.checkpoint)):
        first.setdefault(facts.step // steps, facts)
    return {facts.checkpoint for facts in first.values()}


def _best(by_age: Sequence[CheckpointFacts], retention: Retention) -> set[str]:
    """Return the `keep_best` best checkpoints. Of equal ones the older wins, so only a better one displaces it."""
    name, sign = retention.best_metric, 1 if retention.best_mode == "min" else -1
    if name is None:
        return set()
    measured = [facts for facts in by_age if math.isfinite(facts.metrics.get(name, math.nan))]
    ranked = sorted(measured, key=lambda facts: (sign * facts.metrics[name], _age(facts)))
    return {facts.checkpoint for facts in ranked[: retention.keep_best]}


def _reason(retention: Retention) -> str:
    rules = [f"keep_last={retention.keep_last}"]
    rules += [f"keep_every_steps={retention.keep_every_steps}"] if retention.keep_every_steps else []
    if retention.keep_best and retention.best_metric is not None:
        rules.append(f"keep_best={retention.keep_best} by {retention.best_mode} {retention.best_metric}")
    return f"outside retention ({', '.join(rules)}), not pinned, unused"
