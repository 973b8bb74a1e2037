"""Findings of detectors: one look at the signs, a condition with confirmation, and the base class of detectors."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, ClassVar, Literal

from control_plane.core.model.health import AlertKind, Evidence, Level


class Look:
    """Signs after one step; `by_rank` holds, where a gather has ended, one value a rank."""

    def __init__(
        self, step: int, signs: Mapping[str, float], by_rank: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self.step, self.signs, self.by_rank = step, signs, by_rank or {}
        self._families: dict[str, list[tuple[str, float]]] | None = None

    def finite(self, name: str) -> float | None:
        """Return a sign's value, or None if it was not measured or is not finite."""
        value = self.signs.get(name)
        if value is None or -MOST <= value <= MOST:
            return value
        return _bounded(value) if isfinite(value) else None

    def ranks(self, name: str) -> Sequence[float]:
        """Return a sign's value of every rank, NaN where it is not finite; empty where no gather has ended."""
        return [_bounded(value) if isfinite(value) else nan for value in self.by_rank.get(name, ())]

    def family(self, name: str) -> Sequence[tuple[str, float]]:
        """Return (own name, value) of all finite signs `name/...`, in the order of their names."""
        if self._families is None:
            self._families = self._by_family()
        return self._families.get(name, ())

    def _by_family(self) -> dict[str, list[tuple[str, float]]]:
        """Return the finite signs of all families: at most steps there are none, and one pass finds them for all."""
        families: dict[str, list[tuple[str, float]]] = {}
        for name in sorted(name for name in self.signs if "/" in name):
            if isfinite(self.signs[name]):
                family, _, own = name.partition("/")
                families.setdefault(family, []).append((own, _bounded(self.signs[name])))
        return families


MOST = 1e100
"""Bound of a sign's size: its square, summed over a window, is still a finite number."""


def _bounded(value: float) -> float:
    return max(-MOST, min(MOST, value))


@dataclass(frozen=True, slots=True)
class Finding:
    """Condition that has begun: an alert without its branch."""

    kind: AlertKind
    level: Level
    onset_step: int
    sentence: str
    evidence: tuple[Evidence, ...]
    subject: str = ""
    suggestion: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """Condition that has ended."""

    kind: AlertKind
    subject: str = ""


class Condition:
    """Condition that begins when `confirm` of the last `of` samples are bad, and ends after `release` good ones.

    Invariant: `onset` is the step of the first bad sample that counts, while the condition is open or in doubt.
    """

    def __init__(self, confirm: int = 1, of: int | None = None, release: int = 1) -> None:
        self.confirm, self.of, self.release = confirm, of or confirm, release
        self.is_open = False
        self.onset = 0
        self._good = 0
        # Bad samples among the last `of`: [samples ago, step].
        self._bad: list[list[int]] = []

    def note(self, step: int, is_bad: bool, is_sure: bool = False) -> Literal["began", "ended"] | None:
        """Take one sample in; `is_sure` needs no confirmation. Return what has changed."""
        if self.is_open:
            self._good = 0 if is_bad else self._good + 1
            if self._good < self.release:
                return None
            self.is_open = False
            return "ended"
        if not is_bad and not self._bad:
            return None
        self._bad = [[ago + 1, at] for ago, at in self._bad if ago + 1 < self.of]
        if not is_bad:
            return None
        self._bad.append([0, step])
        if not is_sure and len(self._bad) < self.confirm:
            return None
        self.is_open, self._good, self.onset, self._bad = True, 0, self._bad[0][1], []
        return "began"

    @property
    def is_doubtful(self) -> bool:
        """State in which bad samples wait for confirmation."""
        return bool(self._bad)

    def state(self) -> list[Any]:
        """Return the state as JSON."""
        return [self.is_open, self._good, self.onset, [list(one) for one in self._bad]]

    def restore(self, state: Sequence[Any]) -> None:
        """Continue from a state."""
        self.is_open, self._good, self.onset = bool(state[0]), int(state[1]), int(state[2])
        self._bad = [[int(ago), int(step)] for ago, step in state[3]]


class Conditions:
    """One condition a subject: a layer, a rank, a data set."""

    def __init__(self, confirm: int = 1, of: int | None = None, release: int = 1) -> None:
        self.shape = (confirm, of, release)
        self.of: dict[str, Condition] = {}

    def __getitem__(self, subject: str) -> Condition:
        """Return the condition of a subject, a new one if it has none."""
        return self.of.setdefault(subject, Condition(*self.shape))

    @property
    def is_doubtful(self) -> bool:
        """State in which bad samples of any subject wait for confirmation."""
        return any(condition.is_doubtful for condition in self.of.values())

    def state(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {subject: condition.state() for subject, condition in self.of.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.of = {}
        for subject, saved in state.items():
            self[subject].restore(saved)


class Detector(ABC):
    """Detector of one or more kinds of alerts.

    A detector yields a `Finding` when a condition begins and an `Ended` when it ends, and nothing in between. It may
    depend on nothing but the looks that it has been given: the same looks give the same findings on any machine.
    """

    name: ClassVar[str]
    """Key of its state in a checkpoint."""

    kinds: ClassVar[tuple[AlertKind, ...]]

    urgent: ClassVar[bool] = False
    """Whether it looks at every step at once, see `HealthMonitor.observe`."""

    @abstractmethod
    def observe(self, look: Look) -> Iterable[Finding | Ended]:
        """Take the signs of the next step in, and return what has begun and ended."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return windows and conditions as JSON."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that this class has returned."""

    def doubts(self) -> Iterable[str]:
        """Return the reasons why it cannot tell at present, for the trust in a checkpoint."""
        return ()

    def derived(self) -> Mapping[str, float]:
        """Return the signs that it computes, by name."""
        return {}
