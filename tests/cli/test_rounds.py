"""`steer rounds`: what it refuses before anything is launched."""

from pathlib import Path

import pytest

from tests.cli.conftest import Steer
from tests.gateway.rig import LiveGateway

CONFIG = "name: tiny\nseed: 1\nworkload: {{kind: script, path: train.py}}\ntraining: {{{}}}\n"


@pytest.mark.parametrize("training", ["", "learning_rate: fast", "learning_rate: 0", "learning_rate: [1]"])
def test_a_config_without_a_rate_is_refused(gateway: LiveGateway, steer: Steer, tmp_path: Path, training: str) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.format(training))
    answer = steer("rounds", str(config), "--memory", str(tmp_path / "m.jsonl"))
    assert answer.exit_code == 2
    assert "has no training.learning_rate" in answer.stderr
    assert gateway.launches.asked == []


def test_an_unknown_policy_is_refused_before_a_run_is_launched(
    gateway: LiveGateway, steer: Steer, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.format("learning_rate: 1e-3"))
    answer = steer("rounds", str(config), "--policy", "magic", "--memory", str(tmp_path / "m.jsonl"))
    assert answer.exit_code != 0
    assert "policy is 'magic'" in answer.stderr
    assert gateway.launches.asked == []
