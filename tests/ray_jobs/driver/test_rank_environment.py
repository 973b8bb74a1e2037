"""Ray's runtime environment of the ranks: their code and packages; nothing of it reaches the driver."""

import sys
from pathlib import Path

import pytest

from control_plane.storage.layout import RunFiles
from ray_jobs.driver import warm_spares
from ray_jobs.driver.rank_environment import rank_environment, reason_of
from ray_jobs.driver.warm_spares import CODE
from tests.ray_jobs.config.test_runtime_env import BUNDLE, config


def test_a_run_without_code_and_packages_has_variables_only(tmp_path: Path) -> None:
    environment = rank_environment(config("env: {HF_HOME: /shared}"), RunFiles(tmp_path), "cpu")
    assert set(environment) == {"env_vars"}
    assert environment["env_vars"]["HF_HOME"] == "/shared"


def test_ranks_get_code_modules_and_packages(tmp_path: Path) -> None:
    text = BUNDLE + "runtime_env: {pip: [einops], py_modules: [_modules/mine, /shared/m, 's3://b/m.zip']}"
    environment = rank_environment(config(text), RunFiles(tmp_path), "cpu")
    assert environment["env_vars"][CODE] == f"{tmp_path}/code:{tmp_path}/code/_modules:/shared"
    assert environment["py_modules"] == ["s3://b/m.zip"]
    assert environment["pip"] == ["einops"]


def test_the_users_modules_come_first_once_ours_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_only.py").write_text("")
    monkeypatch.setattr(warm_spares, "PRELOADED", ("mine_only",))
    monkeypatch.setattr(warm_spares.gc, "freeze", lambda: None)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv(CODE, f"{tmp_path}:/another")
    warm_spares.preload()
    assert "mine_only" not in sys.modules, "it was found before everything of ours was imported"
    assert sys.path[:2] == [str(tmp_path), "/another"]


def test_pips_own_words_are_the_reason() -> None:
    message = "Failed\nERROR: No match for x==9\n  trace\nERROR: No match for x==9\nend"
    assert reason_of(message) == "ERROR: No match for x==9"
    assert reason_of("first\n last \n\n") == "last"
