"""How a user's script may end: `sys.exit(main())`, click, typer and absl leave by SystemExit, which is no failure."""

import sys
from pathlib import Path

import pytest

from ray_jobs.config.run_config import ScriptWorkload
from ray_jobs.process.context import Trainings
from ray_jobs.steering.rollback import LeaveForBranch
from ray_jobs.train import run_script


def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, trainings: Trainings | None = None) -> None:
    script = tmp_path / "script.py"
    script.write_text(source)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    run_script(ScriptWorkload(kind="script", path=str(script), args=[]), trainings or Trainings())


@pytest.mark.parametrize("end", ["", "sys.exit()", "sys.exit(0)", "sys.exit(None)", "raise SystemExit"])
def test_script_that_leaves_without_a_complaint_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    ends(tmp_path, monkeypatch, f"import sys\n{end}\n")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("sys.exit(3)", "script.py ended with exit code 3"),
        ("sys.exit('no such data')", "script.py ended with the message: no such data"),
        ("raise ValueError('wrong')", "wrong"),
    ],
)
def test_script_that_leaves_with_a_complaint_has_failed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, told: str
) -> None:
    with pytest.raises((RuntimeError, ValueError), match=told):
        ends(tmp_path, monkeypatch, f"import sys\n{end}\n")


@pytest.mark.parametrize("code", ["0", "3"])
def test_script_that_leaves_in_the_middle_of_a_training_has_failed_whatever_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    left = Trainings(begun=1, broken_off="in the middle of its training, at step 7 of 20")
    with pytest.raises(RuntimeError, match=f"exit code {code}, in the middle of its training, at step 7 of 20; to end"):
        ends(tmp_path, monkeypatch, f"import sys\nsys.exit({code})\n", left)


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError('nothing to save')"])
def test_script_that_catches_what_ends_it_for_another_branch_is_ended_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    with pytest.raises(LeaveForBranch):
        ends(tmp_path, monkeypatch, f"import sys\n{end}\n", Trainings(begun=1, left=True))
