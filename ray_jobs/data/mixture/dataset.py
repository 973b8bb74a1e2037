"""Data of a mixture for a Trainer or a loop: its records, and which of them each global batch takes.

    data = steerway.mixture(tokenize)                       # sources of the run's config
    trainer = SteerableTrainer(..., train_dataset=data)     # draws its samples
    data[reference], data[7]                                # by a reference of the order, or of the first shards

The order lives in the training's process. What is sent to a loader's workers are references, which they only read.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Sampler

from control_plane.core.model.data import EXTENSIONS, ShardRecord, SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents.data import DataIntent
from ray_jobs.data.mixture.course import SourceShard, rows_of
from ray_jobs.data.mixture.order import MixtureOrder, Source, shard_file
from ray_jobs.data.mixture.phase import Reference
from ray_jobs.data.mixture.shards import Record, Shard, check_file, described, file_sha256, open_shard
from ray_jobs.process import context

log = logging.getLogger(__name__)

MAX_OPEN = 512
"""Shards that a process keeps open: below the usual limit of 1024 files."""

MAX_HELD_OUT = 256
"""Records of a source that an evaluation looks at, unless it is told otherwise."""

FORMAT_OF = {extension: name for name, extension in EXTENSIONS.items()}

Transform = Callable[[Record], Any]


class MixtureDataset(Dataset[Any]):
    """Records of a run's sources. Its length is the number of records of the first shards that are not held out.

    `global_batch_samples` is set by what draws from it, before the first step.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceSettings],
        seed: int,
        transform: Transform | None = None,
        temperature: float = 1.0,
        folder: Path | None = None,
    ) -> None:
        """Read the first shards. `folder` holds those of live sources. Raises `Invalid` if there is no record."""
        self.global_batch_samples = 0
        self._transform, self._folder = transform, folder
        # Files of configured paths, by hash, with their format.
        self._files: dict[str, tuple[Path, str]] = {}
        first = {name: Source(settings, self._first_shards(name, settings)) for name, settings in sources.items()}
        self._order: MixtureOrder | None = MixtureOrder(first, seed, temperature)
        self._begin = partial(MixtureOrder, first, seed, temperature)
        if not self._order.has(0, 1):
            raise Invalid("no source has a record and a weight above 0: a training cannot begin without a sample")
        # Of each first shard, the rows to train on.
        self._first = [
            (shard, rows_of(shard, source.settings.held_out)) for source in first.values() for shard in source.shards
        ]
        self._open: dict[str, Shard] = {}

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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a loader's worker needs: files, not the order."""
        return self.__dict__ | {"_order": None, "_begin": None, "_open": {}}

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._first)

    def __getitem__(self, at: Reference | int) -> Any:
        """Return a sample: the record, through the transform. Raises `Invalid` if its shard cannot be read."""
        record = self.record(at if isinstance(at, Reference) else self._numbered(at))
        return record if self._transform is None else self._transform(record)

    def _numbered(self, index: int) -> Reference:
        for shard, rows in self._first:
            if index < len(rows):
                return Reference("", shard.sha256, int(rows[index]), shard.file)
            index -= len(rows)
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

    def begin(self) -> None:
        """Begin a training: its order is that of the first shards, without the changes of an earlier one."""
        self._order = self._begin()

    def batch(self, number: int) -> list[Reference]:
        """Return the records of global batch `number`, from 1, in order. Raises `Exhausted` after the last one."""
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
        if reason := self.order.reason_against(intent, (number - 1) * self.global_batch_samples):
            return reason
        settings = self.order.settings | intent.sources_added()
        return next(filter(None, (self._unreadable(one, settings[one.source]) for one in intent.shards_added())), None)

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
        except OSError as error:
            return f"shard data/{file} cannot be read: {error.strerror or error}"
        except Invalid as error:
            return error.reason
        return None if records == shard.records else f"shard data/{file} has {records} records, not {shard.records}"

    def change(self, intent: DataIntent, number: int, current: int) -> None:
        """Make a change that holds from global batch `number` on; `current` is the last one that was trained on."""
        self.order.forget(max(0, (current - 1) * self.global_batch_samples))
        self.order.change((number - 1) * self.global_batch_samples, intent)

    def recall(self, saved: Mapping[str, Any]) -> None:
        """Restore the order of a checkpoint. Raises `Invalid` if a file of its first shards is not here any more."""
        order = MixtureOrder.recalled(saved, self.order.seed)
        for name, (_, shards) in saved["sources"].items():
            gone = next((sha256 for sha256, _, file in shards if not file and sha256 not in self._files), None)
            if gone is not None:
                raise Invalid(
                    f"source {name} began with shard {gone[:12]}, which none of the files of its path is now: put the "
                    "files back as they were; new records are sent to a live source"
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


class MixtureSampler(Sampler[Any]):
    """Sampler of a mixture for a Trainer, whose epochs are as long as the first shards, in whole global batches.

    The mixture has no epochs: the next one goes on where this one ends. `skip` says how many batches of an epoch are
    passed over: for those nothing is drawn.
    """

    def __init__(self, data: MixtureDataset, global_batch_samples: int) -> None:
        self.data, self.epoch, self.skip = data, 0, 0
        data.global_batch_samples = global_batch_samples
        self._batches = max(1, len(data) // global_batch_samples)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is iterated next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches * self.data.global_batch_samples

    def __iter__(self) -> Iterator[Any]:
        first, skip = self.epoch * self._batches + 1, self.skip
        for _ in range(skip * self.data.global_batch_samples):
            yield None
        for number in range(first + skip, first + self._batches):
            if not self.data.has(number):
                return
            yield from self.data.batch(number)


def mixture(
    transform: Transform | None = None,
    *,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int | None = None,
) -> MixtureDataset:
    """Return the data of the run's sources, for any Trainer or loop.

    Args:
        transform: makes a sample of a record (a mapping of fields to values); by default the record is the sample.
        sources: settings by name, as in a config's section `sources`; by default the run's. Paths are globs.
        seed: of the order; by default the run's.

    Raises: `Invalid` if there are no sources, or no records.
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
    temperature = run.temperature if run is not None else 1.0
    return MixtureDataset(settings, seed, transform, temperature, run.files.data if run is not None else None)
