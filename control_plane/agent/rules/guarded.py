"""The guarded rule: after GreedyLR, by doubling and halving; what the autopilot follows without a model.

After Subramanian, Krishnamoorthy and Murthy, "Dynamic Learning Rate Scheduling based on Loss Changes Leads to Faster
Convergence" (arXiv 2512.14527), which `transformers` ships as `GreedyLR`: smooth the loss; raise the learning rate
after a patient run of improvements, lower it after a patient run without one, and rest after a change.

Differences, because a factor is 2 and a change is a command that people see:

- The loss is smoothed by the mean over one *look*, the points since the last look; patience is counted in looks.
- After a change, by anyone, the best loss is reset: a run that diverged and recovers would not reach its best loss for
  hundreds of steps. To go *up*, the loss must also be near its best ever.
- A loss that is not finite, or far above the best ever, is bad at once, without patience.
- No reset to the first learning rate: that one may be the mistake.
"""

import math
from dataclasses import dataclass, replace

from control_plane.agent.policy import AgentAction, Decision, Observation


@dataclass(frozen=True, slots=True)
class Patience:
    """Thresholds of the rule. Raising takes more looks than lowering: too high a learning rate costs more."""

    bad_looks: int = 2
    good_looks: int = 4
    improvement: float = 0.01
    """Relative improvement over the best loss that counts as good. With far too high a learning rate the loss still
    falls, by less than this."""
    blow_up: float = 1.1
    """A look above this many times the best ever is a divergence, not noise."""
    hopeless_halvings: int = 3
    """After this many halvings without a finite loss the weights are lost, whatever the learning rate."""
    fruitless_changes: int = 6
    """After this many changes without a good look (a factor of 64) the learning rate is not the problem."""


@dataclass(frozen=True, slots=True)
class Memory:
    """State of the rule between looks. Invariant: at most one of `good` and `bad` is above 0."""

    step: int = -1
    generation: int = 0
    changed_at: int | None = None
    best: float = math.inf
    best_ever: float = math.inf
    good: int = 0
    bad: int = 0
    changes_not_finite: int = 0
    fruitless: int = 0


def look(memory: Memory, seen: Observation, patience: Patience = Patience()) -> tuple[Memory, Decision]:
    """Update the memory with an observation and return a decision.

    A decision may be rejected, so the memory does not assume that it was applied: only a change that shows in the
    observation resets the counts.
    """
    if seen.generation != memory.generation or seen.step < memory.step:
        # Restarted or rolled back: nothing was changed yet since then.
        memory = Memory(generation=seen.generation, changed_at=seen.changed_at)
    losses = [loss for step, loss in seen.losses if step > memory.step]
    if not losses:
        return memory, Decision(AgentAction.KEEP, "no new losses")
    changed = seen.changed_at != memory.changed_at
    memory = replace(memory, step=seen.step, changed_at=seen.changed_at)
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not math.isfinite(losses[-1]) or len(finite) < len(losses) * 0.75:
        return _not_finite(memory, len(losses) - len(finite), len(losses), changed, patience)
    return _judge(replace(memory, changes_not_finite=0), sum(finite) / len(finite), changed, patience)


def _not_finite(memory: Memory, count: int, of: int, changed: bool, patience: Patience) -> tuple[Memory, Decision]:
    memory = replace(memory, changes_not_finite=memory.changes_not_finite + changed, good=0, bad=0, best=math.inf)
    finding = f"{count} of the last {of} losses are not finite"
    if memory.changes_not_finite >= patience.hopeless_halvings:
        return memory, Decision(
            AgentAction.KEEP,
            f"{finding} after {memory.changes_not_finite} changes: restore a checkpoint; halving does not help",
        )
    return memory, Decision(AgentAction.HALVE, finding)


def _judge(memory: Memory, loss: float, changed: bool, patience: Patience) -> tuple[Memory, Decision]:
    blown_up = loss > _above(memory.best_ever, patience.blow_up - 1)
    before, best_ever = memory.best, min(memory.best_ever, loss)
    memory = replace(memory, best_ever=best_ever)
    if changed:
        memory = replace(memory, good=0, bad=0, fruitless=memory.fruitless + 1)
    if before == math.inf:
        return replace(memory, best=loss), Decision(AgentAction.KEEP, f"loss {loss:.4g} is the first baseline")
    if loss < _below(before, patience.improvement):
        recovered = loss <= _above(best_ever, patience.improvement)
        memory = replace(memory, best=loss, bad=0, fruitless=0, good=memory.good + 1 if recovered else 0)
        return memory, _after_good(memory, before, patience)
    memory = replace(memory, best=loss if changed else before, good=0, bad=memory.bad + 1)
    return memory, _after_bad(memory, loss, blown_up and not changed, patience)


def _after_good(memory: Memory, before: float, patience: Patience) -> Decision:
    if memory.good >= patience.good_looks:
        return Decision(AgentAction.DOUBLE, f"loss has fallen for {memory.good} looks, to {memory.best:.4g}")
    return Decision(AgentAction.KEEP, f"loss falls: {before:.4g} to {memory.best:.4g}")


def _after_bad(memory: Memory, loss: float, blown_up: bool, patience: Patience) -> Decision:
    if not blown_up and memory.bad < patience.bad_looks:
        return Decision(AgentAction.KEEP, f"loss {loss:.4g} is not below {memory.best:.4g}; waiting one more look")
    if memory.fruitless >= patience.fruitless_changes:
        return Decision(
            AgentAction.KEEP,
            f"loss {loss:.4g} does not fall, and {memory.fruitless} changes did not help: another cause is likely",
        )
    if blown_up:
        return Decision(AgentAction.HALVE, f"loss {loss:.4g} is far above its best, {memory.best_ever:.4g}")
    return Decision(AgentAction.HALVE, f"loss {loss:.4g} has not fallen below {memory.best:.4g} for {memory.bad} looks")


def _below(loss: float, share: float) -> float:
    """Return the loss improved by `share`, for losses of either sign."""
    return loss - abs(loss) * share


def _above(loss: float, share: float) -> float:
    return loss + abs(loss) * share


class GuardedRule:
    """The guarded rule as an object: its memory, and `look`."""

    name = "guarded"
    needs: tuple[str, ...] = ()

    def __init__(self, patience: Patience = Patience()) -> None:
        self._patience, self._memory = patience, Memory()

    def look(self, seen: Observation) -> Decision:
        """Update the memory, and return a decision."""
        self._memory, decision = look(self._memory, seen, self._patience)
        return decision
