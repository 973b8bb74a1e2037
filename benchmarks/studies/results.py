"""File of results: one JSON object a line, appended as runs end, so that a study goes on where it was interrupted."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def append(path: Path, row: Row) -> None:
    """Append a result, durably."""
    line = json.dumps(dict(row), allow_nan=True) + "\n"
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line  # a line that was cut off stays a line of its own
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, Row]:
    """Return the results by their keys, the newest of each. A line that was cut off by a crash is left out."""
    rows: dict[str, Row] = {}
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            rows[row["key"]] = row
    return rows
