"""Import contracts hold, and a planted breach of each is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
MODEL, RULES = "control_plane/core/model/state.py", "control_plane/core/rules/decisions.py"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the packages in this folder."""
    command = [str(LINT_IMPORTS), "--no-cache", "--config", str(root / "pyproject.toml")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy_of_the_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
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
        (MODEL, "import os", "The core has no I/O, no clock, no chance and no framework"),
        (RULES, "import ray", "The core has no I/O, no clock, no chance and no framework"),
        (MODEL, "from control_plane.core.rules import decisions", "Layers of the core"),
        ("control_plane/core/boundary.py", "from control_plane.core.rules import decisions", "Layers of the core"),
        (
            "control_plane/core/health/signs.py",
            "from control_plane.core.health import monitor",
            "Layers of the core's health",
        ),
        ("control_plane/core/health/monitor.py", "import numpy", "Health needs the core's model only"),
        (
            "control_plane/core/health/windows.py",
            "from control_plane.core.rules import decisions",
            "Health needs the core's model only",
        ),
        ("control_plane/core/model/health.py", "from control_plane.core.health import monitor", "Layers of the core"),
        (
            "control_plane/core/model/records.py",
            "from control_plane.core.model import state",
            "Layers of the core's model",
        ),
        (RULES, "from control_plane.api import messages", "Layers of the control plane"),
        ("control_plane/storage/layout.py", "from control_plane.server import views", "Layers of the control plane"),
        ("control_plane/agent/loop.py", "from control_plane.server import views", "Console and agent are clients"),
        ("control_plane/server/views.py", "from ray_jobs import train", "The control plane knows nothing of training"),
        ("control_plane/gateway/routes.py", "import ray", "Only the actor and the gateway's deployment know Ray"),
        ("control_plane/storage/layout.py", "import torch", "Only the actor and the gateway's deployment know Ray"),
        ("ui/charts/layout.py", "from control_plane.actor import remote", "The console imports neither Ray nor torch"),
        ("ray_jobs/steering/appliers.py", "from control_plane.server import views", "Rank code uses the core"),
        ("control_plane/client/connection.py", "import steerway", "The public face is for users"),
        ("ray_jobs/steering/knobs.py", "from ray_jobs.rank import session", "Layers of the training side"),
        ("ray_jobs/process/collectives.py", "import ray", "Inside a training step nothing calls Ray"),
        ("ray_jobs/steering/schedule.py", "import transformers", "Of what runs in a training, only the Hugging Face"),
    ],
)
def test_planted_breach_is_named_by_its_contract(
    copy_of_the_packages: Path, file: str, breach: str, contract: str
) -> None:
    victim = copy_of_the_packages / file
    sound = victim.read_text(encoding="utf-8")
    victim.write_text(f"{sound}\n{breach}\n", encoding="utf-8")
    try:
        result = lint(copy_of_the_packages)
    finally:
        victim.write_text(sound, encoding="utf-8")
    assert result.returncode != 0
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), result.stdout
