"""Sections `runtime_env` and `bundle`: what is accepted, and paths of a config whose code was sent."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Invalid, Refused
from control_plane.storage.code.unpacked import unpack_bundle
from control_plane.storage.layout import RunFiles
from ray_jobs.config.bundled_paths import check_code, located
from ray_jobs.config.run_config import RunConfig, load, with_overrides
from ray_jobs.config.sections import ScriptWorkload
from tests.storage.code.bundles import sha256_of, zip_of
from tests.storage.code.test_unpacked import run_of, stored

SCRIPT = "name: mine\nseed: 1\nworkload: {kind: script, path: train.py}\n"
DATA = zip_of(("train.py", b""), ("other.py", b""), ("_modules/mine/__init__.py", b""))
BUNDLE = f"bundle: {sha256_of(DATA)}\n"


def config(text: str) -> RunConfig:
    """A config as it stands in a run's folder."""
    return RunConfig.from_yaml(SCRIPT + text)


def test_packages_and_modules_are_kept() -> None:
    text = """
runtime_env:
  pip: ["einops==0.8.2", 'a[b]>=1; python_version > "3"', "m @ https://host/m-1.whl"]
  py_modules: [/shared/mine, "s3://bucket/m.zip"]
"""
    kept = config(text)
    assert RunConfig.from_yaml(kept.to_yaml()) == kept
    assert kept.runtime_env.pip[0] == "einops==0.8.2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pip: ['--index-url https://evil']", "is not a requirement"),
        ("pip: ['-r requirements.txt']", "is not a requirement"),
        ("pip: ['./mine']", "is not a requirement"),
        ("pip: ['einops; rm -rf /']", "is not a requirement"),
        ("pip: ['Ray==2.0']", "cannot be chosen by a run"),
        ("pip: [steerway]", "cannot be chosen by a run"),
        ("pip: ['m @ https://user:word@host/m.whl']", "may hold a password"),
        ("pip: ['m @ http://host/m.whl']", "is not an address of https, s3 or gs"),
        ("pip: ['m @ file:///etc/m.whl']", "is not an address of"),
        ("pip: einops", "must be a list"),
        ("pip: [1]", "must be text"),
        ("py_modules: ['']", "is empty"),
        ("py_modules: ['local:///etc']", "is not an address of"),
        ("py_modules: ['https://host/page.html']", "does not end with .zip or .whl"),
        ("py_modules: ['s3://bucket/m.zip?token=1']", "may hold a password"),
        ("env_vars: {A: b}", "not a known key"),
        ("working_dir: /etc", "not a known key"),
    ],
)
def test_other_packages_and_modules_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        config(f"runtime_env: {{{text}}}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("bundle: abc", "64 hexadecimal digits"),
        (BUNDLE + "data: {tail: keep}\nruntime_env: {py_modules: [../mine]}", "leads out of the code bundle"),
    ],
)
def test_malformed_bundles_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        config(text)


def test_a_user_does_not_set_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "config.yaml").write_text(SCRIPT + BUNDLE)
    with pytest.raises(Invalid, match="bundle cannot be set"):
        load(tmp_path / "config.yaml")
    with pytest.raises(Invalid, match="bundle cannot be set"):
        with_overrides(config(BUNDLE), ["bundle=null"])


def test_without_a_bundle_modules_are_relative_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "config.yaml").write_text(SCRIPT + "runtime_env: {py_modules: [mine, 's3://b/m.zip']}\n")
    loaded = load(tmp_path / "config.yaml")
    assert loaded.runtime_env.py_modules == [str(tmp_path / "mine"), "s3://b/m.zip"]
    assert located(loaded, RunFiles(tmp_path / "run")) == loaded


def test_with_a_bundle_paths_are_inside_of_it_in_whichever_run(tmp_path: Path) -> None:
    sent = with_overrides(config(BUNDLE + "runtime_env: {py_modules: [_modules/mine]}"), ["workload.path=other.py"])
    for name in ("parent", "fork"):
        files = RunFiles(tmp_path / name)
        there = located(sent, files)
        assert isinstance(there.workload, ScriptWorkload)
        assert there.workload.path == str(tmp_path / name / "code" / "other.py")
        assert there.runtime_env.py_modules == [str(tmp_path / name / "code" / "_modules" / "mine")]
    absolute = located(with_overrides(sent, ["workload.path=/shared/train.py"]), files)
    assert isinstance(absolute.workload, ScriptWorkload)
    assert absolute.workload.path == "/shared/train.py"


def test_files_that_the_bundle_lacks_are_named_before_a_job_is_submitted(tmp_path: Path) -> None:
    files = run_of(tmp_path)
    unpack_bundle(tmp_path, stored(tmp_path, DATA), files)
    check_code(config(BUNDLE), files, tmp_path)
    with pytest.raises(Invalid, match=r"workload\.path is missing\.py, but the code bundle has no such file"):
        check_code(with_overrides(config(BUNDLE), ["workload.path=missing.py"]), files, tmp_path)
    files.bundle.unlink()
    files.bundle.write_bytes(DATA[:-1])
    with pytest.raises(Refused, match="is not the code that run run-1 was submitted with"):
        check_code(config(BUNDLE), files, tmp_path)
