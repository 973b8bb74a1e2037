"""Health of a run: alerts, the values that support them, and the trust in a checkpoint."""

from typing import Annotated, Literal

from pydantic import Field

from control_plane.core.model.checkpoint_records import MAIN
from control_plane.core.model.intent_base import Message

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


class Evidence(Message):
    """Measurement behind an alert: the sign, its value, the window that it was compared with, and the threshold."""

    sign: str
    value: float
    threshold: float | None = None
    window_steps: int = 0
    mean: float | None = None
    deviation: float | None = None
    recent: Annotated[tuple[float, ...], Field(max_length=MAX_EVIDENCE_VALUES)] = ()


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
    def key(self) -> tuple[str, str, int, str, int]:
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


class HealthChange(Message):
    """Change that one look at the signs has made: alerts raised and cleared."""

    raised: tuple[Alert, ...] = ()
    cleared: tuple[Cleared, ...] = ()
