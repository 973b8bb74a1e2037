"""Order of a mixture's samples: a pure function of the seed and of the history of changes with their positions.

    order = MixtureOrder(sources, seed=7)
    order.at(0)                                         # Reference(source, sha256, row, file) of the first sample
    order.change(Change.weights(position=4096, weights={"web": 0.2}))
    order.at(4096)                                      # the first sample that is drawn by it
    again = MixtureOrder.recalled(order.memory(), seed=7)       # from a checkpoint

A position counts the samples of the global order from 0, so the order depends neither on the number of ranks nor on
loaders. Between two changes it is a `Phase`; where a source that does not repeat is exhausted, a phase ends by itself.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from control_plane.core.model.data import ShardRecord, SourceSettings, shard_name
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import INTENT, AddShards, AddSource, RemoveSource, SetMixture, SplitSource
from control_plane.core.model.intents.data import DataIntent, WithdrawSamples
from ray_jobs.data.mixture.course import Course, Reference, SourceShard
from ray_jobs.data.mixture.packing import Lengths, PackedCourse
from ray_jobs.data.mixture.phase import AnyCourse, Phase, Sample, share_weights
from ray_jobs.data.mixture.shares import WHOLE

DIGEST_CHARS = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A source at the beginning: its settings, and its first shards."""

    settings: SourceSettings
    shards: tuple[SourceShard, ...] = ()


@dataclass(frozen=True, slots=True)
class Packing:
    """How documents are packed: tokens of a block, the number of tokens of each document, and what makes them."""

    size: int
    lengths: Lengths
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {"size": self.size, "fingerprint": self.fingerprint}


PlannedWeights = tuple[int, dict[str, float]]
"""Weights that hold from a position on, as the config has scheduled them; sources that are not named keep theirs."""


class Exhausted(Exception):
    """No source has a record left: the mixture ends at this position."""


class MixtureOrder:
    """Order of the samples of one training, with all changes so far."""

    def __init__(
        self, sources: Mapping[str, Source], seed: int, temperature: float = 1.0, packing: Packing | None = None
    ) -> None:
        self.seed, self.temperature, self.packing = seed, temperature, packing
        self._first, self._changes = dict(sources), list[tuple[int, DataIntent]]()
        self.settings = {name: source.settings for name, source in sources.items()}
        courses = {name: self._course(name, source.settings, source.shards) for name, source in sources.items()}
        weights = {name: source.settings.weight for name, source in sources.items()}
        self._phases = [Phase(0, 0, courses, weights, seed, temperature)]
        # Weights that are scheduled, by position, and the number of them that the last phase has taken over.
        self.planned: list[PlannedWeights] = []
        self._before: tuple[list[Phase], dict[str, SourceSettings]] | None = None

    def _course(self, name: str, settings: SourceSettings, shards: tuple[SourceShard, ...]) -> AnyCourse:
        """Return the course of a source that begins."""
        course = Course.begin(name, shards, self.seed, settings.exhausted == "repeat", settings.held_out)
        return course if self.packing is None else PackedCourse.of(course, self.packing.size, self.packing.lengths)

    def plan(self, planned: Sequence[PlannedWeights]) -> None:
        """Schedule weights by position, ascending. Those of phases that have begun stay as they were made."""
        self.planned = [(position, dict(weights)) for position, weights in planned]

    def carry(self, position: int) -> dict[str, str]:
        """Return of each source the document that the block before a position has cut, and its tokens taken."""
        return {name: course.carry for name, course in self.courses(position).items()}

    def at(self, position: int) -> Sample:
        """Return the sample at a position. Raises `Exhausted` beyond the last one."""
        return self._phase_at(position).at(position)

    def span(self, first: int, count: int) -> list[Sample]:
        """Return the samples at `count` positions from `first` on. Raises `Exhausted` beyond the last one."""
        return [self.at(position) for position in range(first, first + count)]

    def digest(self, first: int, count: int) -> str:
        """Return the SHA-256 over the names of these records, in order, in hexadecimal."""
        names = "\n".join(reference.id for reference in self.span(first, count))
        return hashlib.sha256(names.encode()).hexdigest()

    def has(self, first: int, count: int) -> bool:
        """Return whether there are records at `count` positions from `first` on."""
        try:
            self._phase_at(first)
            self._phase_at(first + count - 1)
        except Exhausted:
            return False
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """The sources after all changes."""
        return tuple(self._phases[-1].courses)

    def courses(self, position: int) -> dict[str, AnyCourse]:
        """Return every source's course before the sample at a position."""
        return self._phase_before(position).courses_at(position)

    def reason_against(
        self,
        intent: DataIntent,
        position: int,
        check: Callable[[], str | None] | None = None,
        *,
        may_be_empty: bool = False,
    ) -> str | None:
        """Return the reason why a change cannot be made at a position, or None. Changes nothing.

        `check` looks at its shards, once it is known that they would be taken. `may_be_empty`: no record need be left.
        """
        courses, weights = self.courses(position), self._phase_before(position).weights
        if reason := _reason(intent, courses, self.settings) or (check() if check is not None else None):
            return reason
        after, new_weights, _ = _changed(intent, courses, weights, 0, self.settings, self._course)
        is_left = any(weight > 0 and not after[name].is_empty for name, weight in new_weights.items())
        if not is_left and not may_be_empty:
            return "no source would be left with a record to draw and a weight above 0"
        return None

    def change(self, position: int, intent: DataIntent, *, may_be_empty: bool = False) -> None:
        """Make a change: it holds from `position` on. Raises `Invalid` if it cannot be made, and changes nothing."""
        if reason := self.reason_against(intent, position, may_be_empty=may_be_empty):
            raise Invalid(reason)
        self._make(position, intent)

    def _make(self, position: int, intent: DataIntent) -> None:
        self._before = list(self._phases), dict(self.settings)
        phase = self._phase_before(position)
        kept = [each for each in self._phases if each.first <= position]
        courses, weights, self.settings = _changed(
            intent, phase.courses_at(position), phase.weights, kept[-1].number, self.settings, self._course
        )
        self._phases = [*kept, self._phase(position, kept[-1], courses, weights, kept[-1].planned)]
        self._changes.append((position, intent))

    def take_back(self) -> None:
        """Undo the last `change`; may be called once after it."""
        assert self._before is not None
        self._phases, self.settings = self._before
        self._changes.pop()
        self._before = None

    def forget(self, position: int) -> None:
        """Let go of the phases that end before a position: nobody asks for them any more."""
        begins = [phase.first for phase in self._phases]
        self._phases = self._phases[max(0, bisect_right(begins, position) - 1) :]

    def status(self, position: int) -> dict[str, dict[str, Any]]:
        """Return, of each source, what a readback tells: weight, share, records, shards, and the state of its pass."""
        phase = self._phase_before(position)
        return {
            name: {
                "weight": phase.weights[name],
                "share": round(phase.shares.get(name, 0) / WHOLE, 6),
                "records": len(course.pool),
                "due": len(course.due),
                "pass": course.passes,
                "drawn": course.drawn,
                "withdrawn": course.withdrawn,
                "shards": len(course.live_shards()),
                "digest": _shards_digest(course),
                "live": self.settings[name].live,
                **({"held_out": len(course.held)} if course.held_out else {}),
            }
            | ({"carry": course.carry} if self.packing is not None else {})
            for name, course in phase.courses_at(position).items()
        }

    def held_out(self, most: int) -> dict[str, list[Reference]]:
        """Return the records that are held out, by source, after all changes; of a source at most `most`."""
        return {
            name: [Reference(name, shard.sha256, row, shard.file) for shard, row in course.held_places(most)]
            for name, course in self._phases[-1].courses.items()
            if course.held_out
        }

    def memory(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the first sources, and all changes, as JSON values."""
        first = {
            name: [
                source.settings.model_dump(mode="json"),
                [[shard.sha256, shard.records, shard.file] for shard in source.shards],
            ]
            for name, source in self._first.items()
        }
        changes = [[position, intent.model_dump(mode="json")] for position, intent in self._changes]
        packing = {"packing": self.packing.facts()} if self.packing is not None else {}
        planned = {"planned": [[position, weights] for position, weights in self.planned]} if self.planned else {}
        return {"sources": first, "changes": changes, "temperature": self.temperature, **packing, **planned}

    @classmethod
    def recalled(cls, saved: Mapping[str, Any], seed: int, packing: Packing | None = None) -> Self:
        """Return the order that `memory` has described. Raises `Invalid` if it was packed in another way."""
        if (now := packing.facts() if packing is not None else None) != (then := saved.get("packing")):
            raise Invalid(
                f"the checkpoint's samples are {_unit(then)}, and this training's are {_unit(now)}: it cannot go on "
                "with them"
            )
        sources = {
            name: Source(SourceSettings.model_validate(settings), tuple(SourceShard(*shard) for shard in shards))
            for name, (settings, shards) in saved["sources"].items()
        }
        order = cls(sources, seed, saved["temperature"], packing)
        order.plan([(int(position), weights) for position, weights in saved.get("planned", ())])
        for position, intent in saved["changes"]:
            order._make(int(position), _data_intent(intent))
            order.forget(int(position))
        return order

    def _phase_at(self, position: int) -> Phase:
        """Return the phase that has the sample at a position. Raises `Exhausted`."""
        phase = self._phase_before(position)
        if phase.end is not None and phase.end <= position:
            raise Exhausted(f"no source has a record for sample {position}: all are exhausted")
        return phase

    def _phase_before(self, position: int) -> Phase:
        """Return the last phase that begins at or before a position, and begin those that follow by themselves."""
        while (first := self._next_first(self._phases[-1])) is not None and first <= position:
            self._phases.append(self._following(self._phases[-1], first))
        if position >= self._phases[-1].first:
            return self._phases[-1]
        begins = [phase.first for phase in self._phases]
        at = bisect_right(begins, position) - 1
        if at < 0:
            raise ValueError(f"position {position} was forgotten: the order is kept from {begins[0]} on")
        return self._phases[at]

    def _next_first(self, last: Phase) -> int | None:
        """Return where the phase after the last one begins by itself: by the schedule, or by an exhausted source."""
        due = self.planned[last.planned][0] if last.planned < len(self.planned) else None
        end = last.end if last.shares else None
        return min((max(one, last.first) for one in (due, end) if one is not None), default=None)

    def _following(self, last: Phase, first: int) -> Phase:
        courses, weights, planned = last.courses_at(first), last.weights, last.planned
        if planned < len(self.planned) and self.planned[planned][0] <= first:
            new = weights | {name: weight for name, weight in self.planned[planned][1].items() if name in courses}
            # What would end the training is left out.
            weights, planned = new if share_weights(new, courses) else weights, planned + 1
        return self._phase(first, last, courses, weights, planned)

    def _phase(
        self, first: int, before: Phase, courses: Mapping[str, AnyCourse], weights: Mapping[str, float], planned: int
    ) -> Phase:
        return Phase(first, before.number + 1, courses, weights, self.seed, self.temperature, planned)


def _data_intent(saved: Mapping[str, Any]) -> DataIntent:
    intent = INTENT.validate_python(saved)
    assert isinstance(intent, DataIntent)
    return intent


def _shards_digest(course: AnyCourse) -> str:
    text = "\n".join(f"{shard.sha256} {shard.records}" for shard in course.live_shards())
    return hashlib.sha256(f"{text}\n{len(course.pool)}".encode()).hexdigest()[:DIGEST_CHARS]


def _unit(packing: Mapping[str, Any] | None) -> str:
    if packing is None:
        return "records"
    return f"blocks of {packing['size']} tokens, made by {packing['fingerprint'][:16]!r}"


def _reason(intent: DataIntent, courses: Mapping[str, AnyCourse], settings: Mapping[str, SourceSettings]) -> str | None:
    """Return the reason why sources in this state cannot take a change, as far as it shows without their shards."""
    named = intent.sources()
    if isinstance(intent, AddSource):
        if intent.source in courses:
            return f"there is a source {intent.source} already"
    elif unknown := [name for name in named if name not in courses]:
        return f"there is no source {unknown[0]}; this run has {', '.join(courses)}"
    match intent:
        case SplitSource() if intent.into in courses:
            return f"there is a source {intent.into} already"
        case SplitSource():
            return _reason_against_shards(courses[intent.source], intent.shards)
        case WithdrawSamples():
            course = courses[intent.source]
            if reason := _reason_against_shards(course, (intent.shard,)):
                return reason
            records = course.shards[course.index_of(intent.shard)].records
            if intent.rows != "all" and max(intent.rows) >= records:
                return (
                    f"shard {intent.shard[:12]} of {intent.source} has {records} records, and no row {max(intent.rows)}"
                )
        case AddShards() if not settings[intent.source].live:
            return f"source {intent.source} is not live: it takes in no shards while training"
        case AddShards():
            known = {shard.sha256 for shard in courses[intent.source].live_shards()}
            twice = next((shard.sha256 for shard in intent.shards if shard.sha256 in known), None)
            if twice is not None:
                return f"source {intent.source} has shard {twice[:12]} already"
    return None


def _reason_against_shards(course: AnyCourse, shas: Sequence[str]) -> str | None:
    known = {shard.sha256 for shard in course.live_shards()}
    missing = next((sha256 for sha256 in shas if sha256 not in known), None)
    return f"source {course.name} has no shard {missing[:12]}" if missing is not None else None


def shard_file(source: str, sha256: str, settings: SourceSettings) -> str:
    """Return the path of a live source's shard in the run's folder of data."""
    return f"{source}/{shard_name(sha256, settings.format)}"


def _announced(shards: Sequence[ShardRecord], settings: SourceSettings) -> tuple[SourceShard, ...]:
    return tuple(
        SourceShard(each.sha256, each.records, shard_file(each.source, each.sha256, settings)) for each in shards
    )


def _changed(
    intent: DataIntent,
    courses: Mapping[str, AnyCourse],
    weights: Mapping[str, float],
    key: int,
    settings: Mapping[str, SourceSettings],
    begin: Callable[[str, SourceSettings, tuple[SourceShard, ...]], AnyCourse],
) -> tuple[dict[str, AnyCourse], dict[str, float], dict[str, SourceSettings]]:
    """Return courses, weights and settings after a change. `key` seeds new orders; `begin` makes a new source's."""
    courses, weights, settings = dict(courses), dict(weights), dict(settings)
    match intent:
        case SetMixture():
            weights |= intent.weights
        case AddSource():
            shards = _announced(intent.shards, intent.settings)
            courses[intent.source] = begin(intent.source, intent.settings, shards)
            weights[intent.source], settings[intent.source] = intent.settings.weight, intent.settings
        case RemoveSource():
            del courses[intent.source], weights[intent.source], settings[intent.source]
        case SplitSource():
            course, whole = courses[intent.source], weights[intent.source]
            ours, theirs = course.split(intent.shards, intent.into)
            part = whole * len(theirs.pool) / max(1, len(course.pool)) if intent.weight is None else intent.weight
            courses |= {intent.source: ours, intent.into: theirs}
            weights |= {intent.source: max(0.0, whole - part), intent.into: part}
            settings[intent.into] = settings[intent.source]
        case AddShards():
            new = _announced(intent.shards, settings[intent.source])
            courses[intent.source] = courses[intent.source].with_shards(new, key)
        case WithdrawSamples():
            rows = None if intent.rows == "all" else intent.rows
            courses[intent.source] = courses[intent.source].without(intent.shard, rows)
    return courses, weights, settings
