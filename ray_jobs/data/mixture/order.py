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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from control_plane.core.model.data import ShardRecord, SourceSettings, shard_name
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import INTENT, AddShards, AddSource, RemoveSource, SetMixture, SplitSource
from control_plane.core.model.intents.data import DataIntent, WithdrawSamples
from ray_jobs.data.mixture.course import Course, SourceShard
from ray_jobs.data.mixture.phase import Phase, Reference
from ray_jobs.data.mixture.shares import WHOLE

DIGEST_CHARS = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A source at the beginning: its settings, and its first shards."""

    settings: SourceSettings
    shards: tuple[SourceShard, ...] = ()


class Exhausted(Exception):
    """No source has a record left: the mixture ends at this position."""


class MixtureOrder:
    """Order of the samples of one training, with all changes so far."""

    def __init__(self, sources: Mapping[str, Source], seed: int, temperature: float = 1.0) -> None:
        self.seed, self.temperature = seed, temperature
        self._first, self._changes = dict(sources), list[tuple[int, DataIntent]]()
        self.settings = {name: source.settings for name, source in sources.items()}
        courses = {name: _course(name, source.settings, source.shards, seed) for name, source in sources.items()}
        weights = {name: source.settings.weight for name, source in sources.items()}
        self._phases = [Phase(0, 0, courses, weights, seed, temperature)]
        self._before: tuple[list[Phase], dict[str, SourceSettings]] | None = None

    def at(self, position: int) -> Reference:
        """Return the record at a position. Raises `Exhausted` beyond the last one."""
        return self._phase_at(position).at(position)

    def span(self, first: int, count: int) -> list[Reference]:
        """Return the records at `count` positions from `first` on. Raises `Exhausted` beyond the last one."""
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

    def courses(self, position: int) -> dict[str, Course]:
        """Return every source's course before the sample at a position."""
        return self._phase_before(position).courses_at(position)

    def reason_against(self, intent: DataIntent, position: int) -> str | None:
        """Return the reason why a change cannot be made at a position, or None. Changes nothing."""
        return _reason(intent, self.courses(position), self._phase_before(position).weights, self.settings)

    def change(self, position: int, intent: DataIntent) -> None:
        """Make a change: it holds from `position` on. Raises `Invalid` if it cannot be made, and changes nothing."""
        if reason := self.reason_against(intent, position):
            raise Invalid(reason)
        self._make(position, intent)

    def _make(self, position: int, intent: DataIntent) -> None:
        self._before = list(self._phases), dict(self.settings)
        phase = self._phase_before(position)
        kept = [each for each in self._phases if each.first <= position]
        courses, weights = _changed(intent, phase.courses_at(position), phase.weights, kept[-1].number, self.settings)
        new = Phase(position, kept[-1].number + 1, courses, weights, self.seed, self.temperature)
        self._phases = [*kept, new]
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
        return {"sources": first, "changes": changes, "temperature": self.temperature}

    @classmethod
    def recalled(cls, saved: Mapping[str, Any], seed: int) -> Self:
        """Return the order that `memory` has described."""
        sources = {
            name: Source(SourceSettings.model_validate(settings), tuple(SourceShard(*shard) for shard in shards))
            for name, (settings, shards) in saved["sources"].items()
        }
        order = cls(sources, seed, saved["temperature"])
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
        while (last := self._phases[-1]).shares and last.end is not None and last.end <= position:
            courses = last.courses_at(last.end)
            self._phases.append(
                Phase(last.end, last.number + 1, courses, last.weights, self.seed, self.temperature)
            )  # fmt: skip
        if position >= self._phases[-1].first:
            return self._phases[-1]
        begins = [phase.first for phase in self._phases]
        at = bisect_right(begins, position) - 1
        if at < 0:
            raise ValueError(f"position {position} was forgotten: the order is kept from {begins[0]} on")
        return self._phases[at]


def _data_intent(saved: Mapping[str, Any]) -> DataIntent:
    intent = INTENT.validate_python(saved)
    assert isinstance(intent, DataIntent)
    return intent


def _shards_digest(course: Course) -> str:
    text = "\n".join(f"{shard.sha256} {shard.records}" for shard in course.live_shards())
    return hashlib.sha256(f"{text}\n{len(course.pool)}".encode()).hexdigest()[:DIGEST_CHARS]


def _reason(
    intent: DataIntent,
    courses: Mapping[str, Course],
    weights: Mapping[str, float],
    settings: Mapping[str, SourceSettings],
) -> str | None:
    """Return the reason why sources in this state cannot take a change, or None."""
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
    after, new_weights = _changed(intent, courses, weights, 0, dict(settings))
    if not any(weight > 0 and not after[name].is_empty for name, weight in new_weights.items()):
        return "no source would be left with a record to draw and a weight above 0"
    return None


def _reason_against_shards(course: Course, shas: Sequence[str]) -> str | None:
    known = {shard.sha256 for shard in course.live_shards()}
    missing = next((sha256 for sha256 in shas if sha256 not in known), None)
    return f"source {course.name} has no shard {missing[:12]}" if missing is not None else None


def shard_file(source: str, sha256: str, settings: SourceSettings) -> str:
    """Return the path of a live source's shard in the run's folder of data."""
    return f"{source}/{shard_name(sha256, settings.format)}"


def _course(name: str, settings: SourceSettings, shards: tuple[SourceShard, ...], seed: int) -> Course:
    return Course.begin(name, shards, seed, settings.exhausted == "repeat", settings.held_out)


def _announced(shards: Sequence[ShardRecord], settings: SourceSettings) -> tuple[SourceShard, ...]:
    return tuple(
        SourceShard(each.sha256, each.records, shard_file(each.source, each.sha256, settings)) for each in shards
    )


def _changed(
    intent: DataIntent,
    courses: Mapping[str, Course],
    weights: Mapping[str, float],
    key: int,
    settings: dict[str, SourceSettings],
) -> tuple[dict[str, Course], dict[str, float]]:
    """Return courses and weights after a change, and enter its sources into `settings`. `key` seeds new orders."""
    courses, weights = dict(courses), dict(weights)
    seed = next(iter(courses.values())).seed
    match intent:
        case SetMixture():
            weights |= intent.weights
        case AddSource():
            shards = _announced(intent.shards, intent.settings)
            courses[intent.source] = _course(intent.source, intent.settings, shards, seed)
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
    return courses, weights
