"""Bodies and settings for the tests of this folder."""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from control_plane.core.model.data import SourceSettings

WORDS = SourceSettings.model_validate(
    {"format": "jsonl", "live": True, "fields": {"text": "text", "stars": {"type": "integer", "required": False}}}
)
LINES = SourceSettings.model_validate({"format": "text", "live": True})
TABLE = SourceSettings.model_validate(
    {"format": "parquet", "live": True, "fields": {"text": "text", "score": "number"}}
)
PICTURES = SourceSettings.model_validate({"format": "images", "live": True})
FRAMES = SourceSettings.model_validate(
    {
        "format": "arrays",
        "live": True,
        "fields": {
            "frame": {"type": "array", "dtype": "float32", "shape": [2, 3]},
            "event": {"type": "integer"},
        },
    }
)


def jsonl(records: Iterable[Any]) -> bytes:
    """One JSON value a line."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def npz(arrays: Mapping[str, Any], compressed: bool = False, allow_pickle: bool = False) -> bytes:
    """A file of arrays."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(value), allow_pickle=allow_pickle)
            archive.writestr(f"{name}.npy", member.getvalue())
    return body.getvalue()


def frames(count: int, first: int = 0) -> dict[str, Any]:
    """Frames that all differ."""
    values = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3) + 1000 * first
    return {"frame": values, "event": np.arange(count, dtype=np.int64)}


def png(color: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A picture of one colour."""
    body = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(body, "PNG")
    return body.getvalue()


def archive(entries: Mapping[str, bytes]) -> bytes:
    """A zip file."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return body.getvalue()
