"""A fork knows the records that its checkpoint contains, and takes in what its parent got later."""

from pathlib import Path
from uuid import UUID

from control_plane.storage.checkpoint.transfer import transfer_shards
from control_plane.storage.data.inheriting import inherit_indexes
from control_plane.storage.data.store import SourceStore
from control_plane.storage.layout import RunFiles
from tests.storage.data.bodies import WORDS, jsonl
from tests.storage.data.test_store import BOB, send


def announced(store: SourceStore, step: int) -> UUID:
    """Have the oldest waiting shard brought in at a step."""
    (announcement,) = store.index.next_announcements()
    assert announcement is not None
    store.index.settle(announcement.uuid, "live", step, None)
    return announcement.uuid


def stores(root: Path, *names: str) -> tuple[SourceStore, ...]:
    return tuple(SourceStore(RunFiles(root / name), "fresh", WORDS) for name in names)


def test_fork_knows_what_its_checkpoint_contains_and_takes_in_the_rest(tmp_path: Path) -> None:
    (parent,) = stores(tmp_path, "parent")
    first = send(parent, jsonl([{"text": "a"}, {"text": "b", "stars": 3}]), sender=BOB).shard
    command = announced(parent, 7)
    send(parent, jsonl([{"text": "later"}]))
    later = announced(parent, 9)
    send(parent, jsonl([{"text": "waits"}]))
    runs = [RunFiles(tmp_path / name) for name in ("parent", "child", "grandchild")]
    for source, fork, contained in ((runs[0], runs[1], {str(command)}), (runs[1], runs[2], set[str]())):
        transfer_shards(source, fork)
        for _ in range(2):
            inherit_indexes(source, fork, {"fresh": WORDS}, contained)
    child, grandchild = stores(tmp_path, "child", "grandchild")
    assert first is not None
    for fork in (child, grandchild):
        (view,) = fork.index.newest()
        assert (view.sha256, view.author, view.stage, view.step, view.command) == (
            first.sha256, "bob", "live", 7, command)  # fmt: skip
        assert view.reason == "inherited from run parent"
        assert fork.index.counts() == (2, 0, 0)
        assert fork.index.next_announcements() == []
        answer = send(fork, jsonl([{"text": "b", "stars": 3}, {"text": "later"}]))
        assert (answer.records, answer.duplicates) == (1, 1)
    assert later != command


def test_index_that_is_damaged_leaves_the_fork_without(tmp_path: Path) -> None:
    (parent,) = stores(tmp_path, "parent")
    send(parent, jsonl([{"text": "a"}]))
    command = announced(parent, 7)
    (parent.folder / "index.sqlite").write_bytes(b"no database at all" * 100)
    inherit_indexes(RunFiles(tmp_path / "parent"), RunFiles(tmp_path / "child"), {"fresh": WORDS}, {str(command)})
    assert not (tmp_path / "child" / "data").exists()
