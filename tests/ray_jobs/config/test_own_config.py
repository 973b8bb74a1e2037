"""No job is started from a config that this installation neither made nor trusts, by whatever road."""

import json
import shutil
import timeit
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from control_plane.core.model.errors import Conflict, Refused
from control_plane.storage.checkpoint.store import SigningKey, read_manifest
from control_plane.storage.journal.export import export, import_run, read_export
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import sign_config, signed_config
from ray_jobs import launch, submit
from ray_jobs.config.own_config import check_own
from ray_jobs.config.run_config import load
from ray_jobs.driver import fork_and_replay
from tests.ray.cluster import REPOSITORY, free_ports
from tests.storage.checkpoint.kin import lay
from tests.storage.checkpoint.saved import name_of

ESCAPE = "\x1b[2K\u202e"
EVIL = f"""name: shared
seed: 1
workload:
  kind: script
  path: {timeit.__file__}
  args: ["-n1", "-r1", "import os; os.system('id > {ESCAPE.encode("unicode_escape").decode()} PWNED')"]
"""
CHECKPOINT = name_of(3)
ROLLBACK = json.dumps(
    {"uuid": "0" * 32, "author": "ann", "intent": {"kind": "rollback", "checkpoint": CHECKPOINT}},
)
ROADS = {
    "resume": lambda: submit.main(["--resume", "shared"]),
    "rollback into a new job": lambda: submit.main(["--resume", "shared", "--back", ROLLBACK]),
    "fork": lambda: fork_and_replay.main(["fork", "shared", CHECKPOINT]),
    "replay": lambda: fork_and_replay.main(["replay", "shared"]),
}
TRUSTING = {
    "resume": lambda: submit.main(["--resume", "shared", "--trust"]),
    "rollback into a new job": lambda: submit.main(["--resume", "shared", "--trust", "--back", ROLLBACK]),
    "fork": lambda: fork_and_replay.main(["fork", "shared", CHECKPOINT, "--trust"]),
    "replay": lambda: fork_and_replay.main(["replay", "shared", "--trust"]),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation without a cluster: a job that is submitted is not taken, and says so."""
    home = tmp_path / "home"
    monkeypatch.setenv("STEERWAY_HOME", str(home))
    monkeypatch.setenv("STEERWAY_DASHBOARD_PORT", str(free_ports(1)[0]))
    return home


def theirs(tmp_path: Path) -> RunFiles:
    """A run with a checkpoint, in another installation."""
    return lay(tmp_path / "theirs", "shared", 3, config=EVIL, config_sha256=sha256(EVIL.encode()).hexdigest())


def imported(tmp_path: Path, home: Path) -> RunFiles:
    export(theirs(tmp_path), tmp_path / "shared.zip")
    files = import_run(read_export(tmp_path / "shared.zip"), home / "runs")
    shutil.copytree(tmp_path / "theirs/runs/shared/checkpoints", files.checkpoints)
    return files


def copied(tmp_path: Path, home: Path) -> RunFiles:
    return RunFiles(shutil.copytree(theirs(tmp_path).root, home / "runs" / "shared"))


def given_another_config(tmp_path: Path, home: Path) -> RunFiles:
    files = lay(home, "shared", 3)
    files.config.write_text(EVIL)
    return files


def given_another_id(tmp_path: Path, home: Path) -> RunFiles:
    files = lay(home, "other", 3, config=EVIL)
    return RunFiles(files.root.rename(home / "runs" / "shared"))


def of_a_lost_key(tmp_path: Path, home: Path) -> RunFiles:
    files = lay(home, "shared", 3, config=EVIL)
    files.signing_key.unlink()
    return files


def not_signed(tmp_path: Path, home: Path) -> RunFiles:
    files = lay(home, "shared", 3, config=EVIL)
    files.config_signature.unlink()
    return files


FOREIGN: dict[Callable[[Path, Path], RunFiles], str] = {
    imported: "was imported from an export of run shared (",
    copied: "was created by another installation (key ",
    given_another_config: "has another config or another id",
    given_another_id: "has another config or another id",
    of_a_lost_key: "was created by another installation (key ",
    not_signed: "its config is not signed",
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(("arrive", "whence"), FOREIGN.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_run_of_elsewhere_starts_nothing_by_any_road_and_its_script_is_shown(
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    arrive: Callable[[Path, Path], RunFiles],
    whence: str,
    road: str,
) -> None:
    files = arrive(tmp_path, home)
    before = sorted(path.name for path in files.root.iterdir())
    assert ROADS[road]() == Refused.exit_code
    told = capsys.readouterr().err
    assert whence in told
    assert f"the script {timeit.__file__} with the arguments -n1 -r1 'import os; os.system(" in told
    assert "--trust" in told
    assert all(char.isprintable() for char in told.rstrip("\n"))
    assert sorted(path.name for path in files.root.iterdir()) == before
    assert [path.name for path in (home / "runs").iterdir()] == ["shared"]


@pytest.mark.parametrize("road", TRUSTING)
def test_run_of_elsewhere_that_is_trusted_is_ones_own_from_then_on(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], road: str
) -> None:
    files = imported(tmp_path, home)
    for attempt in (TRUSTING, ROADS):  # somebody who has trusted it once is not asked again
        assert attempt[road]() == (Conflict.exit_code if road == "replay" else 1)
        told = capsys.readouterr().err
        assert ("never started training" if road == "replay" else "cannot submit the job to a Ray cluster") in told
    assert signed_config(files) == EVIL
    assert read_manifest(files.checkpoints / CHECKPOINT, SigningKey.of_installation(files.signing_key))


def test_driver_starts_nothing_of_elsewhere_either(tmp_path: Path, home: Path) -> None:
    with pytest.raises(Refused, match="timeit"):
        launch.main(imported(tmp_path, home).root)


def test_run_that_is_submitted_here_is_ones_own(home: Path) -> None:
    config = load(str(REPOSITORY / "configs" / "gpt2-local.yaml"))
    files = submit.prepare(config, home / "runs", "mine")
    assert signed_config(files) == config.to_yaml()


def test_signature_of_a_config_is_no_signature_of_anything_else(tmp_path: Path) -> None:
    one, other = (lay(tmp_path, run, config=EVIL) for run in ("one", "other"))
    other.config_signature.write_bytes(one.config_signature.read_bytes())
    assert (signed_config(one), signed_config(other)) == (EVIL, None)
    other.config_signature.unlink()
    other.config_signature.symlink_to(one.config_signature)
    assert signed_config(other) is None
    sign_config(other)
    assert signed_config(other) == EVIL
    assert not other.config_signature.is_symlink()


def test_code_bundle_and_packages_of_a_foreign_config_are_named(tmp_path: Path) -> None:
    more = f"bundle: {'ab' * 32}\nruntime_env:\n  pip: [evil-package]\n  py_modules: ['s3://b/m.zip']\n"
    text = "name: shared\nseed: 1\nworkload: {kind: script, path: train.py}\n" + more
    files = lay(tmp_path, "shared", 3, config=text)
    files.config_signature.unlink(missing_ok=True)
    reason = (
        r"the script train\.py of the code bundle abababababababab\.\.\. with no arguments, and would install "
        r"evil-package s3://b/m\.zip; if you know"
    )
    with pytest.raises(Refused, match=reason):
        check_own(files)
