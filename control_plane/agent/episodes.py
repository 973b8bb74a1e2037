"""Episodes of a run's agents for learning: state, proposal, verdict and effect, from the journal and the measurements.

One episode is one proposal, or one direct command of an autopilot. Its state is what was measured up to the step at
which it was made: numbers and kinds of alerts, no text. Decisions to keep are in no journal, so there is no episode of
them; whoever learns from episodes has to add them from the measurements.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from control_plane.agent.asking.prompt import thinned
from control_plane.agent.history import is_autopilots
from control_plane.agent.judging.effects import effect_of
from control_plane.api.messages import Point
from control_plane.core.model.commands import Intent
from control_plane.core.model.health import Measured
from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import Entry
from control_plane.core.model.state import CommandStatus, RunState, evolve

FORMAT = 1
EFFECT_STEPS = 20
NAMES = ("loss", "eval_loss", "lr", "grad_norm")

Series = tuple[tuple[int, Measured], ...]


class EpisodeState(Message):
    """State at the step of a proposal.

    losses: (step, loss), at most 20, denser at the end. lr: of the first group. changed_steps_ago: since the last
    change of the training by anybody, None if there was none. alerts: kinds of the open ones.
    """

    step: int
    total_steps: int
    lr: Measured | None = None
    losses: Series = ()
    eval_loss: Measured | None = None
    grad_norm: Measured | None = None
    changed_steps_ago: int | None = None
    changes: int = 0
    alerts: tuple[str, ...] = ()


class EpisodeEffect(Message):
    """Effect of the applied command. source: `noted` by the agent at its time, or `computed` in the export."""

    before: Measured | None = None
    after: Measured | None = None
    steps: int
    judgement: Literal["better", "worse", "unclear"]
    source: Literal["noted", "computed"]


class Episode(Message):
    """One line of an export. verdict: of the proposal, or `direct`, or `open`. made: what came of it, edited or not."""

    format: int = FORMAT
    run: str
    seq: int
    branch: str
    state: EpisodeState
    proposal: Intent
    verdict: str
    by_person: bool = False
    made: Intent | None = None
    outcome: str | None = None
    effect: EpisodeEffect | None = None


def episodes_of(run: str, entries: Iterable[Entry], points: Sequence[Point]) -> Iterator[Episode]:
    """Yield the episodes of a run, oldest first.

    Args:
        entries: the whole journal.
        points: measurements of `NAMES`, in order of arrival.
    """
    state = RunState()
    asked: list[tuple[UUID, str, int, tuple[str, ...]]] = []
    for entry in entries:
        before = len(state.commands)
        evolve(state, entry)
        if len(state.commands) > before:
            life = next(reversed(state.commands.values()))
            still_open = (each for each in state.alerts.by_seq.values() if each.cleared is None)
            alerts = tuple(str(each.alert.kind) for each in still_open)
            asked.append((life.command.uuid, entry.time, entry.seq, alerts))
    made = {status.closed.command for status in state.agent.proposals.values() if status.closed is not None}
    changes = 0
    for uuid, time, seq, alerts in asked:
        life = state.commands[uuid]
        is_proposal = uuid in state.agent.proposals
        if not is_autopilots(life.command.reason) or uuid in made or not (is_proposal or life.command.intent.is_queued):
            continue
        yield _episode(run, state, life, points, seq, time, changes, alerts)
        changes += 1


def _episode(
    run: str,
    state: RunState,
    life: CommandStatus,
    points: Sequence[Point],
    seq: int,
    time: str,
    changes: int,
    alerts: tuple[str, ...],
) -> Episode:
    status = state.agent.proposals.get(life.command.uuid)
    closed = status.closed if status else None
    came = state.commands.get(closed.command) if closed and closed.command else (None if status else life)
    branch = status.branch if status else life.branch
    own = [point for point in points if point.branch == branch]
    step = came.settled.step if came and came.settled and came.settled.step is not None else _step_at(own, time)
    proposed = status.proposed.intent if status else life.command.intent
    verdict = ("open" if closed is None else closed.verdict) if status else "direct"
    if status is None and life.status == "rejected":
        verdict = "rejected"
    return Episode(
        run=run,
        seq=seq,
        branch=branch,
        state=_state(state, own, step, seq, changes, alerts),
        proposal=proposed,
        verdict=verdict,
        by_person=bool(closed and closed.by and closed.verdict in ("approved", "edited", "rejected")),
        made=came.command.intent if came else None,
        outcome=came.status if came else None,
        effect=_effect(state, came, own) if came else None,
    )


def _step_at(points: Sequence[Point], time: str) -> int:
    """Return the newest step that was measured before a time of the journal."""
    at_s = datetime.fromisoformat(time).timestamp()
    return max((point.step for point in points if point.time_s <= at_s), default=0)


def _state(
    state: RunState, points: Sequence[Point], step: int, seq: int, changes: int, alerts: tuple[str, ...]
) -> EpisodeState:
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in NAMES}
    for point in points:
        if point.name in values and point.step <= step:
            values[point.name].append((point.step, point.value))
    newest = {name: series[-1][1] if series else None for name, series in values.items()}
    changed = [
        life.settled.step
        for life in state.commands.values()
        if life.settled and life.settled.step is not None and life.settled.status == "applied"
        if life.command.intent.changes_training and life.accepted_seq < seq and life.settled.step <= step
    ]
    return EpisodeState(
        step=step,
        total_steps=state.generation.total_steps if state.generation else 0,
        lr=newest["lr"],
        losses=tuple(thinned(values["loss"])),
        eval_loss=newest["eval_loss"],
        grad_norm=newest["grad_norm"],
        changed_steps_ago=step - max(changed) if changed else None,
        changes=changes,
        alerts=alerts,
    )


def _effect(state: RunState, came: CommandStatus, points: Sequence[Point]) -> EpisodeEffect | None:
    noted = state.agent.effects.get(came.command.uuid)
    if noted is not None:
        return EpisodeEffect(
            before=noted.before, after=noted.after, steps=noted.steps, judgement=noted.judgement, source="noted"
        )
    settled = came.settled
    if settled is None or settled.status != "applied" or settled.step is None:
        return None
    losses, evals = (
        [(point.step, point.value) for point in points if point.name == name] for name in ("loss", "eval_loss")
    )
    until = settled.step + EFFECT_STEPS
    later = [
        other.settled.step
        for other in state.commands.values()
        if other is not came and other.command.intent.changes_training and other.status == "applied"
        if other.settled and other.settled.step is not None and settled.step < other.settled.step < until
    ]
    effect = effect_of(losses, evals, settled.step, EFFECT_STEPS, min([until, *later]))
    if effect is None:
        return None
    return EpisodeEffect(
        before=effect.before, after=effect.after, steps=EFFECT_STEPS, judgement=effect.judgement, source="computed"
    )


def as_line(episode: Episode) -> str:
    """Return an episode as one line of JSON; numbers that are not finite are spelled as text."""
    return episode.model_dump_json(exclude_none=True)


def summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return how many episodes there are, by verdict and by judgement."""
    verdicts = [episode.verdict for episode in episodes]
    judged = [episode.effect.judgement for episode in episodes if episode.effect]
    return {
        "episodes": len(episodes),
        **{name: verdicts.count(name) for name in dict.fromkeys(verdicts)},
        **{name: judged.count(name) for name in dict.fromkeys(judged)},
    }
