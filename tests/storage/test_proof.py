"""Storage proof of a run's start: another folder, another key and a read-only mount are refused, with node and path."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from control_plane.core.model.errors import Refused
from control_plane.storage.checkpoint.signing import SigningKey
from control_plane.storage.file_systems import FileSystem, assess, file_system_of
from control_plane.storage.proof import PROOF, StorageProof, check_proof, machine_name, write_proof
from tests.architecture.tree import ROOT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "runs" / "r").mkdir(parents=True, mode=0o700)
    SigningKey.of_installation(home / "checkpoint-key")
    return home


def proof_in(home: Path) -> StorageProof:
    return write_proof(home / "runs" / "r", home / "checkpoint-key")


def check(proof: StorageProof, home: Path) -> None:
    check_proof(proof, home / "runs" / "r", home / "checkpoint-key")


def test_the_same_folder_and_key_pass_in_milliseconds_and_leave_one_file(home: Path) -> None:
    proof_in(home)
    proof = proof_in(home)
    began_s = time.perf_counter()
    for _ in range(20):
        check(proof, home)
    assert (time.perf_counter() - began_s) / 20 < 0.05
    assert [path.name for path in (home / "runs" / "r").iterdir()] == [f"{PROOF}{proof.nonce}"]


def test_another_machines_own_folder_is_refused_with_node_and_path(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(home, other)
    proof = proof_in(home)
    with pytest.raises(Refused, match="finds another folder") as refusal:
        check(proof, other)
    assert machine_name() in refusal.value.reason
    assert str(other / "runs" / "r") in refusal.value.reason
    shutil.rmtree(other / "runs")
    with pytest.raises(Refused, match="has no such folder"):
        check(proof, other)


def test_another_signing_key_is_refused_and_none_is_created(home: Path) -> None:
    proof = proof_in(home)
    key = home / "checkpoint-key"
    key.rename(home / "old-key")
    with pytest.raises(Refused, match=r"has no signing key at .*checkpoint-key"):
        check(proof, home)
    assert not key.exists()
    SigningKey.of_installation(key)
    with pytest.raises(Refused, match="another signing key") as refusal:
        check(proof, home)
    assert proof.key in refusal.value.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting requires root")
def test_a_read_only_mount_is_refused(home: Path) -> None:
    proof = proof_in(home)
    program = (
        "import sys; from pathlib import Path\n"
        "from control_plane.storage.proof import StorageProof, check_proof\n"
        "home = Path(sys.argv[1])\n"
        "check_proof(StorageProof.model_validate_json(sys.argv[2]), home / 'runs/r', home / 'checkpoint-key')\n"
    )
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            mount,
            str(home / "runs"),
            sys.executable,
            "-c",
            program,
            str(home),
            proof.model_dump_json(),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert f"cannot write to {home / 'runs' / 'r'}: Read-only file system" in done.stderr


def test_a_folder_that_cannot_be_written_has_no_proof(home: Path) -> None:
    shutil.rmtree(home / "runs" / "r")
    with pytest.raises(Refused, match="cannot write to"):
        proof_in(home)


MOUNTS = """\
/dev/vda1 / ext4 rw,relatime 0 0
server:/export /net/my\\040home nfs4 rw,vers=4.2,hard 0 0
old:/export /net/old nfs rw,vers=3,hard,nolock 0 0
nas:/x /net/soft nfs rw,vers=4.1,soft 0 0
//nas/x /net/cifs cifs rw,nobrl 0 0
bucket /net/bucket fuse.s3fs rw 0 0
tmpfs /net/memory tmpfs rw 0 0
/dev/vdb1 /net/covered ext4 rw 0 0
server:/b /net/covered nfs4 rw,hard 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "machines", "level", "reason"),
    [
        ("/net/my home/runs", "nfs4", 3, "ok", ""),
        ("/net/old/runs", "nfs", 3, "failed", "nolock"),
        ("/net/soft", "nfs", 3, "warning", "soft"),
        ("/net/cifs", "cifs", 3, "failed", "nobrl"),
        ("/net/bucket/runs", "fuse.s3fs", 1, "failed", "object|rename"),
        ("/net/memory", "tmpfs", 1, "warning", "in memory"),
        ("/srv/runs", "ext4", 1, "ok", ""),
        ("/srv/runs", "ext4", 3, "warning", "one machine"),
        ("/net/covered/x", "nfs4", 3, "ok", ""),
    ],
)
def test_file_systems_are_recognised_and_unsafe_ones_named(
    tmp_path: Path, path: str, kind: str, machines: int, level: str, reason: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    file_system = file_system_of(Path(path), mounts)
    assert file_system.kind == kind
    assert assess(file_system, machines)[0] == level
    assert re.search(reason, assess(file_system, machines)[1])


def test_this_machines_own_file_system_is_found(tmp_path: Path) -> None:
    assert file_system_of(tmp_path).kind != "unknown"
    assert assess(FileSystem("overlay", "overlay", Path("/")), 1)[0] == "warning"
