"""Detectors of numbers that are not finite, and of overflows in fp16 trainings."""

from collections.abc import Iterator, Mapping
from math import isfinite, isnan
from typing import Any, ClassVar

from control_plane.core.health.findings import Condition, Detector, Ended, Finding, Look
from control_plane.core.health.settings import NonFiniteSettings, PrecisionSettings
from control_plane.core.model.health import AlertKind, Evidence

RESCUE = "rollback trusted --set lr*=0.5"


class NonFinite(Detector):
    """Loss or gradient norm that is NaN or infinite.

    A gradient norm that is not finite in a training with loss scaling, or at a step that was skipped, is an overflow,
    which changes no weight: that is for `Overflow`. A loss that is not finite is never routine.
    """

    urgent: ClassVar[bool] = True
    name: ClassVar[str] = "non_finite"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("non_finite",)

    def __init__(self, settings: NonFiniteSettings) -> None:
        self.condition = Condition(release=settings.clear_steps)
        self.skipped: float | None = None

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Look at loss, gradient norm and evaluation losses."""
        before, self.skipped = self.skipped, look.finite("skipped_steps")
        was_skipped = self.skipped is not None and before is not None and self.skipped > before
        harmless = was_skipped or "loss_scale" in look.signs
        culprits = [
            name
            for name, value in look.signs.items()
            if not isfinite(value) and (_is_loss(name) or (name == "grad_norm" and not harmless))
        ]
        if not culprits and "loss_local" not in look.signs and "loss" not in look.signs:
            return
        match self.condition.note(look.step, bool(culprits)):
            case "began":
                culprits.sort()
                first = culprits[0]
                ranks = [str(rank) for rank, value in enumerate(look.by_rank.get(first, ())) if not isfinite(value)]
                where = f" on rank {', '.join(ranks[:8])}" if 0 < len(ranks) < len(look.by_rank[first]) else ""
                what = "not a number" if isnan(look.signs[first]) else "infinite"
                yield Finding(
                    "non_finite",
                    "critical",
                    self.condition.onset,
                    f"{first} is {what}{where} after step {look.step}: from here on, weights may hold no information.",
                    tuple(Evidence(sign=name, value=look.signs[name]) for name in culprits[:4]),
                    suggestion=RESCUE,
                )
            case "ended":
                yield Ended("non_finite")

    def state(self) -> dict[str, Any]:
        """Return condition and count as JSON."""
        return {"condition": self.condition.state(), "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.condition.restore(state["condition"])
        self.skipped = None if state["skipped"] is None else float(state["skipped"])


def _is_loss(name: str) -> bool:
    return name in ("loss", "loss_local") or (name.startswith(("eval/", "heldout/")) and name.endswith("_loss"))


class Overflow(Detector):
    """Skipped steps of a training in 16 bits, and a loss scale that cannot fall any further.

    Source of the second: DeepSpeed `runtime/fp16/loss_scaler.py`, which raises at an overflow with the smallest scale.
    """

    urgent: ClassVar[bool] = True
    name: ClassVar[str] = "overflow"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("gradient_overflow", "loss_scale_exhausted")

    def __init__(self, settings: PrecisionSettings) -> None:
        self.settings = settings
        self.skipped: float | None = None
        self.row = 0
        self.overflow = Condition(release=settings.clear_steps)
        self.exhausted = Condition(release=settings.clear_steps)
        self.row_began = 0

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the count of skipped steps with that of the step before."""
        now = look.finite("skipped_steps")
        if now is None:
            return
        before, self.skipped = self.skipped, now
        # The first count is of steps that nobody here has seen, and a smaller one of another training.
        has_overflowed = before is not None and now > before
        self.row = self.row + 1 if has_overflowed else 0
        if self.row == 1:
            self.row_began = look.step
        scale, least = look.finite("loss_scale"), look.finite("loss_scale_min")
        at_minimum = scale is not None and least is not None and scale <= least
        match self.overflow.note(look.step, has_overflowed):
            case "began":
                yield Finding(
                    "gradient_overflow",
                    "info",
                    look.step,
                    f"Gradients overflowed at step {look.step}: the optimizer skipped it"
                    + (f", and the loss scale is now {scale:g}" if scale else "")
                    + ". One now and then is normal.",
                    self._evidence(now, before, scale, least),
                )
            case "ended":
                yield Ended("gradient_overflow")
        is_exhausted = has_overflowed and (at_minimum or self.row >= self.settings.consecutive)
        match self.exhausted.note(look.step, is_exhausted):
            case "began":
                why = f"at the smallest loss scale, {least:g}" if at_minimum else f"{self.row} times in a row"
                yield Finding(
                    "loss_scale_exhausted",
                    "critical",
                    self.row_began,
                    f"Gradients overflowed {why}: no step is taken any more, and no smaller scale can help.",
                    self._evidence(now, before, scale, least),
                    suggestion=RESCUE,
                )
            case "ended":
                yield Ended("loss_scale_exhausted")

    def _evidence(
        self, skipped: float, before: float | None, scale: float | None, least: float | None
    ) -> tuple[Evidence, ...]:
        count = Evidence(sign="skipped_steps", value=skipped, threshold=before)
        return (count,) if scale is None else (count, Evidence(sign="loss_scale", value=scale, threshold=least))

    def state(self) -> dict[str, Any]:
        """Return counts and conditions as JSON."""
        return {
            "skipped": self.skipped,
            "row": self.row,
            "row_began": self.row_began,
            "overflow": self.overflow.state(),
            "exhausted": self.exhausted.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.skipped = None if state["skipped"] is None else float(state["skipped"])
        self.row, self.row_began = int(state["row"]), int(state["row_began"])
        self.overflow.restore(state["overflow"])
        self.exhausted.restore(state["exhausted"])
