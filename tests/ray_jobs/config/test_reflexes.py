"""Section `reflexes:` of a config: its short forms, and what is refused."""

from pathlib import Path

import pytest
import yaml

from control_plane.actor.control_actor import reflexes_in
from control_plane.core.model.errors import Damaged, Invalid
from ray_jobs.config.run_config import RunConfig, load
from tests.ray_jobs.config.test_config import GOOD

RESCUE = {"non_finite": ["rollback trusted", "lr*=0.5", "skip_samples 200"], "gradient_spike": "clip"}


def config_with(tmp_path: Path, reflexes: object) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"reflexes": reflexes}))
    return load(path)


def test_reflexes_of_a_config_reach_the_control_server_unchanged(tmp_path: Path) -> None:
    given = RESCUE | {"critical": {"do": "pause", "budget": 1, "save_first": True, "z_threshold": 3.5}}
    config = config_with(tmp_path, given)
    assert config.reflexes["critical"].budget == 1
    assert RunConfig.from_yaml(config.to_yaml()) == config
    assert reflexes_in(config.to_yaml().encode(), "config.yaml") == config.reflexes
    assert reflexes_in(b"name: older", "config.yaml") == {}


@pytest.mark.parametrize(
    ("reflexes", "reason"),
    [
        ({"non_finite": "explode"}, "'explode' is no action of a reflex"),
        ({"loss_spikes": "pause"}, "loss_spikes"),
        ({"loss_spike": {"do": "pause", "budgets": 3}}, "did you mean budget"),
        ({"loss_spike": {"do": "pause", "budget": 0}}, "at least 1"),
        (["pause"], "reflexes"),
    ],
)
def test_reflex_that_cannot_be_is_named_with_the_reason(tmp_path: Path, reflexes: object, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        config_with(tmp_path, reflexes)


def test_reflexes_that_cannot_be_read_stop_the_server_instead_of_being_dropped() -> None:
    with pytest.raises(Damaged, match=r"the reflexes in config\.yaml cannot be read"):
        reflexes_in(b"reflexes: {loss_spike: explode}", "config.yaml")
