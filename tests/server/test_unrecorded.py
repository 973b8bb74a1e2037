"""Checkpoints that were committed while no control server was there: what a resume and a restart do with them."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from control_plane.core.model.records import CheckpointCommitted, CheckpointDiscarded
from control_plane.server.control_server import ControlServer
from control_plane.storage.checkpoint.store import MANIFEST, Manifest, ShardFile, SigningKey, commit
from control_plane.storage.checkpoint.unrecorded import committed, find_unrecorded
from control_plane.storage.journal.writer import Journal, read
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.server.rig import CREATED, start


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path / "home" / "runs" / CREATED.run)
    files.checkpoints.mkdir(parents=True)
    return files


def save(files: RunFiles, step: int, number: int = 1, pinned: bool = False) -> CheckpointCommitted:
    """Commit a checkpoint as the ranks do, and tell nobody."""
    name = f"step-{step:08}-g{number}"
    root = files.checkpoints / name
    with ShardFile(root, "state/model.pt", 0) as file:
        file.write(b"weights" * step)
    manifest = Manifest(
        checkpoint=name,
        run=files.run,
        generation=number,
        step=step,
        world_size=1,
        shards=(file.shard,),
        samples_consumed=step,
        pinned=pinned,
    )
    return committed(manifest, commit(root, manifest, SigningKey.of_installation(files.signing_key)))


def serve(files: RunFiles, removed: list[str] | None = None) -> ControlServer:
    gone = removed if removed is not None else []
    return ControlServer(
        CREATED,
        Journal.open(files.journal),
        MetricsStore(files.metrics),
        discard=lambda checkpoint: gone.append(checkpoint.checkpoint),
        unrecorded=lambda known: find_unrecorded(files, known),
    )


def records(files: RunFiles, kind: type) -> list[str]:
    return [entry.record.checkpoint for entry in read(files.journal) if isinstance(entry.record, kind)]


def test_a_resume_on_a_new_head_goes_on_from_what_nobody_recorded(files: RunFiles) -> None:
    before = serve(files)
    asyncio.run(before.start_generation(start()))
    late = [save(files, step) for step in (20, 40)]  # the head is gone
    after = serve(files)
    asyncio.run(after.resume("ada"))
    point = asyncio.run(after.resume_point())
    assert [one.checkpoint for one in point.candidates] == [late[1].checkpoint, late[0].checkpoint]
    assert point.candidates[0] == late[1]
    assert records(files, CheckpointDiscarded) == []
    asyncio.run(after.resume_point())
    assert records(files, CheckpointCommitted) == [late[0].checkpoint, late[1].checkpoint]  # once


def test_a_restart_takes_over_what_a_dead_rank_could_not_report(files: RunFiles) -> None:
    server = serve(files)
    asyncio.run(server.start_generation(start()))
    late = save(files, 30)
    assert [one.checkpoint for one in asyncio.run(server.resume_point()).candidates] == [late.checkpoint]


def test_zombies_checkpoints_are_let_go_of_by_the_next_resume_and_before_their_files_are(files: RunFiles) -> None:
    server = serve(files)
    asyncio.run(server.start_generation(start()))
    asyncio.run(server.start_generation(start(2)))
    zombie, pinned = save(files, 40, number=1), save(files, 45, number=1, pinned=True)
    own = save(files, 60, number=2)
    removed: list[str] = []
    after = serve(files, removed)
    asyncio.run(after.resume("ada"))
    assert records(files, CheckpointCommitted) == [own.checkpoint]
    assert records(files, CheckpointDiscarded) == removed == [zombie.checkpoint]
    assert (files.checkpoints / pinned.checkpoint / MANIFEST).exists()


def test_what_does_not_verify_is_neither_restored_nor_believed(files: RunFiles) -> None:
    server = serve(files)
    asyncio.run(server.start_generation(start()))
    cut, forged, good = save(files, 20), save(files, 30), save(files, 40)
    (files.checkpoints / cut.checkpoint / "state" / "model.pt").write_bytes(b"short")
    manifest = files.checkpoints / forged.checkpoint / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"step": 30', b'"step": 99'))
    found = {one.record.checkpoint: one for one in find_unrecorded(files, ())}
    assert set(found) == {cut.checkpoint, good.checkpoint}
    assert "another size" in found[cut.checkpoint].reason
    asyncio.run(server.resume("ada"))
    assert [one.checkpoint for one in asyncio.run(server.resume_point()).candidates] == [good.checkpoint]
    assert records(files, CheckpointDiscarded) == [cut.checkpoint]
    assert manifest.exists()  # another installation's, or a forgery: a person has to look


def test_the_record_names_the_manifest_by_its_bytes(files: RunFiles) -> None:
    record = save(files, 20)
    data = (files.checkpoints / record.checkpoint / MANIFEST).read_bytes()
    assert record.manifest_sha256 == hashlib.sha256(data).hexdigest()
    assert [one.record for one in find_unrecorded(files, ())] == [record]
    assert find_unrecorded(files, {record.checkpoint}) == []
