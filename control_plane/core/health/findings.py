"""Findings of detectors: one look at the signs, a condition with confirmation, and the base class of detectors."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar, Literal

from control_plane.core.model.health import AlertKind, Evidence, Level


@dataclass(frozen=True, slots=True)
class Look:
    """Signs after one step; `by_rank` holds, where a gather has ended, one value a rank."""

    step: int
    signs: Mapping[str, float]
    by_rank: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def finite(self, name: str) -> float | None:
        """Return a sign's value, or None if it was not measured or is not finite."""
        value = self.signs.get(name)
        return value if value is not None and isfinite(value) else None

    def finite_of(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Yield (own name, value) of all finite signs whose name begins so, in the order of their names."""
        for name in sorted(name for name in self.signs if name.startswith(prefix)):
            if isfinite(value := self.signs[name]):
                yield name.removeprefix(prefix), value


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
        self.recent: list[tuple[int, bool]] = []
        self.is_open = False
        self.good = 0
        self.onset = 0

    def note(self, step: int, is_bad: bool, is_sure: bool = False) -> Literal["began", "ended"] | None:
        """Take one sample in; `is_sure` needs no confirmation. Return what has changed."""
        if self.is_open:
            self.good = 0 if is_bad else self.good + 1
            if self.good < self.release:
                return None
            self.is_open, self.recent = False, []
            return "ended"
        self.recent = [*self.recent, (step, is_bad)][-self.of :]
        bad = [at for at, was_bad in self.recent if was_bad]
        if not (is_bad and (is_sure or len(bad) >= self.confirm)):
            return None
        self.is_open, self.good, self.onset = True, 0, bad[0]
        return "began"

    @property
    def is_doubtful(self) -> bool:
        """State in which bad samples wait for confirmation."""
        return not self.is_open and any(is_bad for _, is_bad in self.recent)

    def state(self) -> list[Any]:
        """Return the state as JSON."""
        return [self.is_open, self.good, self.onset, [[step, is_bad] for step, is_bad in self.recent]]

    def restore(self, state: Sequence[Any]) -> None:
        """Continue from a state."""
        self.is_open, self.good, self.onset = bool(state[0]), int(state[1]), int(state[2])
        self.recent = [(int(step), bool(is_bad)) for step, is_bad in state[3]]


class Detector(ABC):
    """Detector of one or more kinds of alerts.

    A detector yields a `Finding` when a condition begins and an `Ended` when it ends, and nothing in between. It may
    depend on nothing but the looks that it has been given: the same looks give the same findings on any machine.
    """

    name: ClassVar[str]
    """Key of its state in a checkpoint."""

    kinds: ClassVar[tuple[AlertKind, ...]]

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
