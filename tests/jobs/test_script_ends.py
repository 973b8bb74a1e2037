"""How a user's script may end: `sys.exit(main())`, click, typer and absl leave by SystemExit, which is no failure."""

import sys
from pathlib import Path

import pytest

from ray_jobs.config import ScriptWorkload
from ray_jobs.train import _run_script


def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(source)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    _run_script(ScriptWorkload(kind="script", path=str(script), args=[]))


@pytest.mark.parametrize("end", ["", "sys.exit()", "sys.exit(0)", "sys.exit(None)", "raise SystemExit"])
def test_script_that_leaves_without_a_complaint_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    ends(tmp_path, monkeypatch, f"import sys\n{end}\n")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("sys.exit(3)", "script.py ended with exit code 3"),
        ("sys.exit('no such data')", "script.py ended saying: no such data"),
        ("raise ValueError('wrong')", "wrong"),
    ],
)
def test_script_that_leaves_with_a_complaint_has_failed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, told: str
) -> None:
    with pytest.raises((RuntimeError, ValueError), match=told):
        ends(tmp_path, monkeypatch, f"import sys\n{end}\n")
