"""Detector of bad training dynamics: a hidden Markov model follows loss and gradient norm through its states."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from control_plane.core.health.detectors.trends import loss_of
from control_plane.core.health.dynamics import BUILT_IN, Features, forward
from control_plane.core.health.findings import Condition, Detector, Ended, Finding, Look
from control_plane.core.health.settings import DynamicsSettings
from control_plane.core.health.windows import Window
from control_plane.core.model.health import MAX_EVIDENCE_VALUES, AlertKind, Evidence


class BadDynamics(Detector):
    """Probability of a bad state that stays high for some blocks of steps."""

    name: ClassVar[str] = "bad_dynamics"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("bad_dynamics",)

    def __init__(self, settings: DynamicsSettings) -> None:
        self.settings, self.model = settings, settings.model or BUILT_IN
        self.features = Features(self.model.block_steps)
        self.probabilities: list[float] | None = None
        self.history = Window(MAX_EVIDENCE_VALUES)
        self.condition = Condition(confirm=settings.blocks, release=settings.blocks)

    @property
    def bad_probability(self) -> float:
        """Probability of all bad states together."""
        return sum(self.probabilities[state] for state in self.model.bad) if self.probabilities else 0.0

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Add loss and gradient norm, and follow the states when a block is complete."""
        loss = loss_of(look)
        row = self.features.push(loss[1], look.finite("grad_norm")) if loss else None
        if row is None:
            return
        self.probabilities = forward(self.model, self.probabilities, row)
        probability = min(1.0, self.bad_probability)
        self.history.push(probability)
        match self.condition.note(look.step, probability > self.settings.probability):
            case "began":
                onset = max(1, self.condition.onset - self.model.block_steps + 1)
                evidence = Evidence(
                    sign="dynamics/bad_probability",
                    value=probability,
                    threshold=self.settings.probability,
                    window_steps=self.model.block_steps,
                    recent=tuple(self.history.values),
                )
                yield Finding(
                    "bad_dynamics",
                    "info",
                    onset,
                    f"With probability {probability:.0%} the training is in a state that went wrong in earlier runs, "
                    f"since step {onset}: look at loss and gradient norm.",
                    (evidence,),
                    suggestion="save",
                )
            case "ended":
                yield Ended("bad_dynamics")

    def derived(self) -> dict[str, float]:
        """Return the most probable state and the probability of a bad one."""
        if self.probabilities is None:
            return {}
        state = max(range(len(self.probabilities)), key=self.probabilities.__getitem__)
        return {"dynamics/state": float(state), "dynamics/bad_probability": min(1.0, self.bad_probability)}

    def state(self) -> dict[str, Any]:
        """Return features, probabilities and condition as JSON."""
        return {
            "model": [self.model.block_steps, len(self.model.states)],
            "features": self.features.state(),
            "probabilities": self.probabilities,
            "history": self.history.state(),
            "condition": self.condition.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; that of a model of another shape is forgotten."""
        self.condition.restore(state["condition"])
        if state["model"] != [self.model.block_steps, len(self.model.states)]:
            return
        self.features.restore(state["features"])
        probabilities = state["probabilities"]
        self.probabilities = None if probabilities is None else [float(value) for value in probabilities]
        self.history.restore(state["history"])
