"""Checkpoints to break: saved through the store, small enough to break thousands of times."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.storage.checkpoint import store as real_store

WORLD_SIZE = 2


def contents(step: int) -> dict[str, bytes]:
    """What a step's checkpoint holds. Two of the files have the same size, so that swapping them is not obvious."""
    files = {
        "state/mp_rank_00_model_states.pt": b"model of step %d " % step * 40,
        "state/rank-0-random.pt": b"generators 0 of step %d" % step,
        "state/rank-1-random.pt": b"generators 1 of step %d" % step,
        "state/optimizer/rank-1.pt": bytes(range(256)) * 2,
    }
    return files | {"state/optimizer/rank-0.pt": pickle.dumps({"exp_avg": list(range(90)), "step": step})}


def rank_of(path: str) -> int:
    return int("rank-1" in path)


def name_of(step: int) -> str:
    return f"step-{step:08d}-g1"


def manifest(step: int, shards: tuple[Any, ...], **told: Any) -> real_store.Manifest:
    """A manifest with a value of its own in every field."""
    about: dict[str, Any] = {
        "checkpoint": name_of(step),
        "run": "ann",
        "branch": "main",
        "generation": 1,
        "step": step,
        "world_size": WORLD_SIZE,
        "label": "good",
        "ranks": [{"rank": rank, "state_sha256": "a" * 64, "random_sha256": "b" * 64} for rank in range(WORLD_SIZE)],
        "samples_consumed": 8 * step,
        "global_batch_samples": 8,
        "accumulation_steps": 2,
        "knobs": {"lr": [1e-4, 2.5e-5], "clip": 1.0},
        "settled": ["5f1c2e52-8e0f-4f0c-9b53-2f6f1d1f5a11"],
        "metrics": {"eval_loss": 2.25},
        "versions": {"torch": "2.9.1"},
        "saved_at": "2030-01-01T00:00:00Z",
    }
    return real_store.Manifest.model_validate({**about, "shards": [s.model_dump() for s in shards], **told})


def newest_good(
    folder: Path, key: Any, candidates: Sequence[str], store: ModuleType = real_store
) -> tuple[real_store.Manifest | None, list[str]]:
    """Return the first candidate that verifies, and the reasons against those before it."""
    refused = list[str]()
    for name in candidates:
        try:
            return store.verify(folder / name, key), refused
        except Damaged as error:
            refused.append(error.reason)
    return None, refused


def save(folder: Path, step: int, key: Any, store: ModuleType = real_store) -> Path:
    """Save one checkpoint as ranks do: each shard durable, the manifest last."""
    root = folder / name_of(step)
    shards = []
    for path, data in contents(step).items():
        with store.ShardFile(root, path, rank_of(path)) as file:
            file.write(data[: len(data) // 2])
            file.write(data[len(data) // 2 :])
        shards.append(file.shard)
    plain = manifest(step, tuple(shards)).model_dump()
    store.commit(root, store.Manifest.model_validate(plain), key)
    return root


class Bomb:
    """Whoever unpickles this makes a folder."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.crater),)


@dataclass(frozen=True)
class Corruption:
    """One way to break a checkpoint's folder."""

    told: str
    apply: Callable[[Path], None]
    only_file: str | None = None


def restore(root: Path, pristine: Path, only_file: str | None) -> None:
    """Make the folder as it was saved again; quickly, if only the content of one file is another."""
    if only_file is not None and (pristine / only_file).exists():
        (root / only_file).write_bytes((pristine / only_file).read_bytes())
        return
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine, root)


def flips(pristine: Path, path: str, every_bytes: int) -> Iterator[Corruption]:
    data = (pristine / path).read_bytes()
    for offset in range(0, len(data), every_bytes):
        bit = 1 << (offset * 7 + len(path)) % 8
        changed = data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :]
        yield overwrite(path, changed, f"bit {bit} of byte {offset} of {path} flipped")


def truncations(pristine: Path, path: str, every_bytes: int) -> Iterator[Corruption]:
    data = (pristine / path).read_bytes()
    for length in range(0, len(data), every_bytes):
        yield overwrite(path, data[:length], f"{path} cut to {length} bytes")
        yield overwrite(path, data[:length] + bytes(len(data) - length), f"zeros from {length} on in {path}")


def overwrite(path: str, data: bytes, told: str) -> Corruption:
    return Corruption(told, lambda root: _write(root / path, data), only_file=path)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def swaps(paths: list[str]) -> Iterator[Corruption]:
    for one in paths:
        for other in paths:
            if one < other:
                yield Corruption(f"{one} and {other} swapped", lambda root, a=one, b=other: _swap(root / a, root / b))


def _swap(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def structural(path: str, pristine: Path, bomb: bytes) -> Iterator[Corruption]:
    """A file gone, replaced by something that is no file, or by a bomb, or doubled under a name that is globbed."""
    yield Corruption(f"{path} removed", lambda root: (root / path).unlink())
    yield Corruption(f"{path} a link to its own copy", lambda root: _link(root / path, pristine / path))
    yield Corruption(f"{path} a folder", lambda root: _replace(root / path, lambda place: place.mkdir()))
    yield Corruption(f"{path} a named pipe", lambda root: _replace(root / path, os.mkfifo))
    yield overwrite(path, bomb, f"a bomb in the place of {path}")
    yield overwrite(f"{path}.extra.pt", bomb, f"a bomb beside {path}")
    yield Corruption(f"a link beside {path}", lambda root: (root / f"{path}-1").symlink_to(pristine / path))
    yield Corruption(f"the folder of {path} a link", lambda root: _link_folder(root / path, pristine / path))


def _link(place: Path, target: Path) -> None:
    place.unlink()
    place.symlink_to(target)


def _link_folder(place: Path, target: Path) -> None:
    shutil.rmtree(place.parent)
    place.parent.symlink_to(target.parent)


def _replace(place: Path, make: Callable[[Path], None]) -> None:
    place.unlink()
    make(place)


def edits(pristine: Path, foreign: Any) -> Iterator[Corruption]:
    """Every field of the manifest set to something else, left out, and the same signed with another key."""
    plain = json.loads((pristine / real_store.MANIFEST).read_bytes())
    for told, changed in _changed(plain):
        yield overwrite(real_store.MANIFEST, _written(changed), f"the manifest with {told}")
        try:
            resigned = foreign.sign(real_store.Manifest.model_validate({**changed, "signature": ""})).text()
        except (ValueError, Invalid):
            continue
        yield overwrite(real_store.MANIFEST, resigned, f"the manifest with {told}, signed with another key")
    yield overwrite(real_store.MANIFEST, json.dumps(plain).encode(), "the manifest spelled otherwise")
    yield overwrite(real_store.MANIFEST, b"", "an empty manifest")
    yield overwrite(real_store.MANIFEST, b"[" * 100_000, "a manifest that is only depth")
    yield Corruption("no manifest", lambda root: (root / real_store.MANIFEST).unlink())
    yield Corruption(
        "the manifest a link", lambda root: _link(root / real_store.MANIFEST, pristine / real_store.MANIFEST)
    )
    yield Corruption("the manifest a folder", lambda root: _replace(root / real_store.MANIFEST, lambda p: p.mkdir()))
    yield Corruption("the manifest a named pipe", lambda root: _replace(root / real_store.MANIFEST, os.mkfifo))


def _written(plain: Any) -> bytes:
    return json.dumps(plain, indent=1, sort_keys=True).encode()


def _changed(plain: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for field, value in plain.items():
        for other in _others(value):
            yield f"{field} = {str(other)[:40]}", {**plain, field: other}
        yield f"no {field}", {name: kept for name, kept in plain.items() if name != field}
    for index, shard in enumerate(plain["shards"]):
        for field, value in shard.items():
            for other in _others(value):
                changed = [*plain["shards"]]
                changed[index] = {**shard, field: other}
                yield f"shard {index}'s {field} = {str(other)[:40]}", {**plain, "shards": changed}
        yield f"shard {index} left out", {**plain, "shards": [s for s in plain["shards"] if s is not shard]}
        yield f"shard {index} twice", {**plain, "shards": [*plain["shards"], shard]}
    yield "an unknown field", {**plain, "loader": "os.system"}


def _others(value: Any) -> list[Any]:
    return [other for other in _tried(value) if json.dumps(other) != json.dumps(value)]


def _tried(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, "true", 1]
    if isinstance(value, int):
        return [value + 1, -value, str(value), float(value), 10**30, None]
    if isinstance(value, str):
        return [value + "x", "", "../" + value, "/" + value, value.upper() + " ", value[:-1] + "0", 7, None]
    if isinstance(value, list):
        return [[], value[:-1], [*value, *value[:1]], [*value[::-1], None], None, {}]
    if isinstance(value, dict):
        return [{}, {**value, "x": 1.0}, {**value, "x": float("nan")}, None, []]
    return ["x", 0, []]
