"""Bytes of a shard, the same for the same records on any machine, and the content hash of a record."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from control_plane.core.model.data import Format, SourceSettings
from control_plane.storage.data.checking import BadRecord

CONTENT_BYTES = 16
Records = Sequence[Mapping[str, Any]]


def content_hash(record: Mapping[str, Any]) -> bytes:
    """Return a hash of a checked record: equal for equal records, whatever they were sent as."""
    digest = hashlib.blake2b(digest_size=CONTENT_BYTES)
    for name, value in record.items():
        for part in (name.encode(), *_parts(value)):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.digest()


def _parts(value: Any) -> tuple[bytes, ...]:
    if isinstance(value, str):
        return b"text", value.encode()
    if isinstance(value, bytes):
        return b"bytes", value
    if isinstance(value, bool | int | float):
        # 1 and 1.0 are one number to a training.
        plain = int(value) if isinstance(value, float) and value.is_integer() else value
        return (b"boolean" if isinstance(value, bool) else b"number"), repr(plain).encode()
    return b"array", str(value.dtype).encode(), repr(value.shape).encode(), value.tobytes()


def encode(records: Records, settings: SourceSettings) -> bytes:
    """Return a shard of these records, at least one. Raises `BadRecord` if one does not fit the format."""
    return _ENCODERS[settings.format](records, settings)


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in record.items()}


def _jsonl(records: Records, settings: SourceSettings) -> bytes:
    lines = (json.dumps(_plain(record), ensure_ascii=False, separators=(",", ":")) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


def _text(records: Records, settings: SourceSettings) -> bytes:
    return "".join(f"{record[settings.record_field]}\n" for record in records).encode()


def _arrays(records: Records, settings: SourceSettings) -> bytes:
    import numpy as np

    members: dict[str, bytes] = {}
    for name in settings.fields:
        member = io.BytesIO()
        np.lib.format.write_array(member, np.stack([record[name] for record in records]), allow_pickle=False)
        members[f"{name}.npy"] = member.getvalue()
    return _stored(members)


def _images(records: Records, settings: SourceSettings) -> bytes:
    digits = len(str(len(records)))
    images = [record[settings.record_field] for record in records]
    ending = ["png" if image.startswith(b"\x89PNG") else "jpg" for image in images]
    return _stored({f"{row:0{digits}}.{ending[row]}": image for row, image in enumerate(images)})


def _stored(members: Mapping[str, bytes]) -> bytes:
    """Return an archive without compression and without times: its bytes depend on its members only."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return body.getvalue()


def _parquet(records: Records, settings: SourceSettings) -> bytes:
    import pyarrow
    import pyarrow.parquet

    types = {"text": pyarrow.string(), "integer": pyarrow.int64(), "number": pyarrow.float64()}
    types |= {"boolean": pyarrow.bool_()}
    columns = {
        name: pyarrow.array([_plain(record).get(name) for record in records], type=types.get(field.type))
        for name, field in settings.fields.items()
    }
    body = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), body)
    return body.getvalue()


_ENCODERS: Mapping[Format, Callable[[Records, SourceSettings], bytes]] = {
    "jsonl": _jsonl,
    "text": _text,
    "arrays": _arrays,
    "images": _images,
    "parquet": _parquet,
}


def check_fits(record: Mapping[str, Any], first: Mapping[str, Any], settings: SourceSettings) -> None:
    """Raise `BadRecord` for a record that has no place in one shard with the first one.

    A line of text holds no line break, and arrays of one shard are stacked: each needs the same shape.
    """
    if settings.format == "text" and "\n" in record[settings.record_field]:
        raise BadRecord("a record of format text is one line, and this one has a line break")
    if settings.format == "arrays":
        for name in settings.fields:
            if name not in record:
                raise BadRecord(f"field {name!r} is missing, and a source of format arrays needs all of them")
            if (own := _shape(record[name])) != (other := _shape(first[name])):
                raise BadRecord(
                    f"field {name!r} has the shape {list(own)}, and the first record {list(other)}: arrays of one "
                    "request must have one shape"
                )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))
