"""Shards on disk: immutable files whose records are read one by one, memory-mapped where the format allows it.

    shard = open_shard(path, "jsonl")        # jsonl, text, parquet, arrays, images
    len(shard), shard[7]                     # records; a record is a mapping of fields to values

A text or JSONL file is mapped, and indexed by its lines once a process; empty lines are no records. Arrays are mapped
from an `.npz` without compression. A large Parquet file is unpacked once a node, and then mapped. An image is decoded
at each look.
"""

import json
import logging
import mmap
import os
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.storage.data.configured import first_fault
from ray_jobs.data.node_cache import file_sha256, kept_file, key_of, once

log = logging.getLogger(__name__)

Record = dict[str, Any]

MAX_TABLE_BYTES = 64 << 20
"""Unpacked size of a Parquet file that each process holds in memory."""

LOCAL_HEADER_BYTES = 30
"""Of a member of a zip file, before its name and its extra field, whose lengths stand at its end."""


class Shard(ABC):
    """Records of one file by row, from 0."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def __getitem__(self, row: int) -> Record:
        """Return a record. Raises `Invalid` if its bytes are none."""


class LineShard(Shard):
    """Records of a text file, one a line. `parse` makes a record of a line's bytes."""

    def __init__(self, path: Path, is_json: bool) -> None:
        self._path, self._is_json = path, is_json
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._map: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        content = np.frombuffer(self._map, dtype=np.uint8)
        ends = np.flatnonzero(content == ord("\n"))
        if size and (not len(ends) or ends[-1] != size - 1):
            ends = np.append(ends, size)
        begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        filled = ends - begins > (content[np.maximum(ends - 1, 0)] == ord("\r"))
        self._begins, self._ends = begins[filled], ends[filled]

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, row: int) -> Record:
        line = bytes(self._map[int(self._begins[row]) : int(self._ends[row])])
        try:
            text = line.decode("utf-8").removesuffix("\r")
            record = json.loads(text) if self._is_json else {"text": text}
        except ValueError as error:
            raise Invalid(f"{self._path.name}, record {row}: {error}") from None
        if not isinstance(record, dict):
            raise Invalid(f"{self._path.name}, record {row} is no JSON object")
        return record


class TableShard(Shard):
    """Records of a Parquet file, one a row.

    A small table is held in memory. Of a large one the row groups are unpacked one after the other, once a node, into
    an Arrow file that is mapped: records are drawn in a random order, and each would take the unpacking of a group.
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import ipc, memory_map, parquet

        with parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            is_small = sum(group.total_byte_size for group in groups) <= MAX_TABLE_BYTES
            if is_small or (kept := _unpacked(path, file)) is None:
                self._batches = file.read().to_batches()
            else:
                reader = ipc.open_file(memory_map(str(kept)))
                self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._firsts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, row: int) -> Record:
        if not 0 <= row < len(self):
            raise IndexError(row)
        index = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return dict(self._batches[index].slice(row - int(self._firsts[index]), 1).to_pylist()[0])


def _unpacked(path: Path, file: Any) -> Path | None:
    """Return the Arrow file of a Parquet file's records on this node; None if it cannot be kept."""
    stat = path.stat()
    key = key_of(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    try:
        return kept_file("tables", key, lambda to: _unpack_table(file, to))
    except OSError as error:
        log.warning("table %s cannot be unpacked on this node, and is held in memory: %s", path.name, error)
        return None


def _unpack_table(file: Any, to: BinaryIO) -> None:
    """Write the row groups of a Parquet file as an Arrow file, one after the other."""
    from pyarrow import ipc

    with ipc.new_file(to, file.schema_arrow) as writer:
        for index in range(file.metadata.num_row_groups):
            writer.write_table(file.read_row_group(index))


class ArrayShard(Shard):
    """Records of an `.npz` file without compression: row `i` of each of its arrays, as a copy."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            self._arrays = {
                member.filename.removesuffix(".npy"): _mapped(path, file, member) for member in archive.infolist()
            }
        lengths = {len(array) for array in self._arrays.values()}
        if len(lengths) != 1:
            raise Invalid(f"the arrays of {path.name} have {sorted(lengths)} records, but must have equally many")
        self._length = lengths.pop()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Record:
        return {name: np.array(array[row]) for name, array in self._arrays.items()}


def _mapped(path: Path, file: Any, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    if member.compress_type != zipfile.ZIP_STORED:
        raise Invalid(f"{path.name} is compressed: save it with numpy.savez, not savez_compressed")
    file.seek(member.header_offset + LOCAL_HEADER_BYTES - 4)
    name_bytes, extra_bytes = (int.from_bytes(file.read(2), "little") for _ in range(2))
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except ValueError as error:
        raise Invalid(f"{path.name}: {member.filename} is no array: {error}") from None
    if dtype.hasobject or not shape or is_fortran:
        raise Invalid(f"{path.name}: {member.filename} is {dtype} of shape {shape}, but must be numbers by record")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


class ImageShard(Shard):
    """Records of a zip of images, in the order of their names: `image`, uint8, shape (height, width, channels)."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names = sorted(member.filename for member in self._archive.infolist() if not member.is_dir())
        self._pid = os.getpid()
        self._path = path

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Record:
        from PIL import Image, UnidentifiedImageError

        if self._pid != os.getpid():  # forked processes would move one file position
            self._archive, self._pid = zipfile.ZipFile(self._path), os.getpid()
        try:
            with self._archive.open(self._names[row]) as file, Image.open(file) as image:
                return {"image": np.atleast_3d(np.asarray(image))}
        except (UnidentifiedImageError, OSError, zipfile.BadZipFile) as error:
            raise Invalid(f"{self._path.name}, record {row}: {error}") from None


def open_shard(path: Path, format_: str) -> Shard:
    """Open a shard. Raises `Invalid` if it cannot be read, with the reason."""
    try:
        match format_:
            case "jsonl" | "text":
                return LineShard(path, is_json=format_ == "jsonl")
            case "parquet":
                return TableShard(path)
            case "arrays":
                return ArrayShard(path)
            case "images":
                return ImageShard(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Invalid(f"{path} cannot be read as {format_}: {error}") from None
    raise Invalid(f"there is no format {format_!r}")


def described(path: Path, format_: str) -> tuple[str, int]:
    """Return a configured file's SHA-256 and its number of records; once a node for its size and time of change.

    Raises `Invalid` if it cannot be read.
    """
    try:
        stat = path.stat()
        place = str(path.resolve()), format_, stat.st_size, stat.st_mtime_ns
        sha256, records = once("shards", place, lambda: [file_sha256(path), len(open_shard(path, format_))])
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from None
    return str(sha256), int(records)


def check_file(path: Path, sha256: str, settings: SourceSettings) -> None:
    """Check the records of a configured file against its source's schema, once a node for these bytes and this schema.

    Raises `Invalid` for the first one that does not fit, with file, place and reason.
    """
    schema = {name: field.model_dump(mode="json") for name, field in settings.schema_of_records.items()}
    key = sha256, settings.format, json.dumps(schema, sort_keys=True)
    if fault := once("checked", key, lambda: first_fault(path, settings)):
        raise Invalid(str(fault))
