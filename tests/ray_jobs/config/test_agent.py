"""Section `agent:` of a config: the settings of the agent that a run starts with, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.actor.control_actor import agent_in
from control_plane.core.model.errors import Damaged, Invalid
from ray_jobs.config.run_config import RunConfig, load
from tests.ray_jobs.config.test_config import GOOD

GRANTS = {"knobs": {"weight_decay": {"max_factor": 3.0, "max": 0.5}}, "actions": ["reshuffle"], "watch": ["return"]}
GIVEN = {"policy": "rule", "mode": "suggest", "every_steps": 10, "deadline_s": 60, "grants": GRANTS}


def config_with(tmp_path: Path, agent: object, overrides: tuple[str, ...] = ()) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"agent": agent}))
    return load(path, overrides)


def test_settings_of_a_config_reach_the_control_server_unchanged(tmp_path: Path) -> None:
    config = config_with(tmp_path, GIVEN)
    assert config.agent is not None
    assert (config.agent.mode, config.agent.grants.actions) == ("suggest", {"reshuffle": {}})
    assert RunConfig.from_yaml(config.to_yaml()) == config
    assert agent_in(config.to_yaml().encode(), "config.yaml") == config.agent
    assert config_with(tmp_path, {}, ("agent.policy=rule",)).agent is not None
    none = config_with(tmp_path, None)
    assert none.agent is None
    assert agent_in(none.to_yaml().encode(), "config.yaml") is None
    assert agent_in(b"name: older", "config.yaml") is None


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"mode": "brave"}, r"agent\.mode is 'brave' \(text\), but must be one of 'suggest', 'guarded' or 'auto'"),
        ({"every_steps": 0}, r"agent\.every_steps is 0 \(an integer\), but must be at least 1"),
        ({"every_steps": "25"}, r"agent\.every_steps is '25' \(text\), but must be an integer"),
        ({"polcy": "rule"}, r"agent\.polcy is not a known key; did you mean policy"),
        ({"model": "o4-mini"}, r"agent\.model is not a known key"),
        ({"min_lr": 1.0}, r"agent: min_lr 1 is not below max_lr 0\.01"),
        ({"trial_steps": 0}, r"agent\.trial_steps is 0 \(an integer\), but must be at least 1"),
        ({"policy": "gaurded"}, r"agent\.policy: there is no policy 'gaurded'; there are auto, model, rule, guarded"),
        ({"policy": "ado"}, r"agent\.policy: the policy ado sets the weights .* needs 'limits: \{mixture/\*: \{roles"),
        ({"mixing": {"flor": 0.1}}, r"agent\.mixing\.flor is not a known key; did you mean floor"),
        ({"mixing": {"floor": 0.6}}, r"agent\.mixing\.floor is 0\.6 \(a number\), but must be at most 0\.5"),
        ({"grants": {"knob": {}}}, r"agent\.grants\.knob is not a known key; did you mean knobs"),
        ({"grants": {"knobs": {"x": {"maximum": 1}}}}, r"agent\.grants\.knobs\.x\.maximum is not a known key"),
        ({"grants": {"actions": {"x": {"row": {"mim": 1}}}}}, r"agent\.grants\.actions\.x\.row\.mim is not a known"),
        ("rule", r"agent is 'rule' \(text\), but must be a mapping"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_place(tmp_path: Path, agent: Any, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        config_with(tmp_path, agent)


def test_an_agent_that_cannot_be_read_stops_the_server_instead_of_being_dropped() -> None:
    with pytest.raises(Damaged, match=r"the agent in config\.yaml cannot be read"):
        agent_in(b"agent: {mode: brave}", "config.yaml")
