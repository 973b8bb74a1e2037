"""Files of a source's path, checked against its `fields`: the first record that breaks them, with place and reason.

    first_fault(Path("web/a.jsonl"), settings)      # "a.jsonl, line 7: field 'text' is missing", or None

These files are the user's own, so they may be of any size and have fields that the schema does not name, which are not
looked at. A file is read once, in pieces; columns and arrays are checked as such where their types allow it.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from control_plane.api.strict_json import parse_strictly
from control_plane.core.model.data import FieldSchema, Format, SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.storage.data.bodies import image_fault, lines_of
from control_plane.storage.data.checking import BadRecord, Schema, check_record, check_value

CHECKED_AT_SUBMIT_BYTES = 32 << 20
"""Files of a run that are checked before it is submitted: a second or two. Ranks check the others as they open them."""

ARRAY_PIECE_BYTES = 16 << 20
BATCH_ROWS = 1024

Faults = Iterator[tuple[str, str]]
"""Place in the file, and what is wrong there."""


def first_fault(path: Path, settings: SourceSettings) -> str | None:
    """Return the first fault of a file, with file, place and reason; None if every record fits the schema.

    Raises `Invalid` if the file cannot be read.
    """
    try:
        for at, reason in _FAULTS[settings.format](path, settings.schema_of_records):
            return f"{path.name}, {at}: {reason}" if at else f"{path.name}: {reason}"
    except OSError as error:
        raise Invalid(f"{path.name} cannot be read: {error.strerror or error}") from None
    return None


def check_small_files(sources: Mapping[str, SourceSettings]) -> None:
    """Check the first files of sources whose paths are here, up to a number of bytes. Raises `Invalid`."""
    left = CHECKED_AT_SUBMIT_BYTES
    for name, settings in sources.items():
        for path in sorted(map(Path, glob(settings.path, recursive=True))) if settings.path is not None else ():
            if not path.is_file() or path.stat().st_size > left:
                continue
            left -= path.stat().st_size
            if fault := first_fault(path, settings):
                raise Invalid(f"sources.{name}: {fault}")


def _known(record: object, schema: Schema) -> object:
    return {name: record[name] for name in schema if name in record} if isinstance(record, Mapping) else record


def _jsonl(path: Path, schema: Schema) -> Faults:
    for at, line in lines_of(path):
        try:
            check_record(_known(parse_strictly(line), schema), schema)
        except BadRecord as reason:
            yield at, str(reason)
        except json.JSONDecodeError as error:
            yield at, f"it is not valid JSON: {error.msg} (at character {error.pos + 1})"
        except ValueError as error:
            yield at, f"it is not valid JSON: {error}"


def _text(path: Path, schema: Schema) -> Faults:
    for at, line in lines_of(path):
        try:
            line.decode()
        except UnicodeDecodeError:
            yield at, "it is not UTF-8"


def _images(path: Path, schema: Schema) -> Faults:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.infolist(), key=lambda one: one.filename):
                reason = None if entry.is_dir() else image_fault(archive.read(entry))
                if reason:
                    yield entry.filename, reason
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        yield "", f"it is no readable archive ({type(error).__name__})"


# --- Parquet, by row group and column ---


def _parquet(path: Path, schema: Schema) -> Faults:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _missing_columns(file.schema_arrow.names, schema)
            names = [name for name in schema if name in file.schema_arrow.names]
            first = 1
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                for name in names:
                    yield from _column_faults(name, batch.column(name), schema[name], first)
                first += batch.num_rows
    except pyarrow.ArrowException as error:
        yield "", f"it is no readable Parquet file ({type(error).__name__})"


def _missing_columns(names: Sequence[str], schema: Schema) -> Faults:
    for name, field in schema.items():
        if field.required and name not in names:
            yield "", f"field {name!r} is missing"


def _column_faults(name: str, column: Any, field: FieldSchema, first: int) -> Faults:
    """Yield the faults of one field's values. `first`: number of the first record."""
    from pyarrow import types

    kind = column.type
    fits = {
        "text": types.is_string(kind) or types.is_large_string(kind),
        "integer": types.is_signed_integer(kind),
        "boolean": types.is_boolean(kind),
    }
    if fits.get(field.type) and (column.null_count == 0 or not field.required):
        return
    for row, value in enumerate(column.to_pylist()):
        if value is None and not field.required:
            continue
        try:
            if value is None:
                raise BadRecord(f"field {name!r} is null")
            check_value(name, value, field)
        except BadRecord as reason:
            yield f"record {first + row}", str(reason)


# --- Arrays ---


def _arrays(path: Path, schema: Schema) -> Faults:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            yield from _missing_columns(list(members), schema)
            for name, field in schema.items():
                if name in members:
                    with archive.open(members[name]) as file:
                        yield from _array_faults(name, file, field)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        yield "", f"it is no readable file of arrays ({type(error).__name__})"


def _array_faults(name: str, file: Any, field: FieldSchema) -> Faults:
    import numpy as np

    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not shape:
        yield "", f"field {name!r} is one value, and not one a record"
        return
    if reason := _reason_against_type(name, shape[1:], dtype, field):
        yield "record 1", reason
        return
    if dtype.kind != "f":
        return
    values = int(np.prod(shape[1:], dtype=np.int64))
    rows = max(1, ARRAY_PIECE_BYTES // max(1, values * dtype.itemsize))
    for first in range(0, shape[0] if values else 0, rows):
        piece = np.frombuffer(file.read(min(rows, shape[0] - first) * values * dtype.itemsize), dtype)
        good = np.isfinite(piece.reshape(-1, values)).all(axis=1)
        if not good.all():
            yield f"record {first + int(np.argmin(good)) + 1}", f"field {name!r} holds NaN or an infinity"
            return


def _reason_against_type(name: str, shape: tuple[int, ...], dtype: Any, field: FieldSchema) -> str | None:
    if field.type == "array":
        if dtype != field.dtype:
            return f"field {name!r} is an array of {dtype}, and the schema wants {field.dtype}"
        wanted = field.shape
        fits = wanted is None or (
            len(wanted) == len(shape) and all(want in (-1, has) for want, has in zip(wanted, shape, strict=True))
        )
        return (
            None if fits else f"field {name!r} has the shape {list(shape)}, and the schema wants {list(wanted or ())}"
        )
    kinds = {"integer": "iu", "number": "iuf", "boolean": "b"}.get(field.type, "")
    if shape or dtype.kind not in kinds:
        return f"field {name!r} is {dtype} of shape {list(shape)}, and the schema wants {field.type}"
    return None


_FAULTS: Mapping[Format, Callable[[Path, Schema], Faults]] = {
    "jsonl": _jsonl,
    "text": _text,
    "parquet": _parquet,
    "arrays": _arrays,
    "images": _images,
}
