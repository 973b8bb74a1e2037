"""`steer episodes export`, over a gateway on a socket."""

import json
from pathlib import Path

from tests.cli.conftest import Steer
from tests.core import examples
from tests.gateway.rig import RUN, LiveGateway


def test_export_writes_a_line_a_proposal(gateway: LiveGateway, steer: Steer, tmp_path: Path) -> None:
    proposed = examples.command(50, "propose", intent={"kind": "set_learning_rate", "factor": 0.5})
    gateway.call(gateway.server.submit(proposed.model_copy(update={"reason": "autopilot (x): too high"})))
    gateway.call(gateway.server.submit(examples.command(51, "propose", intent={"kind": "evaluate"})))
    answer = steer("episodes", "export", RUN)
    assert answer.exit_code == 0
    (line,) = answer.stdout.splitlines()
    episode = json.loads(line)
    assert (episode["run"], episode["verdict"], episode["proposal"]["factor"]) == (RUN, "open", 0.5)
    assert "autopilot" not in line, "reasons are no data to learn from"
    assert "1 episodes, 1 open" in answer.stderr
    out = tmp_path / "episodes.jsonl"
    assert steer("episodes", "export", RUN, "--out", str(out)).exit_code == 0
    assert json.loads(out.read_text()) == episode


def test_export_to_a_folder_that_is_not_there_says_so(gateway: LiveGateway, steer: Steer, tmp_path: Path) -> None:
    answer = steer("episodes", "export", RUN, "--out", str(tmp_path / "no" / "file"))
    assert (answer.exit_code, "cannot be written" in answer.stderr) == (2, True)
