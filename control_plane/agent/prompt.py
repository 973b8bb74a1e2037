"""What the model is told: numbers that code has extracted first, and nothing else.

No text from the run enters: not its name, its groups, its metrics' names, nor anyone's reasons. So there is nothing in
a run that could speak to the model. What it answers is gated in `policy.py` all the same.
"""

import math
from collections.abc import Sequence

from control_plane.agent.policy import Bounds, Observation

MAX_POINTS = 40
"""Losses shown, thinned evenly: enough to see a trend, few enough to be cheap."""

MAX_GROUPS = 8
MAX_PROMPT_CHARS = 6000
"""Follows from the two above; a test holds it."""

INSTRUCTIONS = """\
You watch the training of a neural network and may answer with one of three actions on its learning rate:
"double", "halve" or "keep". Prefer "keep" unless the numbers give a clear reason.
- The loss rises, is not finite, or stays on a high plateau: "halve". Too high a learning rate is the usual cause.
- The loss has fallen steadily for a long time, and slowly: "double" may help.
- A change was made a few steps ago: "keep", until its effect shows.
Answer with one JSON object and nothing else: {"action": "double" | "halve" | "keep", "reason": "one short sentence"}"""


def messages(seen: Observation, bounds: Bounds) -> list[dict[str, str]]:
    """The chat that asks for one decision; at most `MAX_PROMPT_CHARS` in all."""
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": describe(seen, bounds)}]


def describe(seen: Observation, bounds: Bounds) -> str:
    """An observation in lines of numbers."""
    changed = "never" if seen.changed_at is None else f"{seen.step - seen.changed_at} steps ago, at {seen.changed_at}"
    evaluated = "none yet" if seen.eval_loss is None else _number(seen.eval_loss)
    groups = ", ".join(_number(lr) for lr in seen.lr[:MAX_GROUPS])
    points = " ".join(f"{step}:{_number(loss)}" for step, loss in _thinned(seen.losses))
    return "\n".join(
        [
            f"step: {seen.step} of {seen.total_steps}",
            f"learning rate per parameter group: {groups}",
            f"allowed learning rates: {_number(bounds.min_lr)} to {_number(bounds.max_lr)}",
            f"last change of the learning rate: {changed}",
            f"your changes so far: {seen.changes} of {bounds.max_changes}",
            f"latest evaluation loss: {evaluated}",
            *_trend([loss for _, loss in seen.losses]),
            f"losses as step:loss, oldest first: {points}",
        ]
    )


def _trend(losses: Sequence[float]) -> list[str]:
    finite = [loss for loss in losses if math.isfinite(loss)]
    lines = [f"losses seen: {len(losses)}, of them not finite: {len(losses) - len(finite)}"]
    if len(finite) >= 2:
        half = len(finite) // 2
        older, newer = sum(finite[:half]) / half, sum(finite[half:]) / (len(finite) - half)
        lines.append(f"mean loss of the older half: {_number(older)}, of the newer half: {_number(newer)}")
        lines.append(f"lowest loss: {_number(min(finite))}")
    return lines


def _thinned(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MAX_POINTS`, evenly spread, the newest always among them."""
    if len(losses) <= MAX_POINTS:
        return list(losses)
    last = len(losses) - 1
    return [losses[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def _number(value: float) -> str:
    return f"{value:.5g}"
