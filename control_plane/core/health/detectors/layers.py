"""Detectors inside the model: dead units, vanishing and exploding layers, attention that blows up or collapses."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from control_plane.core.health.findings import Conditions, Detector, Ended, Finding, Look
from control_plane.core.health.settings import AttentionSettings, DeadUnitSettings, LayerSettings
from control_plane.core.health.windows import Window, deviation, level_and_noise, mean, median
from control_plane.core.model.health import MAX_EVIDENCE_VALUES, AlertKind, Evidence, Level

FIRST_SAMPLES = 3
"""First samples of a sign, whose median is what later ones are compared with where drift itself is the fault."""

CONFIRM = 2
FASTER_THAN_GROWTH = 1.5
"""Factor above the largest value of the window: growth that goes with the square of the steps stays below it."""


class LayerDetector(Detector):
    """Base of detectors with a window for each sign of a layer, and a condition for each layer."""

    kind: ClassVar[AlertKind]
    level: ClassVar[Level] = "warning"
    suggestion: ClassVar[str] = ""

    def __init__(self, window_samples: int) -> None:
        self.window_samples = window_samples
        self.windows: dict[str, Window] = {}
        self.first: dict[str, list[float]] = {}
        self.conditions = Conditions(confirm=CONFIRM, release=CONFIRM)

    @abstractmethod
    def reasons(self, look: Look) -> Iterator[tuple[str, Evidence | None, str]]:
        """Yield (layer, evidence, sentence) for every layer that was measured; evidence is None if it is well."""

    def past(self, sign: str) -> list[float]:
        """Return the window of a sign."""
        return self.windows[sign].values if sign in self.windows else []

    def base(self, sign: str) -> float | None:
        """Return the median of a sign's first samples, or None while there are too few."""
        first = self.first.get(sign, [])
        return median(first) if len(first) >= FIRST_SAMPLES else None

    def keep(self, sign: str, value: float) -> None:
        """Add a value to the window of a sign."""
        self.windows.setdefault(sign, Window(self.window_samples)).push(value)
        first = self.first.setdefault(sign, [])
        if len(first) < FIRST_SAMPLES:
            first.append(value)

    def evidence(self, sign: str, value: float, threshold: float) -> Evidence:
        """Return the evidence for a value beyond its threshold."""
        past = self.past(sign)
        return Evidence(
            sign=sign,
            value=value,
            threshold=threshold,
            window_steps=len(past),
            mean=mean(past) if past else None,
            deviation=deviation(past) if past else None,
            recent=(*past[1 - MAX_EVIDENCE_VALUES :], value),
        )

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Judge every layer that was measured."""
        bad: dict[str, tuple[Evidence, str]] = {}
        measured: dict[str, None] = {}
        for layer, evidence, sentence in self.reasons(look):
            measured[layer] = None
            if evidence and layer not in bad:
                bad[layer] = (evidence, sentence)
        for layer in measured:
            condition = self.conditions[layer]
            match condition.note(look.step, layer in bad):
                case "began":
                    evidence, sentence = bad[layer]
                    yield Finding(
                        self.kind,
                        self.level,
                        condition.onset,
                        sentence,
                        (evidence,),
                        subject=layer,
                        suggestion=self.suggestion,
                    )
                case "ended":
                    yield Ended(self.kind, layer)

    def doubts(self) -> Iterable[str]:
        """Return whether a layer waits for confirmation."""
        if self.conditions.is_doubtful:
            yield f"{self.name}: a layer that may be bad"

    def state(self) -> dict[str, Any]:
        """Return windows and conditions as JSON."""
        return {
            "windows": {sign: window.state() for sign, window in self.windows.items()},
            "first": {sign: list(values) for sign, values in self.first.items()},
            "conditions": self.conditions.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        for sign, values in state["windows"].items():
            self.windows[sign] = Window(self.window_samples)
            self.windows[sign].restore(values)
        self.first = {sign: [float(value) for value in values] for sign, values in state["first"].items()}
        self.conditions.restore(state["conditions"])


class DeadUnits(LayerDetector):
    """Share of dormant units that has grown, and hidden states that have collapsed.

    Source: ReDo (dormant: mean activation at most 0.025 of the layer's mean). Some layers have many dormant units from
    the start, or get them slowly, and train well: what counts is a jump above the last measurements.
    """

    name: ClassVar[str] = "dead_units"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("dead_units",)
    kind: ClassVar[AlertKind] = "dead_units"
    suggestion: ClassVar[str] = "rollback trusted --set lr*=0.5"
    WINDOW = 8

    def __init__(self, settings: DeadUnitSettings) -> None:
        super().__init__(self.WINDOW)
        self.settings = settings

    def reasons(self, look: Look) -> Iterator[tuple[str, Evidence | None, str]]:
        """Look at `dormant` and `hidden_std`."""
        for block, share in look.family("dormant"):
            sign, base = f"dormant/{block}", self.base(f"dormant/{block}")
            # A share that grows slowly is how sparse features are learned: ReLU layers reach 0.8 and train well.
            # Units die in one blow, or nearly all of them.
            threshold = 2.0
            if base is not None:
                blow = max(self.settings.share, median(self.past(sign)) + self.settings.blow)
                threshold = min(blow, max(self.settings.nearly_all, base + self.settings.blow))
            is_bad = share >= threshold
            yield (
                block,
                self.evidence(sign, share, threshold) if is_bad else None,
                f"{share:.0%} of the units of {block} are dormant at step {look.step}; at first it was "
                f"{base or 0.0:.0%}.",
            )
            if not is_bad:
                self.keep(sign, share)
        for block, value in look.family("hidden_std"):
            sign, past = f"hidden_std/{block}", self.past(f"hidden_std/{block}")
            threshold = self.settings.collapse * median(past) if len(past) >= FIRST_SAMPLES else 0.0
            is_bad = value < threshold
            yield (
                block,
                self.evidence(sign, value, threshold) if is_bad else None,
                f"The hidden states behind {block} have collapsed: their standard deviation is {value:.2g} at step "
                f"{look.step}, below {threshold:.2g}. All inputs look the same there.",
            )
            if not is_bad:
                self.keep(sign, value)


class VanishingLayer(LayerDetector):
    """Gradient of a group of layers that is next to nothing, compared with its past or with the other groups."""

    name: ClassVar[str] = "vanishing_layer"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("vanishing_layer",)
    kind: ClassVar[AlertKind] = "vanishing_layer"

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings.window_samples)
        self.settings = settings

    def reasons(self, look: Look) -> Iterator[tuple[str, Evidence | None, str]]:
        """Look at `layer_grad_norm`."""
        norms = dict(look.family("layer_grad_norm"))
        if not norms:
            return
        # Compared with the largest group: when all gradients shrink together, the run has converged.
        top = max(norms.values())
        for group, norm in norms.items():
            sign, past = f"layer_grad_norm/{group}", self.past(f"layer_grad_norm/{group}")
            share = max(0.0, norm / top) if top > 0 else 1.0
            usual = median(past) if len(past) >= self.settings.least_samples else None
            threshold = self.settings.vanish_beside_others
            if usual is not None:
                threshold = max(threshold, self.settings.vanish * usual)
            # No gradient from the first step on: the group is not used by this training, which is no fault of it.
            is_bad = share < threshold and (usual is None or usual > 0) and (norm > 0 or usual is not None)
            yield (
                group,
                self.evidence(sign, share, threshold) if is_bad else None,
                f"The gradient of {group} has vanished: its norm is {norm:.2g} at step {look.step}, {share:.1g} of the "
                f"largest group's" + (f", and was {usual:.1g} of it before." if usual is not None else "."),
            )
            if not is_bad:
                self.keep(sign, share)


class ExplodingLayer(LayerDetector):
    """Gradient, update or weights of a group of layers that grow out of all proportion."""

    name: ClassVar[str] = "exploding_layer"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("exploding_layer",)
    kind: ClassVar[AlertKind] = "exploding_layer"
    suggestion: ClassVar[str] = "rollback trusted --set lr*=0.5"

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings.window_samples)
        self.settings = settings

    def reasons(self, look: Look) -> Iterator[tuple[str, Evidence | None, str]]:
        """Look at `layer_grad_norm`, `update_ratio` and `weight_norm`."""
        at = self.settings
        yield from self._signs(look, "layer_grad_norm", "gradient norm", lambda usual: at.explode * usual)
        yield from self._signs(
            look,
            "update_ratio",
            "update, as a share of the weights,",
            lambda usual: max(at.update_ratio, at.update_ratio_growth * usual),
        )
        yield from self._signs(look, "weight_norm", "weight norm", lambda usual: at.weight_growth * usual)

    def _signs(
        self, look: Look, family: str, noun: str, threshold_of: Callable[[float], float]
    ) -> Iterator[tuple[str, Evidence | None, str]]:
        for group, value in look.family(family):
            sign, past = f"{family}/{group}", self.past(f"{family}/{group}")
            usual = median(past) if len(past) >= self.settings.least_samples else 0.0
            # A sign that grows from zero in a warm-up is a factor above its median, but not above its last value.
            threshold = max(threshold_of(usual), FASTER_THAN_GROWTH * max(past, default=0.0))
            is_bad = usual > 0 and value > threshold
            yield (
                group,
                self.evidence(sign, value, threshold) if is_bad else None,
                f"The {noun} of {group} explodes: {value:.3g} at step {look.step}, {usual:.3g} before.",
            )
            # Cut so far that it does not lift the threshold for the sample that is to confirm it.
            self.keep(sign, threshold / FASTER_THAN_GROWTH if is_bad else value)


class AttentionBlowUp(LayerDetector):
    """Attention logits above their limit, and attention entropies that fall out of their window.

    Sources: Megatron's QK-clip (largest logit above 100); QK spectral entropy (arXiv 2606.28116: a fall of more than
    five deviations below a window of 128 samples comes long before the loss moves). A fall must also be a share of the
    level: entropies of a young training fall steadily, with little noise.
    """

    name: ClassVar[str] = "attention_blow_up"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("attention_blow_up",)
    kind: ClassVar[AlertKind] = "attention_blow_up"
    suggestion: ClassVar[str] = "set lr*=0.5"

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__(settings.window_samples)
        self.settings = settings

    def reasons(self, look: Look) -> Iterator[tuple[str, Evidence | None, str]]:
        """Look at `attention_logit_max`, `attention_entropy` and `qk_entropy`."""
        for block, value in look.family("attention_logit_max"):
            sign, limit = f"attention_logit_max/{block}", self.settings.logit_max
            yield (
                block,
                self.evidence(sign, value, limit) if value > limit else None,
                f"The largest attention logit of {block} is {value:.4g} at step {look.step}; above {limit:g} the "
                "softmax is saturated, and gradients through it vanish.",
            )
            self.keep(sign, value)
        yield from self._falls(look, "attention_entropy", "attention entropy", self.settings.entropy_fall)
        yield from self._falls(look, "qk_entropy", "QK spectral entropy", self.settings.qk_entropy_fall)

    def _falls(self, look: Look, family: str, noun: str, share: float) -> Iterator[tuple[str, Evidence | None, str]]:
        for block, value in look.family(family):
            sign, past = f"{family}/{block}", self.past(f"{family}/{block}")
            threshold = -1.0
            if len(past) >= self.settings.least_samples:
                middle, noise = level_and_noise(past)
                threshold = middle - max(self.settings.sigmas * noise, share * middle)
            is_bad = value < threshold
            yield (
                block,
                self.evidence(sign, value, threshold) if is_bad else None,
                f"The {noun} of {block} has fallen to {value:.3g} at step {look.step}, below {threshold:.3g}: its "
                "attention collapses.",
            )
            self.keep(sign, max(value, threshold))
