"""Who may use whom: import-linter's contracts hold, and each of them bites."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
CORE = "control_plane/core/state.py"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts over the house that stands here."""
    command = [str(LINT_IMPORTS), "--no-cache", "--config", str(root / "pyproject.toml")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy_of_the_house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return root


def test_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "breach", "contract"),
    [
        (CORE, "import os", "The core has no I/O, no clock, no chance and no framework"),
        (CORE, "import ray", "The core has no I/O, no clock, no chance and no framework"),
        (CORE, "from control_plane.core import decisions", "Inside the core, rules stand on state"),
        (CORE, "from control_plane import handle", "The control side is built in floors"),
        ("control_plane/agent/loop.py", "from control_plane import server", "Console and agent are clients"),
        ("control_plane/server.py", "from ray_jobs import config", "The control side knows nothing of training"),
        ("control_plane/gateway/routes.py", "import ray", "Storage, handle, server, agent and the gateway's app"),
        ("ui/panels.py", "from control_plane import ray_handle", "The console never meets Ray or torch"),
        ("ray_jobs/appliers.py", "from control_plane import server", "Worker code uses the core, a run's files"),
        ("ray_jobs/collectives.py", "import ray", "Inside a training step nothing calls Ray"),
    ],
)
def test_planted_breach_is_named_by_its_contract(
    copy_of_the_house: Path, file: str, breach: str, contract: str
) -> None:
    victim = copy_of_the_house / file
    sound = victim.read_text(encoding="utf-8")
    victim.write_text(f"{sound}\n{breach}\n", encoding="utf-8")
    try:
        result = lint(copy_of_the_house)
    finally:
        victim.write_text(sound, encoding="utf-8")
    assert result.returncode != 0
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), result.stdout
