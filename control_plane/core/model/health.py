"""Health of a run: alerts, the values that support them, their records, and the trust in a checkpoint."""

from dataclasses import dataclass, field
from math import isfinite, isnan
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, PlainSerializer

from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAIN

MAX_EVIDENCE_VALUES = 16
"""Values quoted in one piece of evidence: the last ones of a window, enough to see the change."""

MAX_SENTENCE_CHARS = 400
MAX_SUBJECT_CHARS = 120

AlertKind = Literal[
    "non_finite",
    "gradient_overflow",
    "loss_scale_exhausted",
    "loss_spike",
    "gradient_spike",
    "slow_divergence",
    "plateau",
    "forgetting",
    "dead_units",
    "vanishing_layer",
    "exploding_layer",
    "attention_blow_up",
    "straggling_rank",
    "stalled_phase",
    "data_starvation",
    "memory_near_limit",
    "checkpoint_too_old",
    "bad_dynamics",
]
"""Kinds of alerts. `docs/signs.md` and `steer explain` tell of each what it means and what people do."""

Level = Literal["info", "warning", "critical"]

Trust = Literal["trusted", "suspect", "unknown"]
"""Of a checkpoint: saved while every check was green; while one was red; while one could not tell."""

MAKES_SUSPECT: frozenset[AlertKind] = frozenset(
    {
        "non_finite",
        "loss_scale_exhausted",
        "loss_spike",
        "gradient_spike",
        "slow_divergence",
        "forgetting",
        "dead_units",
        "vanishing_layer",
        "exploding_layer",
        "attention_blow_up",
    }
)
"""Kinds that speak of the weights: a checkpoint saved at or after their onset is suspect. The others speak of the
machine, of steps that were not taken, or of training that does no harm."""


def _spelled(value: float | None) -> float | str | None:
    if value is None or isfinite(value):
        return value
    return "NaN" if isnan(value) else ("Infinity" if value > 0 else "-Infinity")


Measured = Annotated[float, PlainSerializer(_spelled, when_used="json")]
"""A measured value, which may be NaN or infinite: JSON has neither, so a record spells them."""


class Evidence(Message):
    """Measurement behind an alert: the sign, its value, the window that it was compared with, and the threshold."""

    sign: str
    value: Measured
    threshold: Measured | None = None
    window_steps: int = 0
    mean: Measured | None = None
    deviation: Measured | None = None
    recent: Annotated[tuple[Measured, ...], Field(max_length=MAX_EVIDENCE_VALUES)] = ()


AlertKey = tuple[str, str, int, str, int]
"""Kind, subject, step of the onset, branch and training of an alert."""


class Alert(Message):
    """Alert of one kind about one subject (a layer, a rank, a data set; empty for the whole run).

    `onset_step` is the first step that the evidence speaks of, `step` the one whose boundary raised the alert. Two
    alerts with the same `key` are the same: a recovered run raises what it had raised before.
    """

    kind: AlertKind
    level: Level
    step: int
    onset_step: int
    sentence: Annotated[str, Field(max_length=MAX_SENTENCE_CHARS)]
    subject: Annotated[str, Field(max_length=MAX_SUBJECT_CHARS)] = ""
    evidence: tuple[Evidence, ...] = ()
    # A line for the `steer` command line, e.g. `set lr x0.5`; empty where nothing general can be advised.
    suggestion: str = ""
    branch: str = MAIN
    training: int = 1

    @property
    def key(self) -> AlertKey:
        """Identity: kind, subject, onset, branch, training."""
        return (self.kind, self.subject, self.onset_step, self.branch, self.training)


class Cleared(Message):
    """The condition of an alert has ended, at the boundary after `step`."""

    kind: AlertKind
    subject: str = ""
    onset_step: int
    step: int
    branch: str = MAIN
    training: int = 1

    @property
    def key(self) -> AlertKey:
        """Identity of the alert that it clears, see `Alert.key`."""
        return (self.kind, self.subject, self.onset_step, self.branch, self.training)


IDENTITY = set(Cleared.model_fields)
"""Fields of an alert that `Cleared` has, too."""


class HealthChange(Message):
    """Change that one look at the signs has made: alerts raised and cleared."""

    raised: tuple[Alert, ...] = ()
    cleared: tuple[Cleared, ...] = ()


class AlertRaised(Message):
    """An alert was raised. People name it by the `seq` of this record's entry.

    `reflex` is the name of the reflex that answers it with the commands of the same write; with `declined`, the reason
    why the reflex sent none: its budget is used up, it cools down, or there is nothing that it could do.
    """

    type: Literal["AlertRaised"] = "AlertRaised"
    alert: Alert
    generation: int
    reflex: str = ""
    declined: str = ""


class AlertCleared(Message):
    """The condition of the alert that entry `alert` raised has ended."""

    type: Literal["AlertCleared"] = "AlertCleared"
    alert: int
    cleared: Cleared
    generation: int


@dataclass(slots=True)
class AlertStatus:
    """One recorded alert, whether it has cleared, and the command that acknowledged it."""

    seq: int
    raised_at: str
    record: AlertRaised
    cleared: Cleared | None = None
    cleared_at: str | None = None
    acknowledged: UUID | None = None

    @property
    def alert(self) -> Alert:
        """The alert."""
        return self.record.alert


@dataclass(slots=True)
class AlertState:
    """Alerts of one run, as its journal has them. Only `state.evolve` changes it."""

    # By the seq of the record that raised it, in order.
    by_seq: dict[int, AlertStatus] = field(default_factory=dict)
    seq_of: dict[AlertKey, int] = field(default_factory=dict)
    # Kind and subject, with the step until which such alerts are snoozed; None: until the alert has cleared.
    snoozed: dict[tuple[str, str], int | None] = field(default_factory=dict)

    def find(self, key: AlertKey) -> AlertStatus | None:
        """Return the recorded alert of this key, or None."""
        seq = self.seq_of.get(key)
        return None if seq is None else self.by_seq[seq]

    def is_snoozed(self, alert: Alert, step: int) -> bool:
        """Return whether the alert is snoozed at step `step` of the run."""
        topic = (alert.kind, alert.subject)
        if topic not in self.snoozed:
            return False
        until = self.snoozed[topic]
        return until is None or step <= until

    def note_raised(self, seq: int, time: str, record: AlertRaised) -> None:
        """Take over an alert that was raised."""
        self.by_seq[seq] = AlertStatus(seq, time, record)
        self.seq_of[record.alert.key] = seq

    def note_cleared(self, time: str, record: AlertCleared) -> None:
        """Take over that an alert has cleared. A snooze until then has ended."""
        topic = (record.cleared.kind, record.cleared.subject)
        if status := self.find(record.cleared.key):
            status.cleared, status.cleared_at = record.cleared, time
        if topic in self.snoozed and self.snoozed[topic] is None:
            del self.snoozed[topic]
