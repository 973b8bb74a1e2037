"""File of results: one JSON object a line, appended as runs end, so that a study goes on where it was interrupted.

It lies in Steerway's home unless a path is given, and so does a study's page unless all of it was run.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from control_plane.config import settings

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


def results_of(page: Path, answers: str | None) -> Path:
    """Return the file of results of the study with this page: `answers`, or one in Steerway's home."""
    return Path(answers) if answers else settings().home / "studies" / f"{page.stem}.jsonl"


def place_of(page: Path, is_whole: bool) -> Path:
    """Return where a page is written, in a folder that is there: into the documents of a clone if all of the study was
    run, else into Steerway's home."""
    place = page if is_whole and page.parents[1].is_dir() else settings().home / "studies" / page.name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
