"""Samples of shards, made once a node and kept as Arrow files, which processes map: no pickles, no second tokenization.

    cache = SampleCache(tokenize, fingerprint="my-tokens-1")
    shard = cache.open(path, "jsonl", sha256)       # made by the first process; the others wait for it
    shard[7]["input_ids"], shard.lengths("input_ids")

The file has batches of 1,024 samples. Its key is a hash over the shard's bytes, the fingerprint of what makes the
samples, and the versions of both formats. A sample is a mapping of names to numbers, texts, lists of numbers, NumPy
arrays or tensors, of one type for all records.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from control_plane.core.model.errors import Invalid
from ray_jobs.data.mixture.sample_columns import Columns, Sample
from ray_jobs.data.mixture.shards import Record, Shard, open_shard
from ray_jobs.data.node_cache import kept_file, key_of

log = logging.getLogger(__name__)

BATCH = 1024
"""Records of one batch: what is held in memory while a file is made."""

LAYOUT = 1


class CachedShard:
    """Samples of one shard, mapped from an Arrow file, or held in memory where no file could be written."""

    def __init__(self, source: Any) -> None:
        """Open it. `source`: a path, or a buffer. Raises `ValueError`, `OSError` if it is no whole file."""
        import pyarrow

        self._map = pyarrow.memory_map(str(source)) if isinstance(source, Path) else pyarrow.BufferReader(source)
        try:
            self._reader = pyarrow.ipc.open_file(self._map)
            self.columns = Columns.described(self._reader.schema.metadata)
        except (pyarrow.ArrowException, KeyError, TypeError) as error:
            raise ValueError(f"it is no file of samples ({type(error).__name__})") from None
        last = self._reader.num_record_batches - 1
        self._records = last * BATCH + self._reader.get_batch(last).num_rows if last >= 0 else 0
        self._batches: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, row: int) -> Sample:
        """Return the sample of a record, as it was made."""
        return self.columns.sample(self._batch(row // BATCH), row % BATCH)

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """Return the number of values of a list or array of each sample, shape `(records,)`."""
        batches = (self._batch(number) for number in range(self._reader.num_record_batches))
        return np.concatenate([np.zeros(0, np.int64), *(self.columns.lengths(batch, name) for batch in batches)])

    def _batch(self, number: int) -> Any:
        if number not in self._batches:
            self._batches[number] = self.columns.arrays(self._reader.get_batch(number))
        return self._batches[number]


class SampleCache:
    """Cache of what `make` makes of records. `fingerprint` names it: it must change whenever `make` does."""

    def __init__(self, make: Callable[[Record], Any], fingerprint: str) -> None:
        self.make, self.fingerprint = make, fingerprint

    def open(self, path: Path, format_: str, sha256: str) -> CachedShard:
        """Return the samples of a shard, which are made if they are not here. Raises `Invalid` if one cannot be."""
        key = key_of(sha256, format_, self.fingerprint, LAYOUT)
        try:
            return CachedShard(kept_file("samples", key, lambda file: self._write(file, open_shard(path, format_))))
        except OSError as error:
            log.warning("samples of %s cannot be kept on this node, and are held in memory: %s", path.name, error)
            return self._in_memory(open_shard(path, format_))

    def _in_memory(self, shard: Shard) -> CachedShard:
        import pyarrow

        sink = pyarrow.BufferOutputStream()
        self._write(sink, shard)
        return CachedShard(sink.getvalue())

    def _write(self, file: Any, shard: Shard) -> None:
        """Write the samples of a shard as an Arrow file. Raises `Invalid` for one that is no sample, `OSError`."""
        import pyarrow

        columns: Columns | None = None
        writer: Any = None
        try:
            for first in range(0, len(shard), BATCH):
                samples = list(self._samples(shard, first))
                if columns is None:
                    columns = Columns.of_all(samples)
                    writer = pyarrow.ipc.new_file(file, columns.schema())
                try:
                    writer.write_batch(columns.batch(samples))
                except Invalid as error:
                    raise Invalid(f"records {first} to {first + len(samples) - 1} of a shard: {error.reason}") from None
        finally:
            if writer is not None:
                writer.close()

    def _samples(self, shard: Shard, first: int) -> Iterator[Any]:
        for row in range(first, min(first + BATCH, len(shard))):
            yield self.make(shard[row])
