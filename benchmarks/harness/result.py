"""Result of a benchmark: figures, their targets, and the verdict.

A target is a `Bound`, `{"max": 1.0}` or `{"min": 0.99}` or both, under the name of the figure that it bounds. The
verdict is computed from figures and targets alone, in `met`, for all benchmarks. A benchmark that bounds the end of an
interval may list targets as `undecided`: their verdict is "not proved" instead of "not met".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Verdict = Literal["met", "not met", "not proved"]


class Bound(TypedDict, total=False):
    """Inclusive bounds of a figure."""

    max: float
    min: float


@dataclass(frozen=True)
class Table:
    """Comparison of the arms: each row is a name and one text for each of `arms`."""

    title: str
    arms: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """Result of one benchmark. `n` is the number of repetitions, in the unit of the catalogue."""

    figures: Mapping[str, float]
    targets: Mapping[str, Bound]
    n: int
    tables: tuple[Table, ...] = ()
    # Targets that, if not met, are not shown to be missed either: more measurements could decide.
    undecided: frozenset[str] = frozenset()

    @property
    def met(self) -> bool:
        """True if every target is met."""
        return met(self.figures, self.targets)

    @property
    def verdict(self) -> Verdict:
        """Overall verdict: `not proved` if no target is shown to be missed, but not all are shown to be met."""
        verdicts = {self.verdict_on(name) for name in self.targets}
        if not verdicts or "not met" in verdicts:
            return "not met"
        return "not proved" if "not proved" in verdicts else "met"

    def verdict_on(self, target: str) -> Verdict:
        """Return the verdict on one target."""
        if met(self.figures, {target: self.targets[target]}):
            return "met"
        return "not proved" if target in self.undecided else "not met"

    def to_json(self, benchmark: str, machine: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
        """Return the object that `--json` prints. A figure that is not a finite number is null."""
        figures = {name: value if _finite(value) else None for name, value in self.figures.items()}
        answer = {"benchmark": benchmark, "figures": figures, "targets": dict(self.targets), "met": self.met}
        answer["verdict"] = self.verdict
        return answer | {"n": self.n, "machine": dict(machine), "versions": dict(versions)}


def met(figures: Mapping[str, float | None], targets: Mapping[str, Bound]) -> bool:
    """Return whether there are targets, and each one's figure was measured, is finite and within its bound.

    Raises `ValueError` for a target without a bound: it would always be met.
    """
    return bool(targets) and all(_within(figures.get(name), bound) for name, bound in targets.items())


def _within(figure: float | None, bound: Bound) -> bool:
    if not bound or not set(bound) <= {"max", "min"} or not all(_finite(end) for end in bound.values()):
        raise ValueError(f"{bound} is not a bound: give 'max', 'min' or both, as finite numbers")
    if figure is None or not _finite(figure):
        return False
    return bound.get("min", -math.inf) <= figure <= bound.get("max", math.inf)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
