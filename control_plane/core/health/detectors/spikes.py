"""Detectors of sudden outliers: loss spikes and gradient spikes."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import exp, isfinite, log
from typing import Any, ClassVar

from control_plane.core.health.findings import Condition, Detector, Ended, Finding, Look
from control_plane.core.health.settings import SpikeSettings
from control_plane.core.health.windows import Window, deviation, level_and_noise, mean
from control_plane.core.model.health import MAX_EVIDENCE_VALUES, AlertKind, Evidence

FIRST_SAMPLES = 16
"""Samples at the beginning of a run whose mean is the scale of its loss."""

LEAST_OF_FIRST = 0.05
"""Share of the first loss that a rise must have: near zero, where a run has learned its data by heart, the loss of a
batch jumps by factors and means nothing."""

IMPLAUSIBLE = 10.0
"""Factor by which no norm exceeds the largest ones of its window in a healthy training, twice within three steps."""

SCORE_STEPS = 10_000
"""Steps that the spike score looks back on (AdaGC, arXiv 2502.11034)."""

SCORE_BUCKET = 100
LEAST_REACHED = 3
CONFIRM, OF = 2, 3
"""Outliers, and steps among which they must be, to make a spike. Heavy-tailed noise gives single outliers."""


class Spike(Detector):
    """Sign that jumps out of a window of its own past.

    After OLMo-core's rule (`train/callbacks/stability_monitor.py`: mean + 6 sigma of the last 128), with three changes
    that keep healthy runs silent: the noise is the larger one of standard deviation and scaled quartiles; a rise
    must also count as a factor; one outlier counts alone only if it is far out. Outliers enter the window cut to the
    threshold, so that the window follows a new level and no outlier widens it.
    """

    urgent: ClassVar[bool] = True
    sign: ClassVar[str]

    @property
    @abstractmethod
    def sigmas(self) -> float:
        """Deviations above the window's median, on its scale, that an outlier has at least."""

    def __init__(self, settings: SpikeSettings) -> None:
        self.settings = settings
        self.window = Window(settings.window_steps)
        self.condition = Condition(CONFIRM, OF, settings.clear_steps)

    @abstractmethod
    def tested(self, look: Look) -> tuple[str, float, float] | None:
        """Return the sign that was measured, its value to test, and the value for the window; None: not measured."""

    @abstractmethod
    def bounds(self, past: Sequence[float]) -> tuple[float, float]:
        """Return the values above which one of several, and a single one, is an outlier."""

    @abstractmethod
    def finding(self, look: Look, sign: str, evidence: Evidence) -> Finding:
        """Return the alert for a spike that has begun."""

    def to_window(self, value: float) -> float:
        """Return the value on the window's scale."""
        return value

    def from_window(self, value: float) -> float:
        """Return a value of the window on the sign's scale."""
        return value

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the sign with its window, then add it."""
        tested = self.tested(look)
        if tested is None:
            return
        sign, value, for_window = tested
        if len(self.window) < self.settings.least_steps:
            self.window.push(self.to_window(for_window))
            return
        if is_within(self.to_window(value), self.window.values, self.sigmas):
            self.window.push(self.to_window(for_window))
            self.note_outlier(look.step, False)
            if self.condition.note(look.step, False) == "ended":
                yield Ended(self.kinds[0])
            return
        outlier, extreme = self.bounds(self.window.values)
        is_outlier = value > outlier
        self.note_outlier(look.step, is_outlier)
        evidence = self._evidence(sign, value, outlier) if is_outlier else None
        self.window.push(self.to_window(min(for_window, outlier)))
        match self.condition.note(look.step, is_outlier, is_sure=value > extreme):
            case "began" if evidence:
                yield self.finding(look, sign, evidence)
            case "ended":
                yield Ended(self.kinds[0])

    def note_outlier(self, step: int, is_outlier: bool) -> None:
        """Count the outliers, where a detector keeps a score of them."""

    def doubts(self) -> Iterable[str]:
        """Return whether the window is filling, or an outlier waits for confirmation."""
        if 0 < len(self.window) < self.settings.least_steps:
            yield f"{self.sign}: {len(self.window)} of {self.settings.least_steps} steps seen"
        if self.condition.is_doubtful:
            yield f"{self.sign}: an outlier that may be a spike"

    def state(self) -> dict[str, Any]:
        """Return window and condition as JSON."""
        return {"window": self.window.state(), "condition": self.condition.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.window.restore(state["window"])
        self.condition.restore(state["condition"])

    def _evidence(self, sign: str, value: float, threshold: float) -> Evidence:
        values = [self.from_window(one) for one in self.window.values]
        return Evidence(
            sign=sign,
            value=value,
            threshold=threshold,
            window_steps=len(values),
            mean=mean(values),
            deviation=deviation(values),
            recent=(*values[1 - MAX_EVIDENCE_VALUES :], value),
        )


class LossSpike(Spike):
    """Loss that jumps up.

    The window holds rank 0's own loss, which is there at every step. The mean over all ranks, where a gather has ended,
    has the same level and less noise, and is compared with the same window.
    """

    name: ClassVar[str] = "loss_spike"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("loss_spike",)
    sign: ClassVar[str] = "loss"

    def __init__(self, settings: SpikeSettings) -> None:
        super().__init__(settings)
        self.first: list[float] = []
        self.buckets: list[list[int]] = []

    @property
    def sigmas(self) -> float:
        """Deviations of the loss."""
        return self.settings.sigmas

    def tested(self, look: Look) -> tuple[str, float, float] | None:
        """Return the larger one of the rank's own loss and the mean."""
        values = {name: value for name in ("loss_local", "loss") if (value := look.finite(name)) is not None}
        if not values:
            return None
        sign = max(values, key=lambda name: values[name])
        if len(self.first) < FIRST_SAMPLES:
            self.first.append(values[sign])
        return sign, values[sign], values.get("loss_local", values[sign])

    def bounds(self, past: Sequence[float]) -> tuple[float, float]:
        """Return thresholds above the median: in deviations, but no smaller than a share of the level.

        Losses of small batches, and squared errors above all, are heavy-tailed: where all of the window is positive,
        the deviations of the logarithm count, too.
        """
        middle, noise = level_and_noise(past)
        first = abs(mean(self.first)) if self.first else 0.0
        floor = max((self.settings.factor - 1.0) * abs(middle), LEAST_OF_FIRST * first)
        rise = max(self.settings.sigmas * noise, floor)
        outlier, extreme = middle + rise, middle + self.settings.extreme * rise
        if min(past) > 0:
            log_middle, log_noise = level_and_noise([log(value) for value in past])
            factor = self.settings.log_sigmas * log_noise
            outlier = max(outlier, _exp(log_middle + factor))
            extreme = max(extreme, _exp(log_middle + self.settings.extreme * factor))
        return outlier, extreme

    def finding(self, look: Look, sign: str, evidence: Evidence) -> Finding:
        """Return the alert, with a rollback as advice."""
        return Finding(
            "loss_spike",
            "warning",
            self.condition.onset,
            f"{sign} jumped to {evidence.value:.4g} at step {look.step}; its last {evidence.window_steps} steps were "
            f"{evidence.mean:.4g} on average, and {evidence.threshold:.4g} is the threshold.",
            (evidence,),
            suggestion="rollback trusted --set lr*=0.5",
        )

    def note_outlier(self, step: int, is_outlier: bool) -> None:
        """Count outliers in buckets of steps, for the spike score."""
        bucket = step // SCORE_BUCKET
        if is_outlier and self.buckets and self.buckets[-1][0] == bucket:
            self.buckets[-1][1] += 1
        elif is_outlier:
            self.buckets.append([bucket, 1])
        while self.buckets and self.buckets[0][0] <= bucket - SCORE_STEPS // SCORE_BUCKET:
            del self.buckets[0]

    def derived(self) -> dict[str, float]:
        """Return the spike score."""
        return {"spike_score": sum(count for _, count in self.buckets) / SCORE_STEPS} if self.first else {}

    def state(self) -> dict[str, Any]:
        """Return window, condition, first losses and counts as JSON."""
        return super().state() | {"first": list(self.first), "buckets": [list(one) for one in self.buckets]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        super().restore(state)
        self.first = [float(value) for value in state["first"]]
        self.buckets = [[int(bucket), int(count)] for bucket, count in state["buckets"]]


class GradientSpike(Spike):
    """Gradient norm that jumps up, on a logarithmic scale: norms are heavy-tailed, and change by factors.

    A norm below the clipping threshold is none: the optimizer takes it as it is. Mean and deviation in the evidence are
    on the linear scale, as ZClip needs them (arXiv 2504.02507).
    """

    name: ClassVar[str] = "gradient_spike"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("gradient_spike",)
    sign: ClassVar[str] = "grad_norm"

    def __init__(self, settings: SpikeSettings) -> None:
        super().__init__(settings)
        self.clipping = 0.0

    def state(self) -> dict[str, Any]:
        """Return window, condition and clipping threshold as JSON."""
        return super().state() | {"clipping": self.clipping}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        super().restore(state)
        self.clipping = float(state["clipping"])

    @property
    def sigmas(self) -> float:
        """Deviations of the norm's logarithm."""
        return self.settings.log_sigmas

    def tested(self, look: Look) -> tuple[str, float, float] | None:
        """Return the norm over all ranks."""
        self.clipping = look.finite("max_grad_norm") or 0.0
        value = look.finite("grad_norm")
        return None if value is None or value <= 0 else ("grad_norm", value, value)

    def to_window(self, value: float) -> float:
        """Return the logarithm."""
        return log(value)

    def from_window(self, value: float) -> float:
        """Return the norm."""
        return exp(value)

    def bounds(self, past: Sequence[float]) -> tuple[float, float]:
        """Return thresholds as multiples of the median; the window holds logarithms.

        Where noise spans decades, as in a training that has nearly converged, what is ten times the largest norms of
        the window is an outlier as well, after Megatron's rule (`core/rerun_state_machine.py`).
        """
        middle, noise = level_and_noise(past)
        rise = max(self.settings.log_sigmas * noise, log(self.settings.factor))
        # The two largest may be outliers of just now.
        largest = sorted(past)[-3] - middle
        outlier = _exp(middle + min(rise, largest + log(IMPLAUSIBLE)))
        extreme = _exp(middle + min(self.settings.extreme * rise, largest + 2 * log(IMPLAUSIBLE)))
        return max(outlier, self.clipping), max(extreme, self.clipping)

    def finding(self, look: Look, sign: str, evidence: Evidence) -> Finding:
        """Return the alert, with clipping as advice."""
        usual = evidence.mean or 0.0
        return Finding(
            "gradient_spike",
            "warning",
            self.condition.onset,
            f"The gradient norm jumped to {evidence.value:.4g} at step {look.step}; its last {evidence.window_steps} "
            f"steps were {usual:.4g} on average, and {evidence.threshold:.4g} is the threshold.",
            (evidence,),
            suggestion=f"set gradient_clipping={usual + 2.5 * (evidence.deviation or 0.0):.3g}",
        )


def is_within(value: float, past: Sequence[float], sigmas: float) -> bool:
    """Return whether a value is surely no outlier, without thresholds: those cost most of a look at a usual step.

    By Cantelli's inequality at most n / (1 + k^2) of n values lie k deviations or more above their mean, and the median
    is at most one deviation away from it: what more of them reach cannot lie `sigmas` deviations above the median,
    with k = sigmas - 1. At least three must reach it: no outlier is below the third largest (`GradientSpike.bounds`).
    """
    reached = len([one for one in past if one >= value])
    beyond = max(0.0, sigmas - 1.0)
    return reached >= LEAST_REACHED and reached > len(past) / (1.0 + beyond * beyond)


def _exp(value: float) -> float:
    return exp(value) if value < 700 and isfinite(value) else 1.7976931348623157e308
