"""Samples that are made once a node: they come back as they were, and a file that was damaged is made again."""

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Invalid
from ray_jobs.data import node_cache
from ray_jobs.data.mixture.dataset import MixtureDataset, mixture
from ray_jobs.data.node_cache import clean
from tests.ray_jobs.data.mixture.test_shards import numbered


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache" / "samples"


class Counting:
    """Makes a sample of each record, and counts."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make, self.made = make, 0

    def __call__(self, record: dict[str, Any]) -> Any:
        self.made += 1
        return self.make(int(record["id"]))


def tokens(number: int) -> dict[str, Any]:
    return {"input_ids": list(range(number % 7))}


def data_of(folder: Path, make: Any, count: int = 5, fingerprint: str | None = "one", **more: Any) -> MixtureDataset:
    return mixture(make, sources=numbered(folder, count), fingerprint=fingerprint, **more)


def everything(number: int) -> dict[str, Any]:
    return {
        "n": number,
        "x": number / 2,
        "is_odd": number % 2 == 1,
        "text": f"tö {number}",
        "ids": list(range(number)),
        "floats": [0.5] * number,
        "array": np.arange(2 * number, dtype=np.uint8).reshape(2, number),
        "bools": np.array([True, False, number > 2]),
        "tensor": torch.arange(number),
        "half": torch.ones((1, number, 2), dtype=torch.float16),
        "scalar": torch.tensor(number),
    }


def test_samples_come_back_as_they_were_made(tmp_path: Path) -> None:
    made = Counting(everything)
    data = data_of(tmp_path, made, 1030)
    assert made.made == 1030
    for number in (0, 3, 1023, 1024, 1029):
        sample, expected = data[number], everything(number)
        assert sample.keys() == expected.keys()
        for name, value in expected.items():
            assert type(sample[name]) is type(value), name
            if isinstance(value, np.ndarray | torch.Tensor):
                assert (sample[name].dtype, sample[name].shape) == (value.dtype, value.shape), name
                assert (sample[name] == value).all(), name
            else:
                assert sample[name] == value, name
    data[3]["array"][:] = 9  # a copy
    assert data[3]["array"].max() == 5
    again = Counting(everything)
    assert data_of(tmp_path, again, 1030)[7]["n"] == 7
    assert again.made == 0
    assert not list((tmp_path / "home").rglob("*.pkl"))


@pytest.mark.parametrize("fingerprint", [None, "two"])
def test_without_the_same_fingerprint_samples_are_made(tmp_path: Path, fingerprint: str | None) -> None:
    data_of(tmp_path, Counting(tokens))
    made = Counting(lambda number: {"input_ids": [9]})
    data = data_of(tmp_path, made, fingerprint=fingerprint)
    assert [data[4]["input_ids"], data[4]["input_ids"]] == [[9], [9]]
    assert made.made == (5 if fingerprint else 2)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("suffix", "damage", "made_again"),
    [
        (".arrow", flipped, 5),
        (".arrow", other_size, 5),
        (".arrow", Path.unlink, 5),
        (".json", Path.unlink, 5),
        (".json", lambda path: path.write_text("{half"), 5),
        (".json", lambda path: path.write_text(json.dumps({"records": 5})), 5),
        (".arrow", touched, 0),
    ],
)
def test_file_that_is_not_as_it_was_written_is_made_again(
    tmp_path: Path, home: Path, suffix: str, damage: Callable[[Path], Any], made_again: int
) -> None:
    data_of(tmp_path, Counting(tokens))
    (path,) = home.glob(f"*{suffix}")
    damage(path)
    made = Counting(tokens)
    assert data_of(tmp_path, made)[3]["input_ids"] == [0, 1, 2]
    assert made.made == made_again
    third = Counting(tokens)
    data_of(tmp_path, third)
    assert third.made == 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda number: {"x": object()}, "'x' of a sample is object, which cannot be cached"),
        (lambda number: [1], "a sample is list"),
        (lambda number: {"x": 1 if number else "a"}, "records 0 to 4 of a shard: a sample has"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path: Path, home: Path, make: Any, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        data_of(tmp_path, Counting(make))
    assert [path.suffix for path in home.iterdir()] == [".lock"]


def test_on_a_full_disk_samples_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_cache, "clean", full)
    made = Counting(tokens)
    data = data_of(tmp_path, made)
    assert (data[4]["input_ids"], made.made) == ([0, 1, 2, 3], 5)


def test_files_that_nobody_uses_are_removed(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        data_of(tmp_path, Counting(tokens), fingerprint=f"f{number}")
    ages = dict(zip(sorted(home.glob("*.json")), (20 * 24, 5, 3, 0), strict=True))
    for path, hours in ages.items():
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    _, unused, lately, now = ages
    clean(home)
    assert set(home.glob("*.json")) == {unused, lately, now}
    size = now.with_suffix(".arrow").stat().st_size
    monkeypatch.setattr(node_cache, "MAX_BYTES", size + 1)
    clean(home)
    assert {path.stem for path in home.glob("*.arrow")} == {now.stem}
    monkeypatch.setattr(node_cache, "MAX_BYTES", 0)
    clean(home)  # in use
    assert {path.stem for path in home.glob("*.arrow")} == {now.stem}


def test_packed_blocks_hold_the_tokens_of_whole_documents(tmp_path: Path) -> None:
    made = Counting(lambda number: [number + 1] * (number % 3 + 1))
    data = data_of(tmp_path, made, 6, pack=5)
    assert made.made == 6
    assert (len(data), data[0]["input_ids"].tolist()) == (3, [1, 2, 2, 3, 3])
    last = data[2]
    assert (last["input_ids"].tolist(), last["labels"].tolist(), last["attention_mask"].tolist()) == (
        [6, 6, 0, 0, 0],
        [6, 6, -100, -100, -100],
        [1, 1, 0, 0, 0],
    )
    data.global_batch_samples = 12
    drawn = torch.cat([data[block]["input_ids"] for block in data.batch(1)]).tolist()
    assert sorted(drawn) == sorted([1, 2, 2, 3, 3, 3, 4, 5, 5, 6, 6, 6] * 5)


def document(record: dict[str, Any]) -> list[int]:
    return [int(record["id"])] * 3


def test_loader_s_worker_maps_what_the_training_has_made(tmp_path: Path) -> None:
    data = data_of(tmp_path, document, 6, pack=4)
    data.global_batch_samples = 2
    theirs = pickle.loads(pickle.dumps(data))
    for block in data.batch(1):
        assert theirs[block]["input_ids"].tolist() == data[block]["input_ids"].tolist()
    with pytest.raises(RuntimeError, match="in the training's process only"):
        theirs.batch(1)


def test_fork_keeps_the_schedule_behind_it_and_has_its_own_before_it(tmp_path: Path) -> None:
    def scheduled(*schedule: tuple[int, dict[str, float]]) -> MixtureDataset:
        sources = {
            name: SourceSettings.model_validate(numbered(tmp_path / name, count)["web"])
            for name, count in (("a", 5), ("b", 9))
        }
        data = MixtureDataset(sources, 1, schedule=schedule)
        data.global_batch_samples = 10
        return data

    def shares(data: MixtureDataset, *numbers: int) -> list[float]:
        return [data.status(number)["a"]["share"] for number in numbers]

    parent = scheduled((2, {"a": 3.0}), (6, {"a": 0.0}))
    assert shares(parent, 2, 3, 6, 7) == [0.5, 0.75, 0.75, 0.0]
    saved = json.loads(json.dumps(parent.memory(5)))
    fork = scheduled((1, {"a": 0.25}), (7, {"a": 9.0}))
    fork.recall(saved, 5)
    assert [fork.batch(number) for number in range(1, 7)] == [parent.batch(number) for number in range(1, 7)]
    assert shares(fork, 3, 7, 8) == [0.75, 0.75, 0.9]


def test_packing_needs_tokens_and_a_name_for_them(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"`pack` needs a function .* and a `fingerprint`"):
        data_of(tmp_path, tokens, fingerprint=None, pack=8)
    with pytest.raises(Invalid, match=r"must be tokens: a list of whole numbers, or a mapping with 'input_ids'"):
        data_of(tmp_path, Counting(lambda number: {"input_ids": "text"}), pack=8)
    with pytest.raises(Invalid, match="a block has 2 to"):
        data_of(tmp_path, tokens, pack=1)


def test_checkpoint_is_not_continued_with_other_tokens_under_the_same_name(tmp_path: Path) -> None:
    data = data_of(tmp_path, Counting(lambda number: [number] * (number % 3 + 1)), 6, pack=5)
    data.global_batch_samples = 2
    saved = json.loads(json.dumps(data.memory(2)))
    assert saved["carry"]["web"]
    again = data_of(tmp_path, Counting(lambda number: [number] * (number % 3 + 1)), 6, pack=5)
    again.global_batch_samples = 2
    again.recall(saved, 2)
    assert again.batch(2) == data.batch(2)
    for path in (tmp_path / "home").rglob("samples/*"):
        path.unlink()
    other = data_of(tmp_path, Counting(lambda number: [number] * 4), 6, pack=5)
    other.global_batch_samples = 2
    with pytest.raises(Invalid, match="do they have other tokens, under the same fingerprint"):
        other.recall(saved, 2)
