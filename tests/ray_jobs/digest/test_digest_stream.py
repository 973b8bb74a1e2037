"""The stream of digests: when one is taken, what the journal is told, and that a broken disk holds nobody up."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.core.model.records import StateDigested
from control_plane.storage.digest_files import RankDigest, digest_file, read_parts
from control_plane.storage.layout import RunFiles
from ray_jobs.digest import stream as digest_stream
from ray_jobs.digest.stream import NO_DIGEST, DigestFile, DigestStream

PARTS = {"samples": "5a", "weights/head": "0b"}


class FakeRanks:
    """This rank's group: the others tell what they are given to tell."""

    def __init__(self, others: bytes) -> None:
        self.others, self.gathered = others, 0

    def all_gather_bytes(self, value: bytes) -> list[bytes]:
        self.gathered += 1
        return [value, self.others]


def streaming(tmp_path: Path, others: bytes = b"\x01" * 16, every_steps: int = 3) -> tuple[DigestStream, Any]:
    told: list[StateDigested] = []
    session: Any = SimpleNamespace(
        rank=0,
        collectives=FakeRanks(others),
        replica=SimpleNamespace(generation=2),
        link=SimpleNamespace(digest=told.append),
        told=told,
    )
    return DigestStream(None, session, RunFiles(tmp_path), every_steps), session


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []

    def take(trainer: Any, session: Any) -> RankDigest:
        steps.append(len(steps))
        return RankDigest(3 * len(steps), PARTS)

    monkeypatch.setattr(digest_stream, "take", take)
    return steps


def test_state_is_digested_every_so_many_steps_and_read_back_by_what_the_journal_knows(tmp_path: Path) -> None:
    stream, session = streaming(tmp_path)
    for step in range(1, 8):
        stream.after_boundary(step)
    stream.close()
    assert [each.step for each in session.told] == [3, 6]
    assert session.told[0].ranks == (RankDigest(3, PARTS).root, "01" * 16)
    assert (session.told[0].generation, session.told[0].samples) == (2, "5a")
    assert read_parts(RunFiles(tmp_path), session.told[1], 0) == PARTS


def test_nothing_is_taken_gathered_or_written_when_it_is_off(tmp_path: Path, taken: list[int]) -> None:
    stream, session = streaming(tmp_path, every_steps=0)
    for step in range(10):
        stream.after_boundary(step)
    stream.close()
    assert (taken, session.collectives.gathered, list(tmp_path.iterdir())) == ([], 0, [])


def test_rank_that_cannot_digest_ends_the_stream_on_all_ranks(tmp_path: Path) -> None:
    stream, session = streaming(tmp_path, others=NO_DIGEST)
    for step in range(1, 10):
        stream.after_boundary(step)
    assert (session.told, session.collectives.gathered) == ([], 1)


def test_what_cannot_be_digested_before_the_first_step_does_not_end_the_stream(tmp_path: Path) -> None:
    stream, session = streaming(tmp_path, others=NO_DIGEST)
    stream.before_the_first_step()
    session.collectives.others = b"\x01" * 16
    stream.after_boundary(3)
    stream.close()
    assert len(session.told) == 1


def test_rank_whose_own_digest_fails_still_meets_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(trainer: Any, session: Any) -> RankDigest:
        raise RuntimeError("no")

    monkeypatch.setattr(digest_stream, "take", fail)
    stream, session = streaming(tmp_path)
    for step in range(1, 10):
        stream.after_boundary(step)
    assert (session.told, session.collectives.gathered) == ([], 1)


def test_file_that_is_full_takes_no_more_lines_and_holds_whole_ones(tmp_path: Path) -> None:
    line = RankDigest(1, PARTS).line()
    file = DigestFile(tmp_path / "digests" / "f", max_bytes=2 * len(line))
    for step in (1, 2, 3):
        file.put(RankDigest(step, PARTS))
    file.close()
    lines = (tmp_path / "digests" / "f").read_text().splitlines()
    assert [json.loads(each)["step"] for each in lines] == [1, 2]


def test_disk_that_does_not_take_the_file_does_not_hold_the_training_up(tmp_path: Path) -> None:
    (tmp_path / "digests").write_text("a file where a folder should be")
    stream, session = streaming(tmp_path)
    for step in range(1, 3 * digest_stream.MAX_WAITING * 2):
        stream.after_boundary(step)
    stream.close()
    assert len(session.told) == digest_stream.MAX_WAITING * 2 - 1
    assert not digest_file(RunFiles(tmp_path), 2, 0).exists()
