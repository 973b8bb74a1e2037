"""Observation of what a run is and what happened to it: its configuration, signs, alerts, past changes, checkpoints.

Numbers, and words of our own: kinds of alerts and commands, names of optimizers and schedules that are on the lists
below. A knob is named only if it was granted; labels, sentences, reasons and every other text of a run stay out.
"""

import math
from collections.abc import Container, Iterator, Mapping
from typing import Any

from control_plane.agent.history import SteeringHistory, is_autopilots
from control_plane.agent.policy import AlertSeen, CheckpointSeen, PastSeen
from control_plane.api.messages import AlertView, Snapshot
from control_plane.core.health.signs import SIGNS
from control_plane.core.model.commands import Evaluate, Intent, SaveCheckpoint, SetKnobs, SetLearningRate
from control_plane.core.model.intents import Rollback, SetMixture, SetSchedule, SkipSamples
from control_plane.core.model.intents.grants import Grants
from control_plane.core.model.knobs import finite_numbers, is_number
from control_plane.core.model.state import CommandStatus
from control_plane.core.model.values import spelled_factor
from control_plane.core.rules.agent.trials import AUTHOR as TRIALS

MAX_ALERTS, MAX_PAST, MAX_CHECKPOINTS = 6, 8, 5

NUMBERS_OF_RUN: Mapping[str, str] = {
    "parameters": "parameters",
    "vocab_size": "vocabulary",
    "train_tokens": "training tokens",
    "eval_tokens": "evaluation tokens",
    "global_batch_samples": "samples per step",
    "zero_stage": "ZeRO stage",
}
"""Facts of a run that are numbers, and what a model is told they are."""

OPTIMIZERS = (
    "AdamW",
    "Adam",
    "FusedAdam",
    "DeepSpeedCPUAdam",
    "SGD",
    "RMSprop",
    "Adagrad",
    "Adafactor",
    "Lion",
    "Muon",
)
SCHEDULES = ("constant", "linear", "cosine", "polynomial", "inverse_sqrt", "warmup", "LambdaLR", "StepLR", "OneCycleLR")
SIGNS_SHOWN = frozenset(sign.pattern for sign in SIGNS if not sign.prefix and not sign.is_timing) - {"loss", "lr"}
"""Signs that a model is told: of the whole run, none with a name of the run's own in it, no times."""


def config_of(snapshot: Snapshot) -> dict[str, float | str]:
    """Return the numbers of a run's configuration, and its optimizer and schedule if their names are known ones."""
    facts: Mapping[str, Any] = snapshot.facts
    numbers = {says: float(facts[name]) for name, says in NUMBERS_OF_RUN.items() if is_number(facts.get(name))}
    named = {
        what: listed
        for what, names in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES))
        for listed in names
        if facts.get(what) == listed
    }
    return numbers | {"ranks": float(len(snapshot.ranks))} | named if snapshot.ranks else numbers | named


def signs_of(snapshot: Snapshot) -> dict[str, float]:
    """Return the newest value of the run's signs, by our own names for them."""
    return {name: snapshot.latest[name] for name in sorted(SIGNS_SHOWN & snapshot.latest.keys())}


def alerts_of(snapshot: Snapshot) -> tuple[AlertSeen, ...]:
    """Return the open alerts of the current branch, the newest last."""
    live = [view for view in snapshot.alerts if view.current and view.stage != "cleared"]
    return tuple(map(_alert, live[-MAX_ALERTS:]))


def _alert(view: AlertView) -> AlertSeen:
    evidence = view.alert.evidence[0] if view.alert.evidence else None
    value, threshold = (evidence.value, evidence.threshold) if evidence else (None, None)
    return AlertSeen(view.alert.kind, view.alert.level, view.alert.onset_step, value, threshold)


def checkpoints_of(snapshot: Snapshot) -> tuple[CheckpointSeen, ...]:
    """Return the checkpoints of the current branch that are trusted, or pinned by a person and not suspect."""
    fit = [
        CheckpointSeen(each.checkpoint, each.step, each.pinned)
        for each in snapshot.checkpoints
        if each.branch == snapshot.branch
        and each.step <= snapshot.step
        and (each.health == "trusted" or (each.pinned and each.health != "suspect"))
    ]
    newest = {each.step: each for each in sorted(fit, key=lambda each: each.step)}
    return tuple(newest.values())[-MAX_CHECKPOINTS:]


def past_of(history: SteeringHistory, grants: Grants, sources: Container[str] = ()) -> tuple[PastSeen, ...]:
    """Return the newest interventions of anybody with their noted effects, and declined proposals, oldest first.

    Args:
        sources: those that may be named.
    """
    return tuple(sorted(_past(history, grants, sources), key=lambda past: past.step)[-MAX_PAST:])


def _past(history: SteeringHistory, grants: Grants, sources: Container[str]) -> Iterator[PastSeen]:
    effects = history.state.agent.effects
    for life in history.state.commands.values():
        settled = life.settled
        if settled is None or settled.status != "applied" or settled.step is None:
            continue
        is_trials = life.command.author.startswith(TRIALS)
        is_return = is_trials and isinstance(life.command.intent, Rollback)
        what = None if is_return else told(life.command.intent, grants, sources)
        # What a rollback has left behind did not happen to this training; the rollback itself did.
        if what is None or not (history.is_on_course(life) or isinstance(life.command.intent, Rollback)):
            continue
        effect = effects.get(life.command.uuid)
        yield PastSeen(
            settled.step,
            what,
            _by(life),
            "applied",
            effect.before if effect else None,
            effect.after if effect else None,
            effect.judgement if effect else "",
        )
    for status, step in history.declined():
        if (what := told(status.proposed.intent, grants, sources)) is not None and status.closed is not None:
            yield PastSeen(step, what, "you", status.closed.verdict.replace("_", " "))


def _by(life: CommandStatus) -> str:
    is_own = is_autopilots(life.command.reason) or life.command.author.startswith(TRIALS)
    return "you" if is_own else "a person"


def told(intent: Intent, grants: Grants, sources: Container[str] = ()) -> str | None:
    """Return an intent in words of ours and numbers; None for those that a model is not told of.

    Args:
        sources: those that may be named.
    """
    match intent:
        case SetLearningRate():
            change = (
                f"= {intent.value:.5g}" if intent.value is not None else f"x {spelled_factor(intent.factor or 1.0, 5)}"
            )
            return f"lr {change}"
        case SetKnobs():
            changed = [each for each in intent.changes if each.knob in grants.knobs]
            told_of = [f"{each.knob!r} {_change(each.value, each.factor)}" for each in changed]
            others = len(intent.changes) - len(changed)
            return ", ".join(told_of + ([f"{others} other knobs"] if others else []))
        case SetMixture():
            weights = [f"{name!r} = {weight:.5g}" for name, weight in intent.weights.items() if name in sources]
            others = len(intent.weights) - len(weights)
            return "weights " + ", ".join(weights + ([f"of {others} other sources"] if others else []))
        case SetSchedule():
            return f"schedule {intent.shape} to x {intent.end:.5g}"
        case Rollback():
            return "rollback"
        case SkipSamples():
            return f"skip {intent.samples} samples"
        case Evaluate() | SaveCheckpoint():
            return None
    return intent.kind.replace("_", " ") if intent.changes_course else None


def _change(value: object, factor: float | None) -> str:
    if factor is not None:
        return f"x {spelled_factor(factor, 5)}"
    numbers = [number for number in finite_numbers(value) if math.isfinite(number)]
    return "= " + ", ".join(f"{number:.5g}" for number in numbers[:2]) if numbers else "changed"
