"""What Interactive Training can be asked, so can Steerway, and its matrix proves it; bad input is refused."""

import asyncio
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import NotFound, SteerwayError
from control_plane.core.model.intent_base import ServerIntent
from control_plane.core.model.intents import INTENT, KINDS
from control_plane.core.model.intents.data import DATA_KINDS
from control_plane.storage.layout import RunFiles, find_run
from ray_jobs.steering.actions import ActionsApplier, ScriptActions
from tests.ray_jobs.support import peer_commands as peers
from tests.ray_jobs.support import vocabulary
from tests.ray_jobs.trials.trials import open_server

BY_THE_SERVER = {name for name, kind in KINDS.items() if issubclass(kind, ServerIntent)}
LEFT_OUT = BY_THE_SERVER | {"rollback", "skip_samples"} | set(DATA_KINDS)
"""What the control server does by itself, its own tests prove. After a rollback there is no next
step of the same training to compare: `tests/ray_jobs/steering/test_rollback.py` compares the branch. Samples that are
skipped, or drawn by another mixture, are compared one by one, in `tests/ray_jobs/data`."""


def kinds() -> set[str]:
    """Every intent that there is."""
    return set(INTENT.json_schema()["discriminator"]["mapping"])


def told(**intent: Any) -> Command:
    return Command(uuid=uuid4(), author="test", intent=INTENT.validate_python(intent))


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: f"{peer.version} {peer.theirs}")
def test_each_command_of_theirs_is_one_of_ours_that_the_matrix_proves_or_says_that_it_is_not(peer: peers.Peer) -> None:
    if peer.ours in (peers.NOT_YET, peers.NO_COMMAND, peers.GOING_BACK):
        assert peer.rows == ()
        assert peer.how_far
        return
    rows = {row.name: row.intent["kind"] for row in vocabulary.rows()}
    assert peer.rows
    named = set(re.findall(r"[a-z]+(?:_[a-z]+)*", " ".join(re.findall(r"`(.+?)`", peer.ours)))) & kinds()
    assert {rows[row] for row in peer.rows} == named
    for row in peer.rows:
        assert INTENT.validate_python(next(each for each in vocabulary.rows() if each.name == row).intent)


def test_the_matrix_exercises_every_intent_that_ranks_carry_out() -> None:
    assert vocabulary.kinds() == kinds() - LEFT_OUT
    assert {name for name, kind in KINDS.items() if kind.changes_training} <= vocabulary.kinds() | LEFT_OUT


def test_the_page_is_what_the_table_says() -> None:
    """After a change: `python -m tests.ray_jobs.support.peer_commands`."""
    assert peers.DOCUMENT.read_text(encoding="utf-8") == peers.rendered()


@pytest.mark.parametrize(
    "intent",
    [
        *({"kind": "set_learning_rate", "value": value} for value in (float("nan"), float("inf"), 0.0, -1e-4)),
        *(
            {"kind": "set_knobs", "changes": [{"knob": "eps", "value": value}]}
            for value in (float("nan"), float("inf"))
        ),
        {"kind": "update_optimizer", "lr": 1e-4},
    ],
    ids=str,
)
def test_what_is_no_number_or_no_command_is_refused_when_it_is_said(intent: dict[str, Any]) -> None:
    assert {"not finite", "negative"} <= set(peers.BAD_INPUTS)
    with pytest.raises(ValidationError):
        told(**intent)


@pytest.mark.parametrize("kind", ["pin_checkpoint", "delete_checkpoint"])
def test_an_unknown_checkpoint_is_refused_and_the_run_is_as_before(tmp_path: Path, kind: str) -> None:
    assert "checkpoint" in peers.BAD_INPUTS
    server = open_server(RunFiles(tmp_path / "run"), [])
    before = asyncio.run(server.snapshot())
    with pytest.raises(NotFound, match="nowhere"):
        asyncio.run(server.submit(told(kind=kind, checkpoint="../nowhere")))
    assert asyncio.run(server.snapshot()).seq == before.seq


def test_a_name_that_leaves_its_folder_is_refused() -> None:
    assert "path" in peers.BAD_INPUTS
    with pytest.raises(SteerwayError):
        find_run(Path("runs"), "../elsewhere")


@pytest.mark.parametrize("name", ["model.to", "__init__", "transformer.h.0.requires_grad_"])
def test_only_what_a_script_has_registered_can_be_called(name: str) -> None:
    assert "method" in peers.BAD_INPUTS
    refusal = ActionsApplier(ScriptActions()).check(told(kind="run_action", name=name))
    assert refusal == f"there is no action {name!r}; this run has none"
