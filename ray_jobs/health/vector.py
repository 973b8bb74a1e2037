"""Vector of float64 that each rank puts into the gather: of the same length and order on every rank, by construction.

    layout = VectorLayout(groups)              digest in the facts of a start, which must be equal on all ranks
    vector = layout.pack(signs, squares)       numbers of this rank
    signs, by_rank = layout.combine(vectors)   what all ranks' vectors say together

Element 0 is a bit mask of the signs that the rank has measured: a missing value is not a NaN, which was measured.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]

RANK_SIGNS = (
    "loss",
    "step_s",
    "own_step_s",
    "data_wait_s",
    "memory_bytes",
    "memory_limit_bytes",
    "tokens",
)
"""Numbers of each rank. `loss` is the rank's own; `tokens` those of its last step."""

SQUARES = ("weight", "gradient", "update")
"""Sums of squares over the elements that a rank owns, for each group of layers."""

HAS_LAYERS = len(RANK_SIGNS)
"""Bit of the mask that says that the sums of squares were measured."""

OF_SOURCES = ("loss", "samples")
"""Sums of each source of the run's data: of its samples' losses, and their number. By place, since sources come and go:
every rank knows the same sources, in the same order, at the same step."""


@dataclass(frozen=True, slots=True)
class LayerSums:
    """Sums of squares of one rank, in the order of the groups."""

    weight: Sequence[float]
    gradient: Sequence[float]
    update: Sequence[float]


class VectorLayout:
    """Order of the vector's elements for these groups of layers, and for up to `sources` sources of data."""

    def __init__(self, groups: Sequence[str], sources: int = 0) -> None:
        self.groups, self.sources = tuple(groups), sources
        self.names = (
            "measured",
            *RANK_SIGNS,
            *(f"{kind}/{group}" for kind in SQUARES for group in self.groups),
            *(f"source_{kind}/{place}" for kind in OF_SOURCES for place in range(sources)),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """SHA-256 over the names in their order; equal on all ranks, or they would take each other's numbers wrong."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def pack(self, signs: Mapping[str, float], sums: LayerSums | None, of_sources: Sequence[float] = ()) -> list[float]:
        """Return this rank's vector.

        Args:
            signs: by the names of `RANK_SIGNS`; others are ignored.
            of_sources: sums of the losses of each source, then the numbers of samples; empty: not measured.
        """
        mask = sum(1 << bit for bit, name in enumerate(RANK_SIGNS) if name in signs)
        measured = [float(signs.get(name, 0.0)) for name in RANK_SIGNS]
        if sums is None:
            squares = [0.0] * (len(SQUARES) * len(self.groups))
        else:
            mask |= 1 << HAS_LAYERS
            squares = [*sums.weight, *sums.gradient, *sums.update]
        known = min(self.sources, len(of_sources) // len(OF_SOURCES))
        halves = of_sources[:known], of_sources[len(of_sources) // 2 :][:known]
        by_place = [value for half in halves for value in (*half, *([0.0] * (self.sources - known)))]
        return [float(mask), *measured, *squares, *by_place]

    def combine(self, vectors: Vectors) -> "Gathered":
        """Return what the vectors of all ranks say together. `vectors`: ranks by elements, in rank order."""
        masks = vectors[:, 0].astype(np.int64)
        by_rank: dict[str, tuple[float, ...]] = {}
        for bit, name in enumerate(RANK_SIGNS):
            measured = (masks >> bit & 1).astype(bool)
            if measured.any():
                by_rank[name] = tuple(np.where(measured, vectors[:, 1 + bit], nan).tolist())
        begin, size = 1 + len(RANK_SIGNS), len(self.groups)
        # A sum that is not finite, of one that is not, is what is to be seen.
        with np.errstate(invalid="ignore", over="ignore"):
            sums = vectors[:, begin:].sum(axis=0).tolist()
        after = len(SQUARES) * size
        losses, samples = sums[after : after + self.sources], sums[after + self.sources :]
        layers = LayerSums(sums[:size], sums[size : 2 * size], sums[2 * size : after])
        has_layers = bool((masks >> HAS_LAYERS & 1).all())
        return Gathered(by_rank, layers if has_layers else None, tuple(zip(losses, samples, strict=True)))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Numbers of all ranks: `by_rank` in rank order, NaN where a rank has not measured; layers over all ranks.

    sources: by place, the sum of the losses of a source's samples over all ranks, and their number.
    """

    by_rank: Mapping[str, tuple[float, ...]]
    layers: LayerSums | None
    sources: tuple[tuple[float, float], ...] = ()

    def mean_loss(self) -> float | None:
        """Return the mean of the ranks' losses, which is not finite if one of them is not; None if not measured."""
        losses = self.by_rank.get("loss", ())
        return sum(losses) / len(losses) if losses else None

    def source_losses(self, names: Sequence[str]) -> dict[str, float]:
        """Return the mean loss of each source that had a sample, as `source_loss/NAME`. `names`: by place."""
        measured = zip(names, self.sources, strict=False)
        return {f"source_loss/{name}": total / count for name, (total, count) in measured if count > 0}

    def layer_signs(
        self, groups: Sequence[str], grad_norm: float | None, is_trained: Sequence[bool]
    ) -> dict[str, float]:
        """Return norms of each group by the names of the catalogue.

        `grad_norm` is the global norm before clipping, if known: clipping and loss scales multiply all gradients by one
        factor, which is taken back. A group that is not trained now (frozen) has a weight norm only.
        """
        if self.layers is None:
            return {}
        factor = _factor_before_clipping(self.layers.gradient, grad_norm)
        signs: dict[str, float] = {}
        numbers = zip(groups, self.layers.weight, self.layers.gradient, self.layers.update, is_trained, strict=True)
        for group, weight, gradient, update, trained in numbers:
            signs[f"weight_norm/{group}"] = norm = _root(weight)
            if trained:
                signs[f"layer_grad_norm/{group}"] = _root(gradient) * factor
                signs[f"update_norm/{group}"] = change = _root(update)
                if norm > 0:
                    signs[f"update_ratio/{group}"] = change / norm
        return signs


def _factor_before_clipping(squares: Sequence[float], grad_norm: float | None) -> float:
    measured = _root(sum(squares))
    if grad_norm is None or not isfinite(grad_norm) or not isfinite(measured) or measured == 0:
        return 1.0
    return grad_norm / measured


def _root(square: float) -> float:
    return sqrt(square) if square >= 0 else nan
