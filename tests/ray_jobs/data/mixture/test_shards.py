"""Shards of every format: records by row, what is no record, and files that cannot be read."""

import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import INTENT
from control_plane.storage.checkpoint.transfer import transfer_shards
from control_plane.storage.layout import RunFiles
from ray_jobs.data.mixture import shards
from ray_jobs.data.mixture.dataset import mixture
from ray_jobs.data.mixture.sampler import MixtureSampler
from ray_jobs.data.mixture.shards import described, open_shard
from ray_jobs.data.node_cache import file_sha256


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path / "home"))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def made(path: Path, format_: str) -> Path:
    """A shard with two records."""
    match format_:
        case "text":
            path.write_bytes(b"one\n\ntw\xc3\xb6")
        case "jsonl":
            path.write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}\n')
        case "parquet":
            parquet.write_table(pyarrow.table({"a": [1, 2]}), path)
        case "arrays":
            np.savez(path.open("wb"), a=np.arange(8, dtype=np.uint8).reshape(2, 2, 2), b=np.array([1.5, 2.5]))
        case "images":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("b.png", png(7))
                archive.writestr("a.png", png(3))
    return path


def read(path: Path, format_: str) -> Iterator[dict[str, Any]]:
    shard = open_shard(path, format_)
    yield from (shard[row] for row in range(len(shard)))


EXPECTED: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "one"}, {"text": "twö"}],
    "jsonl": [{"a": 1}, {"a": 2}],
    "parquet": [{"a": 1}, {"a": 2}],
    "arrays": [{"a": [[0, 1], [2, 3]], "b": 1.5}, {"a": [[4, 5], [6, 7]], "b": 2.5}],
    "images": [{"image": [[[3]] * 3] * 2}, {"image": [[[7]] * 3] * 2}],
}


@pytest.mark.parametrize("format_", EXPECTED)
def test_records_of_a_shard_are_read_by_row(tmp_path: Path, format_: str) -> None:
    path = made(tmp_path / "shard", format_)
    shard = open_shard(path, format_)
    assert len(shard) == 2
    plain = [{name: np.asarray(value).tolist() for name, value in shard[row].items()} for row in range(2)]
    assert plain == EXPECTED[format_]
    assert described(path, format_) == (file_sha256(path), 2)


@pytest.mark.parametrize("format_", EXPECTED)
def test_file_that_is_no_shard_is_refused_with_the_reason(tmp_path: Path, format_: str) -> None:
    (tmp_path / "half").write_bytes(made(tmp_path / "shard", format_).read_bytes()[:11] + b"\xff\xfe")
    with pytest.raises(Invalid, match="half"):
        list(read(tmp_path / "half", format_))
    with pytest.raises(Invalid, match="cannot be read"):
        open_shard(tmp_path / "missing", format_)


def test_large_table_is_unpacked_once_a_node_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_TABLE_BYTES", 0)
    path = tmp_path / "large.parquet"
    columns = {"a": list(range(2500)), "text": [f"text {number}" for number in range(2500)]}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=700)
    unpacked: list[Any] = []
    unpack = shards._unpack_table
    monkeypatch.setattr(shards, "_unpack_table", lambda file, to: unpacked.append(file) or unpack(file, to))
    for _ in range(2):
        shard = open_shard(path, "parquet")
        assert [shard[row] for row in (0, 699, 700, 2499)] == [
            {"a": row, "text": f"text {row}"} for row in (0, 699, 700, 2499)
        ]
        assert len(shard) == 2500
    assert len(unpacked) == 1
    (kept,) = (tmp_path / "home" / "cache" / "tables").glob("*.arrow")
    kept.write_bytes(kept.read_bytes()[:-10])
    assert open_shard(path, "parquet")[2499]["a"] == 2499
    assert len(unpacked) == 2
    with pytest.raises(IndexError):
        shard[2500]


def test_arrays_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "small.npz", a=np.zeros(4))
    np.savez(tmp_path / "uneven.npz", a=np.zeros(4), b=np.zeros(5))
    np.savez(tmp_path / "objects.npz", a=np.array([{}, None]))
    for name, reason in (
        ("small", "is compressed"),
        ("uneven", r"have \[4, 5\] records"),
        ("objects", "must be numbers"),
    ):
        with pytest.raises(Invalid, match=reason):
            open_shard(tmp_path / f"{name}.npz", "arrays")


def test_image_that_is_none_is_refused_when_it_is_drawn(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "poisoned.zip", "w") as archive:
        archive.writestr("a.png", b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(Invalid, match=r"poisoned.zip, record 0"):
        open_shard(tmp_path / "poisoned.zip", "images")[0]


def test_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "shard", "jsonl")
    first = described(path, "jsonl")
    hashed: list[Path] = []
    monkeypatch.setattr(shards, "file_sha256", lambda path: hashed.append(path) or "other")
    assert (described(path, "jsonl"), hashed) == (first, [])
    path.write_bytes(path.read_bytes() + b'{"a": 3}\n')
    assert (described(path, "jsonl"), hashed) == (("other", 3), [path])


def test_empty_file_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert len(open_shard(tmp_path / "empty", "text")) == 0
    with pytest.raises(Invalid, match="no source has a record"):
        mixture(sources={"a": {"format": "text", "path": str(tmp_path / "empty")}})


def test_fork_is_given_the_shards_and_no_index(tmp_path: Path) -> None:
    parent, child = RunFiles(tmp_path / "runs" / "parent"), RunFiles(tmp_path / "runs" / "child")
    folder, name = parent.data / "fresh", "a5" * 32 + ".jsonl"
    folder.mkdir(parents=True)
    for other in (name, "index.sqlite", "half.tmp", "a5" * 32, "a5" * 32 + ".jsonl.tmp"):
        (folder / other).write_text("content")
    for _ in range(2):
        transfer_shards(parent, child)
        assert [path.relative_to(child.data) for path in child.data.rglob("*.*")] == [Path("fresh") / name]
    assert (child.data / "fresh" / name).samefile(folder / name)


# --- Data of a training ---


def test_file_is_checked_against_the_schema_once_a_node_and_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = numbered(tmp_path, 5)
    checked: list[Path] = []
    fault = shards.first_fault
    monkeypatch.setattr(shards, "first_fault", lambda path, settings: checked.append(path) or fault(path, settings))
    mixture(sources=sources)
    mixture(sources=sources)
    assert len(checked) == 1
    sources["web"]["fields"] = {"id": "text"}
    for _ in range(2):
        with pytest.raises(Invalid, match=r"sources.web: a.jsonl, line 1: field 'id' is a whole number"):
            mixture(sources=sources)
    assert len(checked) == 2


def numbered(folder: Path, count: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"id": number}) + "\n" for number in range(count))
    (folder / "a.jsonl").write_text(text)
    return {"web": {"format": "jsonl", "path": str(folder / "*.jsonl"), "fields": {"id": "integer"}}}


def test_mixture_without_a_run_is_a_dataset(tmp_path: Path) -> None:
    data = mixture(lambda record: -record["id"], sources=numbered(tmp_path, 5), seed=3)
    assert (len(data), [data[index] for index in range(5)]) == (5, [0, -1, -2, -3, -4])
    data.global_batch_samples = 5
    assert sorted(data[each] for each in data.batch(1)) == [-4, -3, -2, -1, 0]
    with pytest.raises(IndexError):
        data[5]
    with pytest.raises(Invalid, match="there are no sources"):
        mixture()
    with pytest.raises(Invalid, match="no file matches"):
        mixture(sources={"web": {"format": "text", "path": str(tmp_path / "none" / "*")}})


def test_worker_reads_references_and_knows_no_order(tmp_path: Path) -> None:
    data = mixture(sources=numbered(tmp_path, 5))
    data.global_batch_samples = 2
    (first, _) = data.batch(1)
    theirs = pickle.loads(pickle.dumps(data))
    assert theirs[first] == data[first]
    with pytest.raises(RuntimeError, match="in the training's process only"):
        theirs.batch(1)


def test_sampler_passes_over_what_was_trained_on_and_draws_the_rest(tmp_path: Path) -> None:
    data = mixture(sources=numbered(tmp_path, 9))
    sampler = MixtureSampler(data, 2)
    assert len(sampler) == 8
    whole = list(sampler)
    sampler.skip = 3
    assert list(sampler) == [None] * 6 + whole[6:]
    sampler.set_epoch(1)
    sampler.skip = 0
    assert [*whole, *sampler] == data.order.span(0, 16)


def test_second_training_begins_with_the_first_shards(tmp_path: Path) -> None:
    data = mixture(sources=numbered(tmp_path, 5))
    data.global_batch_samples = 2
    before = data.batch(1)
    data.change(INTENT.validate_python({"kind": "set_mixture", "weights": {"web": 2.0}}), 30, 29)  # type: ignore[arg-type]
    data.order.forget(58)
    data.begin()
    assert (data.batch(1), data.status(31)["web"]["weight"]) == (before, 1.0)


def test_checkpoint_is_not_restored_without_its_first_files(tmp_path: Path) -> None:
    data = mixture(sources=numbered(tmp_path / "one", 5))
    data.global_batch_samples = 2
    data.change(INTENT.validate_python({"kind": "set_mixture", "weights": {"web": 2.0}}), 3, 2)  # type: ignore[arg-type]
    saved = json.loads(json.dumps(data.order.memory()))
    again = mixture(sources=numbered(tmp_path / "two", 5))
    again.global_batch_samples = 2
    again.recall(saved)
    assert (again.status(3), again.digest(3)) == (data.status(3), data.digest(3))
    with pytest.raises(Invalid, match="none of the files of its path is now"):
        mixture(sources=numbered(tmp_path / "other", 6)).recall(saved)
