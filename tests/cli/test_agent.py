"""`steer agent`: one autopilot of an installation steers a run."""

from pathlib import Path

import pytest

from control_plane.cli.commands.agent import only_autopilot
from control_plane.core.model.errors import Conflict
from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, TOKENS, LiveGateway


def test_second_autopilot_of_a_run_is_refused_at_its_start(
    gateway: LiveGateway, steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_TOKEN", TOKENS["agent"])
    with only_autopilot(tmp_path, RUN):
        answer = steer("agent", RUN, "--policy", "rule")
    assert answer.exit_code == Conflict.exit_code
    assert f"another autopilot is already running on {RUN}" in answer.stderr


def test_next_autopilot_and_one_of_another_run_may_steer(tmp_path: Path) -> None:
    with only_autopilot(tmp_path, "one"), only_autopilot(tmp_path, "two"):
        pass
    with only_autopilot(tmp_path, "one"):
        pass


def test_home_that_cannot_hold_a_lock_is_said_and_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "autopilots").write_text("a file in the way")
    with only_autopilot(tmp_path, "one"):
        pass
    assert "cannot check for another autopilot" in capsys.readouterr().err
