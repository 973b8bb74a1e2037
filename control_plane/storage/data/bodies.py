"""Bodies of requests that bring records: each media type read record by record, with the place of each.

    json         one JSON array of records            jsonl      one JSON object a line
    text         one record a line                    parquet    one record a row
    npz          one array a field, first axis: records           zip   one image an entry

A body is not trusted: nothing is unpickled, nothing unpacked to the disk, and no name in it is used as a path.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from control_plane.api.strict_json import parse_strictly
from control_plane.core.model.data import Format, SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.storage.data.checking import BadRecord, check_record

Media = Literal["json", "jsonl", "text", "parquet", "npz", "zip"]

MEDIA_TYPES: Mapping[str, Media] = {
    "application/json": "json",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "text/plain": "text",
    "application/vnd.apache.parquet": "parquet",
    "application/x-npz": "npz",
    "application/zip": "zip",
}

ACCEPTED: Mapping[Format, tuple[Media, ...]] = {
    "jsonl": ("jsonl", "json"),
    "text": ("text", "jsonl", "json"),
    "arrays": ("npz", "jsonl", "json"),
    "parquet": ("parquet", "jsonl", "json"),
    "images": ("zip",),
}
"""Media that a source of each format takes; the first one is a file of its own format."""

MAX_RECORDS = 100_000
"""Records of one request: checking them takes seconds."""

MAX_EXPANSION = 8
"""A body may hold so many times its own size: more is an attack by compression."""

MAX_PIXELS = 64_000_000
IMAGE_FORMATS = ("PNG", "JPEG")

Placed = tuple[str, dict[str, Any] | BadRecord]
"""Place of a record, and the record by the schema, or what is wrong with it."""


def read_body(path: Path, media: Media, settings: SourceSettings) -> Iterator[Placed]:
    """Yield every record of a body, checked. Raises `Invalid` for a body that cannot be read as what it says it is."""
    if media not in ACCEPTED[settings.format]:
        raise Invalid(
            f"a source of format {settings.format} takes no {media}; send one of: {', '.join(accepted(settings))}"
        )
    schema = settings.schema_of_records
    for number, (at, raw) in enumerate(_READERS[media](path, settings), start=1):
        if number > MAX_RECORDS:
            raise Invalid(f"one request may bring {MAX_RECORDS:,} records; send several", limit=MAX_RECORDS)
        if isinstance(raw, BadRecord):
            yield at, raw
            continue
        try:
            yield at, check_record(raw, schema)
        except BadRecord as reason:
            yield at, reason


def accepted(settings: SourceSettings) -> list[str]:
    """Return the media types that a source takes."""
    return [name for name, media in MEDIA_TYPES.items() if media in ACCEPTED[settings.format]]


Raw = Iterator[tuple[str, object]]


def _json(path: Path, settings: SourceSettings) -> Raw:
    try:
        records = parse_strictly(path.read_bytes())
    except json.JSONDecodeError as error:
        raise Invalid(f"the body is not valid JSON: {error.msg}") from None
    if not isinstance(records, list):
        raise Invalid("the body must be a JSON array of records")
    for number, record in enumerate(records, start=1):
        yield f"record {number}", record


def lines_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the place and the bytes of each line of a file that is not empty, without its end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if text := line.rstrip(b"\r\n"):
                yield f"line {number}", text


def _jsonl(path: Path, settings: SourceSettings) -> Raw:
    for at, line in lines_of(path):
        try:
            yield at, parse_strictly(line)
        except json.JSONDecodeError as error:
            yield at, BadRecord(f"it is not valid JSON: {error.msg} (at character {error.pos + 1})")


def _text(path: Path, settings: SourceSettings) -> Raw:
    for at, line in lines_of(path):
        try:
            yield at, {settings.record_field: line.decode()}
        except UnicodeDecodeError:
            yield at, BadRecord("it is not UTF-8")


def _parquet(path: Path, settings: SourceSettings) -> Raw:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_expansion(path, sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups)))
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield f"record {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise Invalid(f"the body is no readable Parquet file ({type(error).__name__})") from None


def _npz(path: Path, settings: SourceSettings) -> Raw:
    import numpy as np

    arrays: dict[str, Any] = {}
    with _archive(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in settings.fields or name in arrays:
                raise Invalid(
                    f"the arrays of the file must be the schema's fields, each once: {', '.join(settings.fields)}"
                )
            try:
                with archive.open(entry) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, MemoryError) as error:
                raise Invalid(
                    f"array {name!r} cannot be read ({type(error).__name__}): it must be plain numbers"
                ) from None
    lengths = {len(array) if array.ndim else -1 for array in arrays.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise Invalid("the arrays must have one first axis in common, which counts the records")
    for row in range(lengths.pop()):
        # A field that is one number a record arrives as a plain one.
        yield (
            f"record {row + 1}",
            {
                name: array[row] if array.ndim > 1 or settings.fields[name].type == "array" else array[row].item()
                for name, array in arrays.items()
            },
        )


def _zip(path: Path, settings: SourceSettings) -> Raw:
    with _archive(path) as archive:
        names = [entry.filename for entry in archive.infolist()]
        if len(set(names)) < len(names):
            raise Invalid("the archive holds two entries of one name")
        for number, entry in enumerate(sorted(archive.infolist(), key=lambda one: one.filename), start=1):
            at = f"image {number}"
            try:
                data = archive.read(entry)
            except (OSError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
                yield at, BadRecord(f"it cannot be read ({type(error).__name__})")
                continue
            reason = image_fault(data)
            yield at, BadRecord(reason) if reason else {settings.record_field: data}


def image_fault(data: bytes) -> str | None:
    """Return why these bytes are no image that a training could read; None if they are one."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"it has {width} x {height} pixels, and the most are {MAX_PIXELS:,}"
            image.load()
    except UnidentifiedImageError:
        return f"it is no image of {' or '.join(IMAGE_FORMATS)}"
    except Exception as error:
        # A decoder raises whatever it meets in a broken file: OSError, SyntaxError, struct.error, ValueError.
        return f"it is a broken image ({type(error).__name__})"
    return None


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Invalid(f"the body is no readable archive ({type(error).__name__})") from None
    _check_expansion(path, sum(entry.file_size for entry in archive.infolist()))
    return archive


def _check_expansion(path: Path, expanded_bytes: int) -> None:
    if expanded_bytes > MAX_EXPANSION * path.stat().st_size + (1 << 20):
        raise Invalid(f"the body unpacks to {expanded_bytes:,} bytes, more than {MAX_EXPANSION} times its size")


_READERS: Mapping[Media, Callable[[Path, SourceSettings], Raw]] = {
    "json": _json,
    "jsonl": _jsonl,
    "text": _text,
    "parquet": _parquet,
    "npz": _npz,
    "zip": _zip,
}
