"""Losses, recoveries and checkpoints, as the command line shows them."""

import json

import pytest

from tests.cli.conftest import Steer
from tests.cli.losses import CHECKPOINT, come_back, lose, save
from tests.cli.output.test_following import Script, followed, snapshot
from tests.gateway.rig import RUN, LiveGateway

LOST = "trainers failed at step 9: rank 1 on node-3 died (its process ended)"
BACK = f"recovered: generation 2 restored {CHECKPOINT} (step 4) on 1 rank; 5 steps lost; detect "


def test_status_of_a_recovering_run_says_who_was_lost(idle_gateway: LiveGateway, steer: Steer) -> None:
    idle_gateway.call(lose(idle_gateway.server))
    shown = steer("status").stdout.splitlines()
    assert "status      recovering" in shown
    assert any(line.startswith(f"failure     {LOST}") for line in shown)
    assert any(line.strip() == "recovering: new trainers have not started yet" for line in shown)


def test_status_after_a_recovery_says_what_it_has_cost(idle_gateway: LiveGateway, steer: Steer) -> None:
    for happens in (save, lose, come_back):
        idle_gateway.call(happens(idle_gateway.server))
    shown = steer("status", RUN).stdout
    assert BACK in shown
    assert "load 1.0 s, first step 0.6 s" in shown


def test_status_as_json_has_every_recovery(idle_gateway: LiveGateway, steer: Steer) -> None:
    for happens in (save, lose, come_back):
        idle_gateway.call(happens(idle_gateway.server))
    (recovery,) = json.loads(steer("status", RUN, "--json").stdout)["recoveries"]
    assert (recovery["lost_steps"], recovery["checkpoint"], recovery["world_size"]) == (5, CHECKPOINT, 1)


def test_recovering_run_takes_commands(idle_gateway: LiveGateway, steer: Steer) -> None:
    idle_gateway.call(lose(idle_gateway.server))
    assert steer("set", "lr=1e-4", "--detach").stdout.startswith(f"accepted by {RUN}")


def test_follow_tells_a_loss_and_the_recovery_once() -> None:
    lost = {"generation": 1, "lost_at": "2026-01-01T00:00:00Z", "step": 9}
    back = lost | {"checkpoint": "c", "resumed_step": 4, "world_size": 2, "lost_steps": 5, "phases_s": {"detect": 0.4}}
    away = snapshot(9, "recovering", recoveries=[lost])
    again = snapshot(5, recoveries=[back])
    written, _ = followed(Script([snapshot(9), away, away, again, again, snapshot(100, "finished", recoveries=[back])]))
    assert written.count("trainers failed at step 9") == 1
    assert written.count("recovered: generation 2 restored c (step 4) on 2 ranks; 5 steps lost; detect 0.4 s") == 1


def test_journal_tells_losses_in_plain_words(idle_gateway: LiveGateway, steer: Steer) -> None:
    for happens in (save, lose, come_back):
        idle_gateway.call(happens(idle_gateway.server))
    shown = steer("journal", RUN).stdout
    assert LOST in shown
    assert f"generation 2 restored {CHECKPOINT} (step 4) on 1 rank" in shown
    assert "training again at step 5: 5 steps lost; detect " in shown


def test_checkpoints_are_a_table(idle_gateway: LiveGateway, steer: Steer) -> None:
    idle_gateway.call(save(idle_gateway.server))
    idle_gateway.call(save(idle_gateway.server, "step-00000008-g1", 8, label="before the change", pinned=True))
    head, first, second = steer("checkpoints").stdout.splitlines()
    assert head.split() == ["CHECKPOINT", "STEP", "SIZE", "PINNED", "HEALTH", "LABEL", "NOTE"]
    assert first.split() == [CHECKPOINT, "4", "1.5", "MB", "no", "unknown", "-", "-"]
    assert second.split(maxsplit=6) == ["step-00000008-g1", "8", "1.5", "MB", "yes", "unknown", "before the change  -"]


def test_checkpoints_as_json_parse(idle_gateway: LiveGateway, steer: Steer) -> None:
    assert json.loads(steer("checkpoints", RUN, "--json").stdout) == []
    idle_gateway.call(save(idle_gateway.server, label="x"))
    (found,) = json.loads(steer("checkpoints", RUN, "--json").stdout)
    assert (found["checkpoint"], found["step"], found["label"], found["pinned"]) == (CHECKPOINT, 4, "x", False)


@pytest.mark.parametrize(("flags", "pin"), [((), False), (("--pin",), True)])
def test_save_says_whether_it_is_to_be_kept(
    idle_gateway: LiveGateway, steer: Steer, flags: tuple[str, ...], pin: bool
) -> None:
    steer("save", RUN, "--label", "x", "--detach", *flags)
    (view,) = idle_gateway.call(idle_gateway.server.snapshot()).commands
    assert view.command.intent.model_dump() == {
        "kind": "save_checkpoint",
        "label": "x",
        "note": None,
        "pin": pin,
        "name": None,
    }
