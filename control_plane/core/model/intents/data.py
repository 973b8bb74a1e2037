"""Intents about a run's sources: the mixture's weights, sources, shards, and records that are withdrawn.

They hold from the step after the boundary at which they are applied: what was prefetched beyond it is drawn again. Each
reads back the whole mixture, `core.model.data.MIXTURE`, and that step, `FIRST_STEP`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from control_plane.core.model.data import (
    MAX_ROWS,
    MAX_SHARDS,
    MAX_SOURCES,
    Count,
    Sha256,
    ShardRecord,
    SourceName,
    SourceSettings,
    Weight,
)
from control_plane.core.model.intent_base import TrainingIntent

WEIGHT = "mixture/"
"""Prefix of the limit of a source's weight: `mixture/web`, or `mixture/*` for all."""


class DataIntent(TrainingIntent):
    """Base of intents about a run's sources."""

    def sources(self) -> tuple[str, ...]:
        """Return the sources that it names."""
        return ()

    def sources_added(self) -> dict[str, SourceSettings]:
        """Return the settings of the sources that it adds."""
        return {}

    def shards_added(self) -> tuple[ShardRecord, ...]:
        """Return the shards that it announces."""
        return ()


class SetMixture(DataIntent):
    """Set the weights of sources, from the next step on; sources that are not named keep theirs."""

    allowed_for_agents: ClassVar[bool] = True
    agents_need_grant: ClassVar[bool] = True

    kind: Literal["set_mixture"] = "set_mixture"
    weights: dict[SourceName, Weight] = Field(min_length=1, max_length=MAX_SOURCES)

    def describe(self) -> str:
        return "weights " + ", ".join(f"{source} = {weight:g}" for source, weight in self.weights.items())

    def knobs(self) -> tuple[str, ...]:
        return tuple(WEIGHT + source for source in self.weights)

    def requested(self, knob: str) -> Iterable[tuple[Any, float | None]]:
        return ((self.weights[knob.removeprefix(WEIGHT)], None),)

    def sources(self) -> tuple[str, ...]:
        return tuple(self.weights)


class AddSource(DataIntent):
    """Add a live source, empty or with shards that are in the run's folder already."""

    kind: Literal["add_source"] = "add_source"
    source: SourceName
    settings: SourceSettings
    shards: tuple[ShardRecord, ...] = Field(default=(), max_length=MAX_SHARDS)

    @model_validator(mode="after")
    def _is_live(self) -> "AddSource":
        if self.settings.path is not None or not self.settings.live:
            raise ValueError("a source that is added is 'live' and has no 'path': its records are sent to the run")
        _check_shards(self.source, self.shards)
        return self

    def describe(self) -> str:
        records = f", {_counted(self.shards)}" if self.shards else ""
        return f"add source {self.source} (weight {self.settings.weight:g}{records})"

    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def sources_added(self) -> dict[str, SourceSettings]:
        return {self.source: self.settings}

    def shards_added(self) -> tuple[ShardRecord, ...]:
        return self.shards


class RemoveSource(DataIntent):
    """Remove a source with all its shards from the mixture. Files stay where they are."""

    kind: Literal["remove_source"] = "remove_source"
    source: SourceName

    def describe(self) -> str:
        return f"remove source {self.source}"

    def sources(self) -> tuple[str, ...]:
        return (self.source,)


class SplitSource(DataIntent):
    """Move shards of a source into a new one. What is due of them in this pass stays due.

    The new source takes over the settings, and `weight` of the old one's weight; by default its part of the records.
    """

    kind: Literal["split_source"] = "split_source"
    source: SourceName
    into: SourceName
    shards: tuple[Sha256, ...] = Field(min_length=1, max_length=MAX_SHARDS)
    weight: Weight | None = None

    @model_validator(mode="after")
    def _is_another_one(self) -> "SplitSource":
        if self.into == self.source:
            raise ValueError("'into' is the name of a new source")
        if len(set(self.shards)) < len(self.shards):
            raise ValueError("a shard is named twice")
        return self

    def describe(self) -> str:
        return f"split {_plural(len(self.shards), 'shard')} of {self.source} into {self.into}"

    def sources(self) -> tuple[str, ...]:
        return (self.source,)


class AddShards(DataIntent):
    """Add shards to a live source, whose files are in the run's folder already.

    A view of the run is not stale because of it: records may come in at any time.
    """

    changes_course: ClassVar[bool] = False

    kind: Literal["add_shards"] = "add_shards"
    source: SourceName
    shards: tuple[ShardRecord, ...] = Field(min_length=1, max_length=MAX_SHARDS)

    @model_validator(mode="after")
    def _are_of_the_source(self) -> "AddShards":
        _check_shards(self.source, self.shards)
        return self

    def describe(self) -> str:
        return f"add {_counted(self.shards)} to {self.source}"

    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def shards_added(self) -> tuple[ShardRecord, ...]:
        return self.shards


class WithdrawSamples(DataIntent):
    """Withdraw records of a shard, by row from 0, or all of them: they are not drawn any more."""

    kind: Literal["withdraw_samples"] = "withdraw_samples"
    source: SourceName
    shard: Sha256
    rows: Literal["all"] | Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_ROWS)] = "all"

    @model_validator(mode="after")
    def _each_once(self) -> "WithdrawSamples":
        if self.rows != "all" and len(set(self.rows)) < len(self.rows):
            raise ValueError("a row is named twice")
        return self

    def describe(self) -> str:
        what = "all records" if self.rows == "all" else _plural(len(self.rows), "record")
        return f"withdraw {what} of shard {self.shard[:12]} of {self.source}"

    def sources(self) -> tuple[str, ...]:
        return (self.source,)


DATA_KINDS: tuple[str, ...] = (
    "set_mixture",
    "add_source",
    "remove_source",
    "split_source",
    "add_shards",
    "withdraw_samples",
)


def _check_shards(source: str, shards: tuple[ShardRecord, ...]) -> None:
    """Raise `ValueError` for a shard of another source, or one that is named twice."""
    other = next((shard for shard in shards if shard.source != source), None)
    if other is not None:
        raise ValueError(f"shard {other.sha256[:12]} is of source {other.source}, not of {source}")
    if len({shard.sha256 for shard in shards}) < len(shards):
        raise ValueError("a shard is named twice")


def _counted(shards: tuple[ShardRecord, ...]) -> str:
    records = sum(shard.records for shard in shards)
    return f"{_plural(len(shards), 'shard')} ({_plural(records, 'record')})"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
