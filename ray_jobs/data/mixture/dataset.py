"""Data of a mixture for a Trainer or a loop: its records, and which of them each global batch takes.

    data = steerway.mixture(tokenize)                       # sources of the run's config
    trainer = SteerableTrainer(..., train_dataset=data)     # draws its samples
    data[reference], data[7]                                # by a reference of the order, or of the first shards

The order lives in the training's process. What is sent to a loader's workers are references, which they only read.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from control_plane.core.model.data import EXTENSIONS, ShardRecord, SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.data import DataIntent
from ray_jobs.data.mixture.course import Course, Numbers, Reference, SourceShard
from ray_jobs.data.mixture.making import TOKENS, Making, Transform
from ray_jobs.data.mixture.order import MixtureOrder, Packing, PlannedWeights, Source, shard_file
from ray_jobs.data.mixture.packing import Block, PackedCourse, Piece
from ray_jobs.data.mixture.phase import AnyCourse, Sample
from ray_jobs.data.mixture.sample_cache import CachedShard, SampleCache
from ray_jobs.data.mixture.shards import Record, Shard, check_file, described, open_shard
from ray_jobs.data.node_cache import file_sha256
from ray_jobs.process import context

MAX_OPEN = 512
"""Shards that a process keeps open: below the usual limit of 1024 files."""

MAX_HELD_OUT = 256
"""Records of a source that an evaluation looks at, unless it is told otherwise."""

FORMAT_OF = {extension: name for name, extension in EXTENSIONS.items()}


class MixtureDataset(Dataset[Any]):
    """Records of a run's sources, or blocks that are packed from them. Its length is that of the first shards, without
    what is held out.

    `global_batch_samples` is set by what draws from it, before the first step. If it `may_be_empty`, its batches are
    empty where there are no records.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceSettings],
        seed: int,
        making: Making | None = None,
        temperature: float = 1.0,
        folder: Path | None = None,
        schedule: Sequence[tuple[int, Mapping[str, float]]] = (),
        *,
        may_be_empty: bool = False,
    ) -> None:
        """Read the first shards. Raises `Invalid` if there is no record, and it may not be empty.

        Args:
            folder: holds the shards of live sources.
            schedule: weights that hold after this number of global batches.
        """
        self._batch_samples, self.may_be_empty = 0, may_be_empty
        self._making, self._folder, self._schedule = making or Making(), folder, schedule
        # Files of configured paths, by hash, with their format.
        self._files: dict[str, tuple[Path, str]] = {}
        self._open: dict[str, Shard] = {}
        self._made: dict[str, CachedShard] = {}
        first = {name: Source(settings, self._first_shards(name, settings)) for name, settings in sources.items()}
        self._first = [(name, shard) for name, source in first.items() for shard in source.shards]
        self._make_samples([shard for _, shard in self._first])
        packing, cache = None, self._making.cache
        if self._making.block_size is not None and cache is not None:
            packing = Packing(self._making.block_size, self._lengths, cache.fingerprint)
        self._packing = packing
        self._begin = partial(MixtureOrder, first, seed, temperature, packing)
        self._order: MixtureOrder | None = self._begin()
        if not may_be_empty and not self._order.has(0, 1):
            raise Invalid("no source has a record and a weight above 0: a training cannot begin without a sample")
        self._natural = {name: self._in_files_order(name, source) for name, source in first.items()}

    def _first_shards(self, name: str, settings: SourceSettings) -> tuple[SourceShard, ...]:
        if settings.path is None:
            return ()
        paths = sorted(path for path in map(Path, glob(settings.path, recursive=True)) if path.is_file())
        if not paths:
            raise Invalid(f"sources.{name}.path is {settings.path}, but no file matches it")
        shards = []
        for path in paths:
            sha256, records = described(path, settings.format)
            try:
                check_file(path, sha256, settings)
            except Invalid as error:
                raise Invalid(f"sources.{name}: {error.reason}") from None
            self._files[sha256] = path, settings.format
            shards.append(SourceShard(sha256, records))
        return tuple(dict.fromkeys(shard for shard in shards if shard.records))

    def _make_samples(self, shards: Sequence[SourceShard]) -> None:
        """Make the samples of shards that are cached, each process of a node beginning at another one."""
        if self._making.cache is not None and shards:
            first = int(os.environ.get("LOCAL_RANK", "0")) % len(shards)
            for shard in (*shards[first:], *shards[:first]):
                self._made_of(shard.sha256, shard.file)

    def _lengths(self, shard: SourceShard) -> Numbers:
        return self._made_of(shard.sha256, shard.file).lengths(TOKENS)

    def _in_files_order(self, name: str, source: Source) -> AnyCourse:
        """Return the course of a source that takes the records of its files one after the other."""
        course = Course.begin(name, source.shards, 0, False, source.settings.held_out)
        course = replace(course, due=course.pool)
        return course if self._packing is None else PackedCourse.of(course, self._packing.size, self._lengths)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a loader's worker needs: files, not the order."""
        none: dict[str, Any] = {"_order": None, "_begin": None, "_packing": None, "_natural": {}}
        return self.__dict__ | none | {"_open": {}, "_made": {}}

    def __len__(self) -> int:
        return sum(course.draws_left or 0 for course in self._natural.values())

    def __getitem__(self, at: Sample | int) -> Any:
        """Return a sample: of a record, or a packed block. Raises `Invalid` if a shard cannot be read."""
        if isinstance(at, int):
            at = self._numbered(at)
        if isinstance(at, Block):
            return self._making.block(at, self._tokens)
        if self._making.cache is not None:
            return self._making.sample(self._made_of(at.sha256, at.file)[at.row])
        record = self.record(at)
        return record if self._making.transform is None else self._making.sample(self._making.transform(record))

    def _numbered(self, index: int) -> Sample:
        for course in self._natural.values():
            if index < (draws := course.draws_left or 0):
                return _first(course.references(np.array([index])))
            index -= draws
        raise IndexError(index)

    def held_out(self, source: str | None = None, most: int = MAX_HELD_OUT) -> "HeldOut":
        """Return the records that are held out of the training, of one source or of all, through the transform.

        It is as long as what is held out at the moment; shards that come bring more. Of a source with more than `most`,
        it is a random choice of so many. Raises `Invalid` for a source that holds out nothing.
        """
        holding = self.order.held_out(0)
        if source is not None and source not in holding:
            raise Invalid(f"source {source} has no 'held_out'; those that have: {', '.join(holding) or 'none'}")
        return HeldOut(self, source, most)

    def record(self, at: Reference) -> Record:
        """Return a record as its shard has it. Raises `Invalid` if that cannot be read."""
        if at.sha256 not in self._open:
            if len(self._open) >= MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[at.sha256] = open_shard(*self._place(at.sha256, at.file))
        return self._open[at.sha256][at.row]

    def _tokens(self, piece: Piece) -> Any:
        return self._made_of(piece.sha256, piece.file)[piece.row][TOKENS]

    def _made_of(self, sha256: str, file: str) -> CachedShard:
        """Return what was made of a shard's records, or make it."""
        assert self._making.cache is not None
        if sha256 not in self._made:
            if len(self._made) >= MAX_OPEN:
                del self._made[next(iter(self._made))]
            self._made[sha256] = self._making.cache.open(*self._place(sha256, file), sha256)
        return self._made[sha256]

    def _place(self, sha256: str, file: str) -> tuple[Path, str]:
        if file and self._folder is not None:
            return self._folder / file, FORMAT_OF[file.rpartition(".")[2]]
        if sha256 not in self._files:
            raise Invalid(
                f"shard {sha256[:12]} is none of the files of this run's sources; was one changed or removed?"
            )
        return self._files[sha256]

    # The order, in the training's process.

    @property
    def order(self) -> MixtureOrder:
        """Order of the samples. Raises `RuntimeError` in a loader's worker."""
        if self._order is None:
            raise RuntimeError("the order of a mixture is known in the training's process only")
        return self._order

    @property
    def global_batch_samples(self) -> int:
        """Samples of a global batch; 0 until it is set."""
        return self._batch_samples

    @global_batch_samples.setter
    def global_batch_samples(self, samples: int) -> None:
        if samples == self._batch_samples:
            return
        self._batch_samples = samples
        self.order.plan(self._planned())

    def _planned(self, after: int = 0) -> list[PlannedWeights]:
        """Return the config's scheduled weights, by position; those that hold from after this position on."""
        planned = ((step * self._batch_samples, weights) for step, weights in self._schedule)
        return [(position, dict(weights)) for position, weights in planned if position > after]

    def begin(self) -> None:
        """Begin a training: its order is that of the first shards, without the changes of an earlier one."""
        self._order = self._begin()
        self._order.plan(self._planned())

    def batch(self, number: int) -> list[Sample]:
        """Return the samples of global batch `number`, from 1, in order. Raises `Exhausted` after the last one."""
        if self.may_be_empty and not self.has(number):
            return []
        return self.order.span((number - 1) * self.global_batch_samples, self.global_batch_samples)

    def has(self, number: int) -> bool:
        """Return whether there is a global batch of this number."""
        return self.order.has((number - 1) * self.global_batch_samples, self.global_batch_samples)

    def digest(self, number: int) -> str:
        """Return the SHA-256 over the names of a global batch's records; empty after the last one."""
        if not self.has(number):
            return ""
        return self.order.digest((number - 1) * self.global_batch_samples, self.global_batch_samples)

    def status(self, number: int) -> dict[str, dict[str, Any]]:
        """Return the state of each source before a global batch, as a readback tells it."""
        return self.order.status((number - 1) * self.global_batch_samples)

    def reason_against(self, intent: DataIntent, number: int) -> str | None:
        """Return the reason why a change cannot hold from a global batch on, or None. Reads the new shards."""
        settings = self.order.settings | intent.sources_added()

        def unreadable() -> str | None:
            reasons = (self._unreadable(one, settings[one.source]) for one in intent.shards_added())
            return next(filter(None, reasons), None)

        try:
            position = (number - 1) * self.global_batch_samples
            return self.order.reason_against(intent, position, unreadable, may_be_empty=self.may_be_empty)
        except Invalid as error:
            return error.reason

    def _unreadable(self, shard: ShardRecord, settings: SourceSettings) -> str | None:
        if self._folder is None:
            return "this run has no folder of data"
        file = shard_file(shard.source, shard.sha256, settings)
        path = self._folder / file
        try:
            size = path.stat().st_size
            if size != shard.bytes:
                return f"shard data/{file} has {size} bytes, not {shard.bytes}"
            if file_sha256(path) != shard.sha256:
                return f"the bytes of shard data/{file} are not those of its name"
            records = len(open_shard(path, settings.format))
            if self._making.cache is not None:
                self._made_of(shard.sha256, file)
        except OSError as error:
            return f"shard data/{file} cannot be read: {error.strerror or error}"
        except Invalid as error:
            return error.reason
        return None if records == shard.records else f"shard data/{file} has {records} records, not {shard.records}"

    def change(self, intent: DataIntent, number: int, current: int) -> None:
        """Make a change that holds from global batch `number` on; `current` is the last one that was trained on."""
        self.order.forget(max(0, (current - 1) * self.global_batch_samples))
        self.order.change((number - 1) * self.global_batch_samples, intent, may_be_empty=self.may_be_empty)

    def memory(self, number: int) -> dict[str, Any]:
        """Return what a checkpoint keeps before a global batch; of packed sources, also where documents are cut."""
        saved = self.order.memory()
        if self._packing is not None:
            saved["carry"] = self.order.carry((number - 1) * self.global_batch_samples)
        return saved

    def recall(self, saved: Mapping[str, Any], number: int = 1) -> None:
        """Restore the order of a checkpoint, which continues with global batch `number`.

        Raises `Invalid` if a file of its first shards is not here any more, or if its documents have other tokens now.
        """
        for name, (_, shards) in saved["sources"].items():
            gone = next((sha256 for sha256, _, file in shards if not file and sha256 not in self._files), None)
            if gone is not None:
                raise Invalid(
                    f"source {name} began with shard {gone[:12]}, which none of the files of its path is now: put the "
                    "files back as they were; new records are sent to a live source"
                )
        order, position = (
            MixtureOrder.recalled(saved, self.order.seed, self._packing),
            (number - 1) * self._batch_samples,
        )
        # What the checkpoint's config had scheduled is history up to here; from here on, this run's config holds.
        order.plan([one for one in order.planned if one[0] <= position] + self._planned(position))
        if "carry" in saved and order.carry(position) != saved["carry"]:
            raise Invalid(
                f"the documents of the checkpoint were cut at {saved['carry']}, and now at {order.carry(position)}: do "
                "they have other tokens, under the same fingerprint?"
            )
        self._order = order


class HeldOut(Dataset[Any]):
    """Held-out records of a mixture, for a script's own evaluation. A loader's workers have those of its beginning."""

    def __init__(self, data: MixtureDataset, source: str | None, most: int) -> None:
        self._data, self._source, self._most = data, source, most
        self._chosen: list[Reference] | None = None

    @property
    def references(self) -> list[Reference]:
        """References of the records, in order."""
        if self._chosen is not None:
            return self._chosen
        holding = self._data.order.held_out(self._most)
        return [one for name, some in holding.items() if self._source in (None, name) for one in some]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a loader's worker needs: the order is in the training's process."""
        return self.__dict__ | {"_chosen": self.references}

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Any:
        """Return a sample."""
        return self._data[self.references[index]]


def _first(samples: Iterator[Sample]) -> Sample:
    return next(samples)


def mixture(
    transform: Transform | None = None,
    *,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int | None = None,
    fingerprint: str | None = None,
    pack: int | None = None,
    may_be_empty: bool = False,
) -> MixtureDataset:
    """Return the data of the run's sources, for any Trainer or loop.

    Args:
        transform: makes a sample of a record (a mapping of fields to values); by default the record is the sample.
        sources: settings by name, as in a config's section `sources`; by default the run's. Paths are globs.
        seed: of the order; by default the run's.
        fingerprint: names `transform`; what it makes is then kept on each node's disk, and made again for another name
            only. So give it a new one whenever the function, or what it uses, changes. Without one nothing is kept.
        pack: tokens of a block. Documents are then packed: `transform` returns tokens, with what ends a document, or a
            mapping with `input_ids`; a sample has `input_ids`, `labels` and `attention_mask`. Needs `fingerprint`.
        may_be_empty: for a loop that can do without records, as feedback: `references()` is empty where there are none,
            and the training goes on.

    Raises: `Invalid` if there are no sources, or no records and there must be some.
    """
    run = context.current()
    if sources is not None:
        settings = {name: SourceSettings.model_validate(each) for name, each in sources.items()}
    else:
        settings = dict(run.sources) if run is not None else {}
    if not settings:
        raise Invalid("there are no sources: name them in the config's section 'sources', or give `sources`")
    if seed is None:
        seed = run.seed if run is not None else 0
    temperature, schedule = (run.temperature, run.weights_schedule) if run is not None else (1.0, ())
    folder = run.files.data if run is not None else None
    making = _making(transform, fingerprint, pack)
    return MixtureDataset(settings, seed, making, temperature, folder, schedule, may_be_empty=may_be_empty)


def _making(transform: Transform | None, fingerprint: str | None, pack: int | None) -> Making:
    if pack is None:
        if transform is None or fingerprint is None:
            return Making(transform)
        return Making(transform, SampleCache(transform, fingerprint))
    if transform is None or fingerprint is None:
        raise Invalid(
            "`pack` needs a function that makes tokens of a record, and a `fingerprint` that names it: where a block "
            "begins depends on the tokens of all documents before, which are made once and kept"
        )
    return Making.packed(transform, pack, fingerprint)
