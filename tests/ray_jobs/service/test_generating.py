"""The task of a generator: the function of the run's own file, examples that are not held out, and errors as text."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from control_plane.config_text import to_yaml
from control_plane.core.model.data import is_held_out
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import sign_config
from ray_jobs.config.run_config import RunConfig, load
from ray_jobs.data.mixture.shards import file_sha256
from ray_jobs.service.generating import generated

WRITER = """
import numpy as np
import beside

def write(asked):
    assert asked["examples"], asked
    for number in range(100):
        yield {"text": beside.WORD + str(number), "stars": np.int64(number), "grid": np.zeros(2)}
    raise AssertionError("it is asked for no more")

def fails(asked):
    raise ValueError("no records today")

def exits(asked):
    raise SystemExit(3)

def returns_a_number(asked):
    return 7
"""
FIELDS = {"text": "text", "stars": "integer"}
ROWS = 400


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    folder = tmp_path / "project"
    folder.mkdir()
    rows = ({"text": f"{'even' if n % 2 == 0 else 'odd'} {n}", "stars": n % 2} for n in range(ROWS))
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "writer.py").write_text(WRITER)
    (folder / "beside.py").write_text("WORD = 'word '\n")
    (folder / "train.py").write_text("")
    source = {
        "format": "jsonl",
        "live": True,
        "path": "web.jsonl",
        "fields": FIELDS,
        "held_out": 0.5,
        "slices": "stars",
    }
    config = {
        "name": "made",
        "seed": 1,
        "workload": {"kind": "script", "path": "train.py"},
        "sources": {"web": source},
        "generators": {"g": {"source": "web", "path": "writer.py", "max_records": 10}},
    }
    (folder / "run.yaml").write_text(to_yaml(config))
    files = RunFiles(tmp_path / "home" / "runs" / "made-1")
    files.root.mkdir(parents=True)
    files.config.write_text(load(folder / "run.yaml").to_yaml())
    sign_config(files)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(Path.cwd())
    return files


def answer(run: RunFiles, function: str | None = "write", of_slice: str = "1", count: int = 5) -> dict[str, Any]:
    config = RunConfig.from_yaml(run.config.read_text())
    path = config.generators["g"].path
    request = {
        "run": run.run,
        "call": None if function is None else (path, function),
        "examples": 8,
        "sources": {name: one.model_dump(mode="json") for name, one in config.sources.items()},
        "asked": {
            "generator": "g",
            "source": "web",
            "slice": of_slice,
            "loss": 4.0,
            "step": 20,
            "records": count,
            "seed": 11,
        },
    }
    told: dict[str, Any] = json.loads(generated(str(run.root), json.dumps(request)))
    return told


def test_function_writes_as_many_as_are_asked_for_and_numbers_become_plain(run: RunFiles) -> None:
    told = answer(run)
    assert told["records"] == [{"text": f"word {n}", "stars": n, "grid": [0.0, 0.0]} for n in range(5)]
    assert os.getcwd() == str(run.work)


def test_examples_are_of_the_slice_and_never_held_out(run: RunFiles) -> None:
    path = run.root.parents[2] / "project" / "web.jsonl"
    sha256 = file_sha256(path)
    told = answer(run, function=None)
    assert "records" not in told
    assert len(told["examples"]) == 8
    assert {example["stars"] for example in told["examples"]} == {1}
    rows = [int(example["text"].split()[1]) for example in told["examples"]]
    assert not any(is_held_out(sha256, row, 0.5) for row in rows)
    assert answer(run, function=None) == told, "the same seed, the same examples"
    assert answer(run, function=None, of_slice="7")["examples"] == []
    path.unlink()
    assert answer(run, function=None)["examples"] == []


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("fails", "ValueError: no records today"),
        ("exits", "SystemExit: 3"),
        ("returns_a_number", "returned int, but must return mappings"),
        ("missing", "writer.py has no function missing"),
    ],
)
def test_what_a_function_does_wrong_is_told_as_text(run: RunFiles, function: str, reason: str) -> None:
    assert reason in answer(run, function)["error"]


def test_a_run_that_was_not_signed_here_is_refused(run: RunFiles) -> None:
    run.config.write_text(run.config.read_text() + "\n# changed\n")
    assert "records" not in answer(run)
    assert "a job of it would run" in answer(run)["error"]
