"""The wheel, installed without extras into an empty environment and used outside of a clone."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

QUIET = ("-m", "pip", "--quiet", "--disable-pip-version-check")
CONSTRAINED = ("install", "--constraint", str(ROOT / "constraints.txt"))
OTHER_UI = "raise SystemExit('the ui of another project')\n"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program without the clone on its path."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel built from the files that git tracks: an untracked build folder would leak into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("steerway-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """Interpreter of an environment that has the wheel and what bare `steerway` needs."""
    folder = wheel.parent / "environment"
    # Without a pip of its own, whose installation takes as long as all the rest: ours works on it from outside.
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    installed = run(sys.executable, *QUIET, "--python", python, *CONSTRAINED, wheel, cwd=wheel.parent)
    assert installed.returncode == 0, installed.stderr
    return python


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Folder of another project, which has a package `ui` and one `cluster` of its own."""
    for name in ("ui", "cluster"):
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "__main__.py", "local.py"):
            (tmp_path / name / file).write_text(OTHER_UI.replace("ui", name))
    return tmp_path


def test_wheel_holds_the_packages_and_configs_and_neither_tests_nor_benchmarks(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if not name.startswith("steerway-")}
    assert tops == {"steerway", "control_plane", "ray_jobs", "ui", "cluster"}
    for wanted in ("steerway/py.typed", "ui/icon.svg", "ui/login/login.html", "configs/gpt2-local.yaml", "zero2.json"):
        assert any(name.endswith(wanted) for name in names), wanted


def test_bare_steerway_is_a_client_without_torch_and_ray(python: Path, elsewhere: Path) -> None:
    program = (
        "import sys, steerway; steerway.Client, steerway.errors.Refused\n"
        "print(steerway.__version__, sorted({'torch', 'ray', 'transformers', 'streamlit'} & set(sys.modules)))\n"
        "try: steerway.make_interactive\nexcept ImportError as error: print(error)\n"
    )
    told = run(python, "-c", program, cwd=elsewhere)
    version, sentence = told.stdout.splitlines()
    assert version == "0.3.0 []"
    assert sentence.startswith("steerway.make_interactive needs the package 'torch', ")
    assert sentence.endswith("which is not installed: pip install 'steerway[train]'")


def test_command_line_steers_and_says_what_is_missing_for_a_cluster(python: Path, elsewhere: Path) -> None:
    steer, home = python.with_name("steer"), {"STEERWAY_HOME": str(elsewhere / "home"), "STEERWAY_TOKEN": "t"}
    assert "Steer distributed training while it runs." in run(steer, "--help", cwd=elsewhere).stdout
    nobody = run(steer, "runs", cwd=elsewhere, STEERWAY_GATEWAY_PORT="9", **home)
    assert nobody.returncode == 1
    assert "Traceback" not in nobody.stderr
    up = run(steer, "up", cwd=elsewhere, **home)
    assert up.returncode == 1
    assert "this command needs Ray, and only Steerway's client is installed here" in up.stderr


def test_another_projects_package_named_ui_is_not_run_in_place_of_ours(python: Path, elsewhere: Path) -> None:
    """The working directory comes first for `python -m`, and not at all for the programs that Steerway starts."""
    theirs = run(python, "-m", "ui", cwd=elsewhere)
    assert theirs.stderr == "the ui of another project\n"
    program = "import subprocess; from control_plane.programs import program; print(*program('ui'))"
    command = run(python, "-c", program, cwd=elsewhere).stdout.split()
    ours = run(*command, cwd=elsewhere)
    assert "the ui of another project" not in ours.stderr
    assert "streamlit" in ours.stderr  # ours, which this environment has no console for
