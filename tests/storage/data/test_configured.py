"""Files of a source's path: what fits the schema is taken, and what does not is named by file, place and reason."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.storage.data import configured
from control_plane.storage.data.configured import check_small_files, first_fault


def settings(format_: str, **fields: Any) -> SourceSettings:
    return SourceSettings.model_validate({"format": format_, "path": "x", "fields": fields})


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def arrays(**members: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path.open("wb"), **members)


def images(**entries: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)

    return write


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


JSONL = settings("jsonl", text="text", n={"type": "integer", "required": False})
PARQUET = settings("parquet", text="text", x={"type": "number", "required": False})
FRAMES = settings("arrays", frame={"type": "array", "dtype": "float32", "shape": [2]}, n="integer")
FRAME = np.zeros((3, 2), np.float32)
BAD = FRAME.copy()
BAD[1, 0] = np.nan
CASES: dict[str, tuple[SourceSettings, bytes | Callable[[Path], None], str | None]] = {
    "lines": (JSONL, b'{"text": "a", "more": 1}\r\n\n{"text": "b", "n": null}', None),
    "half a line": (JSONL, b'{"text": "a"}\n\n{"text": "b', "file, line 3: it is not valid JSON"),
    "no text": (JSONL, b'{"text": "a"}\n{"n": 1}', "file, line 2: field 'text' is missing"),
    "a list": (JSONL, b"[1]", "file, line 1: it is not an object with the fields text, n"),
    "NaN": (JSONL, b'{"text": "a", "n": NaN}', "file, line 1: it is not valid JSON: NaN"),
    "text": (settings("text"), "tw\u00f6\n".encode(), None),
    "bytes": (settings("text"), b"one\n\xff\n", "file, line 2: it is not UTF-8"),
    "table": (PARQUET, table(text=["a", "b", "c"], x=[1.0, None, 2.0], more=[1, 2, 3]), None),
    "null": (PARQUET, table(text=["a", "b", None]), "file, record 3: field 'text' is null"),
    "infinite": (PARQUET, table(text=["a"], x=[float("inf")]), "file, record 1: field 'x' is not a finite number"),
    "column": (PARQUET, table(x=[1.0]), "file: field 'text' is missing"),
    "type": (PARQUET, table(text=[1, 2]), "file, record 1: field 'text' is a whole number"),
    "no table": (PARQUET, b"PAR1", "file: it is no readable Parquet file"),
    "arrays": (FRAMES, arrays(frame=FRAME, n=np.arange(3)), None),
    "NaN frame": (FRAMES, arrays(frame=BAD, n=np.arange(3)), "file, record 2: field 'frame' holds NaN"),
    "shape": (FRAMES, arrays(frame=FRAME.T.copy(), n=np.arange(2)), r"the shape \[3\], and the schema wants \[2\]"),
    "dtype": (FRAMES, arrays(frame=FRAME.astype(int), n=np.arange(3)), "an array of int64, and the schema wants"),
    "kind": (FRAMES, arrays(frame=FRAME, n=np.ones(3)), "field 'n' is float64 of shape"),
    "no arrays": (FRAMES, b"PK\x03\x04", "file: it is no readable file of arrays"),
    "images": (settings("images"), images(a=png()), None),
    "poisoned": (settings("images"), images(a=png(), b=b"\x89PNG\r\n\x1a\nno"), "file, b: it is"),
}


@pytest.mark.parametrize(("schema", "content", "reason"), CASES.values(), ids=CASES.keys())
def test_first_fault_is_named(
    tmp_path: Path, schema: SourceSettings, content: bytes | Callable[[Path], None], reason: str | None
) -> None:
    path = tmp_path / "file"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    fault = first_fault(path, schema)
    if reason is None:
        assert fault is None
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(fault)


def test_large_files_are_left_to_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configured, "CHECKED_AT_SUBMIT_BYTES", 20)
    written(tmp_path / "a.txt", b"x" * 19)
    written(tmp_path / "b.txt", b"\xff\xff")
    source = SourceSettings(format="text", path=str(tmp_path / "*.txt"))
    check_small_files({"web": source})
    monkeypatch.setattr(configured, "CHECKED_AT_SUBMIT_BYTES", 21)
    with pytest.raises(Invalid, match=r"sources.web: b.txt, line 1: it is not UTF-8"):
        check_small_files({"web": source})
