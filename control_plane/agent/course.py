"""Proposals on a run's course: schedule, rollback, skipped samples, pause, stop, evaluation, save; and their check.

All of them are of high risk but an evaluation and a save, so a person answers them, see `core.rules.agent.risk`. They
are offered only where an agent is started with the action space `full`. Never offered: what takes a pattern or another
text as its input (freezing, resetting parameters), since a model's text must not become a command's.
"""

from dataclasses import dataclass

from control_plane.agent import policy
from control_plane.agent.policy import AgentBounds, Observation
from control_plane.core.model.commands import Evaluate, Intent, Pause, SaveCheckpoint, Stop
from control_plane.core.model.intents import Rollback, SetSchedule, SkipSamples

KINDS = ("evaluate", "save_checkpoint", "pause", "stop", "set_schedule", "skip_samples", "rollback")
"""Kinds that may be proposed, in the order in which a model is told of them."""

TRUSTED = "trusted"
"""A rollback to `trusted` goes to the newest trusted checkpoint of the branch."""

MAX_SKIPPED_STEPS = 500
"""Batches that one proposal may leave out: rewinding and leaving out some hundred is what large runs have done."""

MAX_SKIPPED_SAMPLES = 10_000
"""The same where the size of a batch is not known."""


@dataclass(frozen=True, slots=True)
class Course:
    """Proposal of a command on the run's course."""

    intent: Intent
    reason: str = ""

    @property
    def what(self) -> str:
        """Return the proposal as text."""
        return self.intent.describe()


def reason_against(proposal: Course, now: Observation, bounds: AgentBounds) -> str | None:
    """Return why a course may not be proposed at `now`, or None."""
    intent = proposal.intent
    if intent.kind not in KINDS or intent.kind not in now.kinds:
        return f"a {intent.kind} is not among what this agent may propose"
    last = now.course_at.get(intent.kind)
    if last is not None and 0 <= now.step - last < bounds.cooldown_steps:
        return (
            f"cool-down: the last {intent.kind} was {now.step - last} steps ago; {bounds.cooldown_steps} are required"
        )
    match intent:
        case Evaluate() | Pause() | Stop():
            return None
        case SaveCheckpoint():
            plain = not (intent.pin or intent.label or intent.note or intent.name)
            return None if plain else "a save takes no label, note, pin or name here"
        case SetSchedule():
            return policy.too_soon(now, bounds) or _unfit_schedule(intent, now, bounds)
        case SkipSamples():
            return _too_many_samples(intent, now)
        case Rollback():
            return _unfit_rollback(intent, now)
    return f"a {intent.kind} is not among what this agent may propose"


def _unfit_schedule(intent: SetSchedule, now: Observation, bounds: AgentBounds) -> str | None:
    if intent.end > 1:
        return f"the schedule would end at {intent.end:g} times its start; at most 1 is allowed"
    if intent.warmup_steps or intent.peak != 1.0:
        return policy.rates_out_of_bounds(now, bounds, factor=intent.peak)
    left = now.total_steps - now.step
    if intent.over_steps is not None and intent.over_steps > left:
        return f"the schedule would take {intent.over_steps} steps; {left} are left"
    return None


def _too_many_samples(intent: SkipSamples, now: Observation) -> str | None:
    batch = now.config.get("samples per step")
    most = int(batch) * MAX_SKIPPED_STEPS if isinstance(batch, int | float) else MAX_SKIPPED_SAMPLES
    return f"{intent.samples} samples would be skipped; at most {most} are allowed" if intent.samples > most else None


def _unfit_rollback(intent: Rollback, now: Observation) -> str | None:
    if intent.branch is not None or intent.first:
        return "a rollback takes no branch and no first changes here"
    names = {each.name for each in now.checkpoints}
    if not names:
        return "the run has no checkpoint that it could be rolled back to"
    return None if intent.checkpoint in names | {TRUSTED} else "that checkpoint is not among those listed"
