"""What the GPU check needs is named without importing it."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.gpu import requirements

ROOT = Path(__file__).resolve().parents[2]


def test_here_nothing_is_missing_and_all_are_the_tested_versions() -> None:
    assert requirements.reasons_not_to_run() == []
    assert requirements.warnings() == []
    assert set(requirements.versions()) == set(requirements.MODULES)


def test_every_missing_package_is_named_with_the_tested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda module: None)
    reasons = requirements.reasons_not_to_run()
    assert [reason.split()[0] for reason in reasons] == list(requirements.MODULES)
    tested = requirements.pins()
    assert all(f"{reason.split()[0]}=={tested[reason.split()[0]]}" in reason for reason in reasons)


def test_another_version_is_told_and_another_build_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = requirements.pins()
    installed = {"transformers": "5.1", "torch": f"{tested['torch']}+cu130", "xxhash": tested["xxhash"]}

    def version(package: str) -> str:
        if package in installed:
            return installed[package]
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    assert requirements.warnings() == [f"transformers 5.1 is installed, {tested['transformers']} was tested"]
    assert requirements.versions() == installed


def test_it_answers_on_a_python_that_has_no_packages() -> None:
    """-S: no site-packages, as on a bare machine; nothing that is looked for is imported."""
    code = (
        "import sys; from benchmarks.gpu import requirements as r; "
        "assert len(r.reasons_not_to_run()) == len(r.MODULES), r.reasons_not_to_run(); "
        "assert r.versions() == {} and r.warnings() == [] and not set(r.MODULES.values()) & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
