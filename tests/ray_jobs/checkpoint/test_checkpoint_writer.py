"""The protocol of the background writers, without ranks: two writers in one process, disks that fail, and kills."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.storage.checkpoint import shards
from control_plane.storage.checkpoint.store import MANIFEST, SigningKey, list_checkpoints, verify
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint.capture import FileStates, progress_path, random_digest, state_digest
from ray_jobs.checkpoint.writer import CheckpointWriter, Finished

KEY = SigningKey(b"0123456789abcdef0123456789abcdef")
OTHER_KEY = SigningKey(b"fedcba9876543210fedcba9876543210")
NAME = "step-00000007-g1"
ABOUT = {"generation": 1, "step": 7, "samples_consumed": 56, "label": "kept", "settled": ("a",), "pinned": True}
ENOUGH_S = 20.0


def states(rank: int) -> FileStates:
    """What one rank would write."""
    return {
        f"state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": {"moments": torch.arange(4096.0) + rank},
        progress_path(rank): {"random": {"torch": torch.arange(8, dtype=torch.uint8)}},
    }


def writers(root: Path, keys: tuple[SigningKey, SigningKey] = (KEY, KEY), wait_s: float = ENOUGH_S) -> Any:
    """One writer for each of two ranks, and the folder of their checkpoint."""
    files = RunFiles(root)
    (files.checkpoints / NAME).mkdir(parents=True)
    return [CheckpointWriter(files, rank, 2, keys[rank], wait_s) for rank in range(2)]


def saved(both: list[CheckpointWriter]) -> list[Finished]:
    """Both write; each one's end."""
    for rank, writer in enumerate(both):
        writer.start(NAME, states(rank), ABOUT)
    assert all(writer.drain(ENOUGH_S) for writer in both)
    return [finished for writer in both for finished in writer.finished()]


def fail_on(monkeypatch: pytest.MonkeyPatch, part_of_path: str, code: int, call: str = "write_all") -> None:
    """Every write or fsync of a file with this in its path fails."""

    def failing(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(descriptor: int, *data: Any) -> Any:
            if part_of_path in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(code, os.strerror(code))
            return genuine(descriptor, *data)

        return attempt

    where: Any = shards if call == "write_all" else os
    monkeypatch.setattr(where, call, failing(getattr(where, call)))


def test_writer_two_ranks_make_one_checkpoint_that_verifies(tmp_path: Path) -> None:
    leader, follower = saved(writers(tmp_path))
    manifest = verify(tmp_path / "checkpoints" / NAME, KEY)
    assert leader.committed is not None
    assert (leader.reason, follower.reason, follower.committed) == (None, None, None)
    assert (leader.committed.checkpoint, leader.committed.step, leader.committed.pinned) == (NAME, 7, True)
    assert leader.committed.size_bytes == leader.size_bytes == manifest.size_bytes
    assert (manifest.label, manifest.samples_consumed, manifest.settled) == ("kept", 56, ("a",))
    assert [(part.state_sha256, part.random_sha256) for part in manifest.ranks] == [
        (state_digest(states(rank)), random_digest(states(rank))) for rank in range(2)
    ]
    assert sorted(os.listdir(tmp_path / "checkpoints" / NAME)) == [MANIFEST, "state"]


def test_writer_tells_each_end_once_and_takes_one_save_at_a_time(tmp_path: Path) -> None:
    leader, follower = writers(tmp_path)
    leader.start(NAME, states(0), ABOUT)
    with pytest.raises(RuntimeError, match=NAME):
        leader.start("another", states(0), ABOUT)
    assert leader.busy == NAME
    assert not leader.drain(0)
    follower.start(NAME, states(1), ABOUT)
    assert leader.drain(ENOUGH_S)
    assert leader.busy is None
    assert leader.take("another") is None
    assert [ended.name for ended in leader.finished()] == [NAME]
    assert leader.finished() == []


@pytest.mark.parametrize(
    ("rank", "code", "call"),
    [
        (0, errno.ENOSPC, "write_all"),
        (1, errno.ENOSPC, "write_all"),
        (0, errno.EIO, "fsync"),
        (1, errno.EIO, "fsync"),
    ],
)
def test_writer_a_disk_that_fails_on_one_rank_leaves_nothing_but_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, code: int, call: str
) -> None:
    fail_on(monkeypatch, f"rank_{rank}_", code, call)
    leader, follower = saved(writers(tmp_path))
    assert (leader.committed, follower.committed) == (None, None)
    assert f"rank {rank}: OSError" in str(leader.reason)
    assert os.strerror(code) in str(leader.reason)
    assert (follower.reason is None) == (rank == 0)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_writer_without_room_for_a_reason_is_heard_of_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(monkeypatch, "rank_1_", errno.ENOSPC)
    fail_on(monkeypatch, "rank-1.", errno.ENOSPC)
    leader, _ = saved(writers(tmp_path))
    assert "rank 1: could not write its part, and no reason was recorded" in str(leader.reason)


def test_writer_a_manifest_that_cannot_be_written_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(monkeypatch, MANIFEST, errno.EIO, "fsync")
    leader, follower = saved(writers(tmp_path))
    assert os.strerror(errno.EIO) in str(leader.reason)
    assert follower.reason is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_writer_waits_for_a_late_rank(tmp_path: Path) -> None:
    leader, follower = writers(tmp_path)
    leader.start(NAME, states(0), ABOUT)
    assert not leader.drain(0.2)
    follower.start(NAME, states(1), ABOUT)
    assert leader.drain(ENOUGH_S)
    assert leader.finished()[0].committed is not None


def test_writer_gives_up_on_a_rank_that_is_not_heard_of(tmp_path: Path) -> None:
    leader, _ = writers(tmp_path, wait_s=0.2)
    leader.start(NAME, states(0), ABOUT)
    assert leader.drain(ENOUGH_S)
    assert "rank 1: did not report within 0.2 s" in str(leader.finished()[0].reason)
    assert not (tmp_path / "checkpoints" / NAME).exists()


def test_writer_believes_no_report_that_another_key_signed(tmp_path: Path) -> None:
    leader, _ = saved(writers(tmp_path, keys=(KEY, OTHER_KEY)))
    assert "rank 1: its report is invalid" in str(leader.reason)
    assert list_checkpoints(tmp_path / "checkpoints", KEY) == []


def test_writer_believes_no_report_about_another_checkpoint(tmp_path: Path) -> None:
    leader, follower = writers(tmp_path)
    (tmp_path / "checkpoints" / "older").mkdir()
    follower.start("older", states(1), ABOUT)
    assert follower.drain(ENOUGH_S)
    report = tmp_path / "checkpoints" / "older" / "rank-1.done.json"
    report.rename(tmp_path / "checkpoints" / NAME / report.name)
    leader.start(NAME, states(0), ABOUT)
    assert leader.drain(ENOUGH_S)
    assert f"its report is for another checkpoint or rank than rank 1 of {NAME}" in str(leader.finished()[0].reason)


def test_writer_survives_a_state_that_cannot_be_pickled(tmp_path: Path) -> None:
    leader, follower = writers(tmp_path)
    leader.start(NAME, {"state/a.pt": {"lock": threading.Lock()}}, ABOUT)
    follower.start(NAME, states(1), ABOUT)
    assert leader.drain(ENOUGH_S)
    assert "rank 0: TypeError" in str(leader.finished()[0].reason)


FILE_CALLS = ("open", "fsync", "rename", "unlink", "mkdir")
"""What changes names or makes them last: between two of them, a kill leaves the same."""


def save_until_killed(root: Path, at_call: int) -> None:
    """In a process of its own: one save by two ranks, which SIGKILL ends before file call number `at_call`."""
    counted = [0]

    def counting(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            if counted[0] >= at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(*args, **kwargs)

        return call

    leader, follower = writers(root)
    for name in FILE_CALLS:
        setattr(os, name, counting(getattr(os, name)))
    follower.start(NAME, states(1), ABOUT)
    leader.start(NAME, states(0), ABOUT)
    leader.drain(ENOUGH_S)


def test_writer_killed_before_any_file_call_leaves_a_whole_checkpoint_or_none(tmp_path: Path) -> None:
    outcomes = []
    for at_call in range(1, 200):
        root = tmp_path / str(at_call)
        child = os.fork()
        if child == 0:
            try:
                save_until_killed(root, at_call)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        listed = list_checkpoints(root / "checkpoints", KEY)
        for manifest in listed:
            verify(root / "checkpoints" / manifest.checkpoint, KEY)
        outcomes.append(len(listed))
        if not os.WIFSIGNALED(status):
            break
    killed, ended = outcomes[:-1], outcomes[-1]
    assert ended == 1
    assert len(killed) > 25
    assert set(killed) == {0, 1}
    assert killed == sorted(killed)
