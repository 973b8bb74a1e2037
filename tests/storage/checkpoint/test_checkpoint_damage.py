"""Damage and forgery: whatever is broken in a checkpoint is refused, nothing is executed, and an older one is found."""

import itertools
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from control_plane.core.model.errors import Damaged
from control_plane.storage.checkpoint import cleanup, shards, signing
from control_plane.storage.checkpoint import manifest as manifests
from control_plane.storage.checkpoint import store as real_store
from control_plane.storage.checkpoint.store import MANIFEST, SigningKey, verify
from tests.storage.checkpoint.saved import (
    Bomb,
    Corruption,
    contents,
    edits,
    flips,
    name_of,
    newest_good,
    restore,
    save,
    structural,
    swaps,
    truncations,
)

GOOD, VICTIM = 1, 2
FAST_EVERY_BYTES, SLOW_EVERY_BYTES = 11, 1


class Bench:
    """An older checkpoint that stays good, a newer one to break, and how it looked before."""

    def __init__(self, folder: Path) -> None:
        self.key = SigningKey.of_installation(folder / "key")
        self.foreign = SigningKey.of_installation(folder / "other" / "key")
        self.checkpoints, self.crater = folder / "checkpoints", folder / "crater"
        save(self.checkpoints, GOOD, self.key)
        self.root = save(self.checkpoints, VICTIM, self.key)
        self.pristine = folder / "pristine" / self.root.name
        shutil.copytree(self.root, self.pristine)

    def corruptions(self, every_bytes: int) -> Iterator[Corruption]:
        paths = sorted(contents(VICTIM))
        bomb = pickle.dumps(Bomb(self.crater))
        yield from swaps(paths)
        for path in paths:
            yield from structural(path, self.pristine, bomb)
        yield from edits(self.pristine, self.foreign)
        for path in [*paths, MANIFEST]:
            yield from flips(self.pristine, path, every_bytes)
            yield from truncations(self.pristine, path, every_bytes)

    def passed(self, corruption: Corruption, store: ModuleType = real_store, key: Any = None) -> bool:
        """Whether the broken checkpoint is taken for good by anything that chooses one."""
        corruption.apply(self.root)
        key = key or self.key
        try:
            found, refused = newest_good(self.checkpoints, key, [name_of(VICTIM), name_of(GOOD)], store)
            return found is None or found.step != GOOD or len(refused) != 1
        finally:
            restore(self.root, self.pristine, corruption.only_file)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def check_all(bench: Bench, every_bytes: int) -> int:
    """Break the checkpoint in every way; answers in how many."""
    outcomes = [(corruption.told, bench.passed(corruption)) for corruption in bench.corruptions(every_bytes)]
    passed = [told for told, has_passed in outcomes if has_passed]
    assert passed == [], f"{len(passed)} of {len(outcomes)} corruptions were not refused"
    assert not bench.crater.exists(), "something was executed"
    assert newest_good(bench.checkpoints, bench.key, [name_of(VICTIM)])[0], "the checkpoint itself is good"
    return len(outcomes)


def test_corrupted_checkpoint_is_refused_and_the_older_one_found(bench: Bench) -> None:
    assert check_all(bench, FAST_EVERY_BYTES) >= 1000


@pytest.mark.slow
def test_corrupted_checkpoint_ten_thousand_times_is_refused_and_the_older_one_found(bench: Bench) -> None:
    assert check_all(bench, SLOW_EVERY_BYTES) >= 10_000


def test_bomb_goes_off_when_it_is_unpickled(bench: Bench) -> None:
    """Guards the tests here: a bomb that cannot go off proves nothing."""
    pickle.loads(pickle.dumps(Bomb(bench.crater)))
    assert bench.crater.is_dir()


def test_trusted_checkpoint_needs_no_signature_and_is_compared_all_the_same(bench: Bench) -> None:
    foreign = bench.foreign.sign(verify(bench.root, bench.key)).text()
    (bench.root / MANIFEST).write_bytes(foreign)
    with pytest.raises(Damaged, match="another installation"):
        verify(bench.root, bench.key)
    assert verify(bench.root, None).step == VICTIM
    path = bench.root / sorted(contents(VICTIM))[0]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(Damaged, match="differs from what was saved"):
        verify(bench.root, None)


@pytest.mark.parametrize(
    "path", ["../outside.pt", "state/../../outside.pt", "/etc/hosts", "state//x.pt", "", ".", MANIFEST]
)
def test_trusted_manifest_that_names_a_file_outside_is_refused(bench: Bench, path: str) -> None:
    (bench.checkpoints / "outside.pt").write_bytes(b"x")
    manifest = verify(bench.root, bench.key)
    shard = manifest.shards[0].model_copy(update={"path": path})
    changed = manifest.model_copy(update={"shards": (shard, *manifest.shards[1:])})
    (bench.root / MANIFEST).write_bytes(changed.text())
    with pytest.raises(Damaged, match="outside of itself"):
        verify(bench.root, None)


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ({"world_size": 1}, "says that rank 1 of 1 wrote"),
        ({"checkpoint": "step-1"}, "is of checkpoint 'step-1', not of"),
    ],
)
def test_trusted_manifest_that_contradicts_itself_is_refused(bench: Bench, update: dict[str, Any], told: str) -> None:
    changed = verify(bench.root, bench.key).model_copy(update=update)
    (bench.root / MANIFEST).write_bytes(changed.text())
    with pytest.raises(Damaged, match=told):
        verify(bench.root, None)


MUTANTS: dict[str, list[tuple[str, str]]] = {
    "no hash compared": [("if content != (shard.size_bytes, shard.sha256):", "if content[0] != shard.size_bytes:")],
    "only a part hashed": [
        (
            "while block := os.read(descriptor, READ_BYTES):",
            "while (block := os.read(descriptor, 64)) and not size_bytes:",
        ),
        ("if content != (shard.size_bytes, shard.sha256):", "if False:"),
    ],
    "no shard read": [("        _compare_content(root, shard)", "        pass")],
    "no look at the files": [
        (
            "    manifest = read_manifest(root, key, recorded_sha256)\n    _compare_files(root, manifest)",
            "    manifest = read_manifest(root, key, recorded_sha256)",
        )
    ],
    "planted files pass": [("    if unknown:", "    if False:")],
    "links pass": [
        ("entry.is_dir(follow_symlinks=False)", "entry.is_dir()"),
        ("entry.is_file(follow_symlinks=False)", "entry.is_file()"),
        ("entry.stat(follow_symlinks=False)", "entry.stat()"),
    ],
    "no signature checked": [("        key.check(manifest, root)", "        pass")],
    "any signature of ours passes": [
        ("        if hmac.compare_digest(", "        if signature.startswith(self._name) or hmac.compare_digest(")
    ],
    "any signature passes": [("        if hmac.compare_digest(", "        if signature or hmac.compare_digest(")],
    "shards are not signed": [('exclude={"signature"}', 'exclude={"signature", "shards"}')],
    "edited spelling passes": [("    if spelled != data:", "    if False:")],
}
serial = itertools.count(1)
SOURCES = (manifests, shards, signing, cleanup, real_store)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[str, str]]], ModuleType]:
    """Makes a store from its own sources with some text replaced."""

    def build(changes: list[tuple[str, str]]) -> ModuleType:
        number = next(serial)
        texts = {module.__name__: Path(str(module.__file__)).read_text() for module in SOURCES}
        for old, new in changes:
            assert sum(text.count(old) for text in texts.values()) == 1, f"{old!r} stands there once"
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        built = None
        for name, text in texts.items():
            for other in texts:
                text = text.replace(f"from {other} import", f"from {_mutant(other, number)} import")
            built = ModuleType(_mutant(name, number))
            monkeypatch.setitem(sys.modules, built.__name__, built)
            exec(compile(text, built.__name__, "exec"), built.__dict__)
        assert built is not None
        return built

    return build


def _mutant(name: str, number: int) -> str:
    return f"{name.replace('.', '_')}_mutant_{number}"


@pytest.mark.parametrize("fault", MUTANTS)
def test_corruptions_with_a_planted_fault_in_the_store_pass(
    fault: str, bench: Bench, build: Callable[..., ModuleType]
) -> None:
    store = build(MUTANTS[fault])
    key = store.SigningKey.of_installation(bench.root.parent.parent / "key")
    assert any(bench.passed(corruption, store, key) for corruption in bench.corruptions(53)), (
        f"a store with the fault '{fault}' refuses every corruption"
    )


def test_corruptions_without_a_planted_fault_are_refused_by_the_built_store_too(
    bench: Bench, build: Callable[..., ModuleType]
) -> None:
    """Guards the test above: it is the fault that lets corruptions pass, not the building."""
    store = build([])
    key = store.SigningKey.of_installation(bench.root.parent.parent / "key")
    assert [c.told for c in bench.corruptions(53) if bench.passed(c, store, key)] == []
