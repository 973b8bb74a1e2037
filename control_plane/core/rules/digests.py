"""Digests of the live state: recording, and comparison of two streams for the first divergence.

    compare(ours, theirs)      the entries of one branch each: identical, or the first step and ranks that differ

A step undone by a failure is made and digested again; both digests must be equal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from control_plane.core.model.errors import Conflict
from control_plane.core.model.records import Record, StateDigested
from control_plane.core.model.state import RunState

Verdict = Literal["identical", "divergent", "incomparable"]


def digest_state(state: RunState, digested: StateDigested) -> list[Record]:
    """Return the record of the ranks' digests after a step. Idempotent.

    Raises `Conflict` if this generation reported another digest of the same step.
    """
    known = state.digested.get(digested.step) if digested.generation == state.generation_number else None
    if known is None:
        return [digested]
    if known != digested:
        raise Conflict(f"generation {known.generation} already reported another digest of step {known.step}")
    return []


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two digests of one step that differ.

    `ranks`: indices from 0 of the ranks whose state differs. Empty if only the samples of the step differ; with
    different numbers of ranks nothing else can be compared.
    """

    ours: StateDigested
    theirs: StateDigested
    ranks: tuple[int, ...]

    @property
    def step(self) -> int:
        """The step after which the state was digested."""
        return self.ours.step


@dataclass(frozen=True, slots=True)
class DigestComparison:
    """Result of comparing two digest streams.

    `steps`: digested in both, in order. `unlike`: those of `steps` with another number of ranks or another algorithm,
    of which only the samples were compared. `contradictions`: steps that one stream holds twice with different digests
    (a repetition after a failure that was not exact); `ours` is the earlier one.
    """

    steps: tuple[int, ...]
    unlike: tuple[int, ...]
    first: Divergence | None
    our_contradictions: tuple[Divergence, ...] = ()
    their_contradictions: tuple[Divergence, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict; `incomparable` if no step was compared in full and none compared in part differs."""
        if self.first is not None:
            return "divergent"
        return "identical" if len(self.steps) > len(self.unlike) else "incomparable"


def compare(ours: Iterable[StateDigested], theirs: Iterable[StateDigested]) -> DigestComparison:
    """Compare two streams, each in the order of its journal; the last digest of a step counts."""
    our_last, our_contradictions = _by_step(ours)
    their_last, their_contradictions = _by_step(theirs)
    steps = tuple(sorted(our_last.keys() & their_last.keys()))
    unlike = tuple(step for step in steps if not _alike(our_last[step], their_last[step]))
    divergences = (_divergence(our_last[step], their_last[step]) for step in steps)
    first = next((each for each in divergences if each is not None), None)
    return DigestComparison(steps, unlike, first, our_contradictions, their_contradictions)


def _by_step(stream: Iterable[StateDigested]) -> tuple[Mapping[int, StateDigested], tuple[Divergence, ...]]:
    last: dict[int, StateDigested] = {}
    contradictions = []
    for each in stream:
        before = last.get(each.step)
        if before is not None and (difference := _divergence(before, each)) is not None:
            contradictions.append(difference)
        last[each.step] = each
    return last, tuple(contradictions)


def _divergence(ours: StateDigested, theirs: StateDigested) -> Divergence | None:
    ranks = _differing(ours.ranks, theirs.ranks) if _alike(ours, theirs) else ()
    return Divergence(ours, theirs, ranks) if ranks or ours.samples != theirs.samples else None


def _differing(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int, ...]:
    return tuple(rank for rank, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine != other)


def _alike(ours: StateDigested, theirs: StateDigested) -> bool:
    return (ours.algorithm, len(ours.ranks)) == (theirs.algorithm, len(theirs.ranks))
