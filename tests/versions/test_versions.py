"""Releases side by side: what works together, and the sentence where it cannot.

| reader | writer | |
|---|---|---|
| gateway or rank, this release | control server of 0.1, or of another protocol | refused, with the way on |
| gateway or rank, this release | control server of this protocol, any release | works |
| any | journal of 0.1 and of format 2 | read (`tests/storage/journal/test_journal_releases.py`) |
| any | journal, checkpoint or record of a later release | refused by format, nothing is changed |
| rank | gateway and driver of another release | refused, with node, both releases, and what to do |
| client | gateway of another release | works, with a note |
| client | gateway whose answer has members that this release does not know | refused, with the question |
"""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from control_plane.actor.remote import RayHandle
from control_plane.api import versions
from control_plane.api.messages import RunSummary
from control_plane.client.answers import parse
from control_plane.core.model.errors import Conflict, Damaged, Refused, Unavailable
from control_plane.storage.checkpoint.manifest import Manifest
from control_plane.storage.journal.segments import seal, unseal
from control_plane.storage.journal.writer import Journal, read
from control_plane.storage.layout import RunFiles
from ray_jobs import train

JOURNALS = Path(__file__).parents[1] / "storage" / "journals"


class Method:
    """Actor's method as Ray shows it."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def remote(self, *_: object) -> Any:
        return self._answer


class OldActor:
    """Control actor of release 0.1, which cannot be asked for its version."""

    def __init__(self) -> None:
        self.pid = Method(4711)


class Actor(OldActor):
    """Control actor that answers this version."""

    def __init__(self, protocol: int, release: str) -> None:
        super().__init__()
        self.protocol = Method({"protocol": protocol, "release": release})


def ask(actor: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """One call by a handle of this release."""
    monkeypatch.setattr("control_plane.actor.remote.get_or_create", lambda files: actor)
    return asyncio.run(RayHandle(RunFiles(folder / "run-1"), retry_for_s=0.1).pid())


@pytest.mark.parametrize(
    ("actor", "release"),
    [
        (OldActor(), "0.1"),
        (Actor(versions.PROTOCOL + 1, "0.9"), "0.9"),
        (Actor(versions.PROTOCOL - 1, "0.1.5"), "0.1.5"),
    ],
)
def test_control_server_of_another_protocol_is_refused_with_the_way_on(
    actor: object, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Conflict) as refused:
        ask(actor, tmp_path, monkeypatch)
    assert refused.value.reason == (
        f"the control server of run run-1 is of Steerway {release} and this process of {versions.release()}: they "
        "cannot exchange messages. `steer down`, `steer up` and `steer resume run-1` continue the run from its latest "
        "checkpoint with the installed release"
    )


def test_control_server_of_another_release_with_this_protocol_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(Actor(versions.PROTOCOL, "0.2.7"), tmp_path, monkeypatch) == 4711


def rewritten(journal: Path, change: dict[str, Any], line: int) -> bytes:
    """Journal's segment as another release would have written it: one line's members changed, sealed again."""
    segment = max(journal.glob("*.jsonl"))
    lines = segment.read_bytes().splitlines()
    lines[line] = seal(unseal(lines[line]) | change)
    segment.write_bytes(b"\n".join(lines) + b"\n")
    return segment.read_bytes()


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        ({"version": 3}, 0, "it is in format 3, and this release reads 1 or 2; nothing was changed"),
        ({"type": "RunPainted"}, -1, "RunPainted"),
    ],
)
def test_journal_of_a_later_release_is_refused_and_left_as_it_is(
    change: dict[str, Any], line: int, reason: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    shutil.copytree(JOURNALS / "v2", journal)
    before = rewritten(journal, change, line)
    for opening in (read, Journal.open):
        with pytest.raises(Damaged, match=reason):
            opening(journal)
    assert max(journal.glob("*.jsonl")).read_bytes() == before


def test_checkpoint_of_a_later_release_is_refused_by_its_format() -> None:
    with pytest.raises(ValueError, match=r"format\n.*Input should be 2"):
        Manifest.model_validate_json(json.dumps({"format": 3}))


def test_answer_of_a_later_gateway_is_refused_with_the_question() -> None:
    with pytest.raises(Unavailable, match="do the gateway and this client have the same version"):
        parse(RunSummary, {"run": "run-1", "mood": "sunny"})


def test_rank_with_another_release_than_its_run_was_submitted_with_is_refused() -> None:
    versions.check_release("run-1", "node-3", "0.3.0", own="0.3.0")
    for unknown in versions.UNKNOWN:
        versions.check_release("run-1", "node-3", unknown, own="0.3.0")
    reason = (
        r"node node-3 has Steerway 0\.2\.0, but the gateway that started run run-1 has 0\.3\.0: "
        r"install one release on all nodes \(`pip install steerway==0\.3\.0` on node-3\), restart its Ray, "
        r"then `steer resume run-1`"
    )
    with pytest.raises(Refused, match=reason):
        versions.check_release("run-1", "node-3", "0.3.0", own="0.2.0")


def test_rank_with_another_release_closes_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, closed = RunFiles(tmp_path / "runs" / "run-1"), list[str]()
    files.root.mkdir(parents=True)
    monkeypatch.setattr(train, "_log_to_file", lambda files, rank: None)
    monkeypatch.setattr(train, "_is_closed", lambda files: pytest.fail("the control server was asked"))
    monkeypatch.setattr(train, "_close", lambda files, refusal: closed.append(refusal.reason))
    train.main({"root": str(files.root), "use_gpu": False, "release": "99.0"})
    assert len(closed) == 1
    assert "but the gateway that started run run-1 has 99.0" in closed[0]


def test_client_of_another_release_is_told() -> None:
    assert versions.release_notes("0.3.0", "0.3.0") == versions.release_notes("", "0.3.0") == ()
    [note] = versions.release_notes("0.2.0", "0.3.0")
    assert "client is Steerway 0.2.0 and the gateway is 0.3.0" in note
