"""A shipped config is found by its name, and never in place of a file of the user's."""

from pathlib import Path

import pytest

from control_plane import shipped

NAME = "gpt2-local.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without configs, and an installation with one."""
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / NAME).write_text("name: shipped")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "share")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("path", [NAME, f"configs/{NAME}", f"./configs/{NAME}"])
def test_shipped_config_is_found_by_its_name(path: str, elsewhere: Path) -> None:
    assert shipped.find_config(path) == str(elsewhere / "share" / NAME)


@pytest.mark.parametrize("path", [f"mine/{NAME}", f"/nowhere/{NAME}", f"../{NAME}", f"~/{NAME}", "other.yaml"])
def test_missing_file_stays_missing(path: str) -> None:
    assert shipped.find_config(path) == path


def test_file_of_the_user_comes_first() -> None:
    Path(NAME).write_text("name: mine")
    assert shipped.find_config(NAME) == NAME
