"""The limits of a run's config: what is accepted, what is refused, and how they reach the run's journal."""

from pathlib import Path

import pytest
import yaml

from control_plane.actor.control_actor import ControlActor, limits_in
from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.model.limits import Limit, limit_of
from control_plane.gateway.auth import COMMANDERS
from control_plane.storage.journal import writer
from ray_jobs.config.run_config import RunConfig, load
from ray_jobs.submit import prepare
from tests.ray_jobs.config.test_config import GOOD

LIMITS = {
    "lr": {"min": 1e-6, "max": 1e-2, "max_factor": 10, "cool_down_s": 30, "roles": ["operator", "admin"]},
    "on": {"max": 1},
    "transformer.*:p": {"max": 0.5},
    "*:p": {"max": 0.6},
}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A config with limits."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "limits": LIMITS}, sort_keys=False))
    return load(path)


def refusal(tmp_path: Path, override: str) -> str:
    """Why this is no limit."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(Invalid) as refused:
        load(path, [override])
    return refused.value.reason


def test_limits_are_the_words_of_the_core_and_survive_the_round_trip(config: RunConfig) -> None:
    assert limit_of(config.limits, "transformer.drop:p") == config.limits["transformer.*:p"]
    assert isinstance(config.limits["lr"], Limit)
    assert RunConfig.from_yaml(config.to_yaml()) == config


def test_config_without_limits_allows_everything(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load(path).limits == {}


def test_limits_reach_the_first_record_of_the_run(config: RunConfig, tmp_path: Path) -> None:
    files = prepare(config, tmp_path / "runs", "run-1")
    ControlActor(str(files.root))
    created = writer.read(files.journal)[0].record
    assert created.type == "RunCreated"
    assert created.limits == {name: Limit.model_validate(limit) for name, limit in LIMITS.items()}
    assert list(created.limits) == list(LIMITS)


def test_control_server_that_starts_again_keeps_the_limits(config: RunConfig, tmp_path: Path) -> None:
    files = prepare(config, tmp_path / "runs", "run-1")
    ControlActor(str(files.root))
    ControlActor(str(files.root))
    assert [entry.record.type for entry in writer.read(files.journal)] == ["RunCreated", "TermStarted", "TermStarted"]


@pytest.mark.parametrize("text", ["", "name: x", "limits:", "limits: {}", "[]", "args: [=, 2026-13-45]"])
def test_config_that_says_nothing_of_limits_has_none(text: str) -> None:
    assert limits_in(text.encode(), "config.yaml") == {}


@pytest.mark.parametrize("text", ["limits: [", "limits: {lr: {mx: 1}}", "limits: {lr: 3}", "limits: [lr]", "\x00"])
def test_limits_that_cannot_be_read_are_damaged(text: str) -> None:
    with pytest.raises(Damaged, match=r"the limits in config\.yaml cannot be read"):
        limits_in(text.encode(), "config.yaml")


BAD_LIMITS = {
    "limits=3": "limits is 3 (an integer), but must be a mapping",
    "limits.lr=3": "limits.lr is 3 (an integer), but must be a mapping",
    "limits.lr.mx=3": "limits.lr.mx is not a known key; did you mean max? Allowed in limits.lr: min, max, max_factor",
    "limits.lr.max=high": "limits.lr.max is 'high' (text), but must be a number",
    "limits.lr.max=true": "limits.lr.max is True (true or false), but must be a number",
    "limits.lr.max=.inf": "limits.lr.max is inf, but must be a finite number",
    "limits.lr={min: 2, max: 1}": "limits.lr: min is 2, which is above max 1",
    "limits.lr.max_factor=0.5": "limits.lr.max_factor is 0.5 (a number), but must be at least 1",
    "limits.lr.cool_down_s=0": "limits.lr.cool_down_s is 0 (an integer), but must be greater than 0",
    "limits.lr.roles=[]": "limits.lr.roles is [] (a list), but must be a list of at least 1",
    "limits.lr.roles=admin": "limits.lr.roles is 'admin' (text), but must be a list",
    "limits.lr.roles=[viewer]": "limits.lr.roles.0 is 'viewer' (text), but must be one of 'operator', 'agent'",
    "limit={}": "limit is not a known key; did you mean limits?",
}


@pytest.mark.parametrize(("override", "words"), BAD_LIMITS.items(), ids=BAD_LIMITS)
def test_limit_that_is_none_is_refused_by_name(tmp_path: Path, override: str, words: str) -> None:
    assert words in refusal(tmp_path, override)


@pytest.mark.parametrize("role", sorted(COMMANDERS))
def test_role_that_may_command_may_stand_in_a_limit(tmp_path: Path, role: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "limits": {"lr": {"roles": [role]}}}))
    assert load(path).limits["lr"].roles == (role,)
