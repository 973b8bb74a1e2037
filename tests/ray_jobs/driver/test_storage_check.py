"""A rank checks the storage before it does anything else: a refused one closes the run with the reason, and raises."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Refused
from control_plane.storage.layout import RunFiles
from control_plane.storage.proof import write_proof
from ray_jobs import train


def files_in(home: Path) -> RunFiles:
    files = RunFiles(home / "runs" / "r")
    files.root.mkdir(parents=True, mode=0o700)
    return files


def test_a_rank_on_another_disk_closes_the_run_and_writes_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, other = files_in(tmp_path / "head"), files_in(tmp_path / "other")
    proof = write_proof(head.root, head.signing_key)
    closed: list[Refused] = []
    monkeypatch.setattr(train, "_close", lambda _, refusal: closed.append(refusal))
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(RuntimeError, match=r"rank 3: node .* does not share"):
        train.main({"root": str(other.root), "use_gpu": False, "proof": proof.model_dump()})
    assert [refusal.reason.startswith("rank 3: node ") for refusal in closed] == [True]
    assert list(other.root.iterdir()) == []


def test_a_rank_that_shares_the_storage_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_in(tmp_path / "head")
    proof = write_proof(files.root, files.signing_key)
    monkeypatch.setattr(train, "_is_closed", lambda _: True)
    train.main({"root": str(files.root), "use_gpu": False, "proof": proof.model_dump()})
    assert (files.logs / "rank-0.log").is_file()
