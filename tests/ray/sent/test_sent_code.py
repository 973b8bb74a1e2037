"""A run whose code was sent survives the head and the loss of its unpacked code, and continues in a fork."""

import shutil
from pathlib import Path

import pytest

from control_plane.api.launching import ForkRequest, ResumeRequest
from control_plane.core.model.commands import Stop
from control_plane.core.model.errors import Refused
from control_plane.storage.layout import RunFiles
from tests.ray.cluster import running, wait_closed, wait_for, wait_for_step
from tests.ray.sent.project import launch, write_project
from tests.storage.code.bundles import zip_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_sent_code_survives_the_head_and_its_own_loss_and_goes_on_in_a_fork(tmp_path: Path) -> None:
    write_project(tmp_path / "laptop")
    with running(tmp_path / "home") as cluster:
        with cluster.client() as client:
            run = launch(client, tmp_path / "laptop", 3000)
            step = wait_for_step(cluster, client, run, 60).step
        shutil.rmtree(tmp_path / "laptop")
        down = cluster.command("cluster.local", "down")
        assert down.returncode == 0, down.stderr
        files = RunFiles(cluster.settings.runs_dir / run)
        shutil.rmtree(files.code)
        shutil.rmtree(cluster.settings.home / "bundles")
        up = cluster.command("cluster.local", "up")
        assert up.returncode == 0, up.stderr
        with cluster.client() as client:
            before = client.snapshot(run).generation
            client.resume(run, ResumeRequest())
            wait_for("a new generation", lambda: client.snapshot(run).generation > before)
            wait_for_step(cluster, client, run, step + 5)
            assert (files.code / "data" / "numbers.csv").read_text() == "1,2,3"
            client.submit(run, Stop())
            wait_closed(client, run)
            checkpoint = sorted(path.name for path in files.checkpoints.iterdir())[0]
            signed = files.bundle.read_bytes()
            files.bundle.unlink()
            files.bundle.write_bytes(zip_of(("train.py", b"open('evil', 'w')")))
            with pytest.raises(Refused, match="is not the code that run"):
                client.resume(run, ResumeRequest())
            files.bundle.write_bytes(signed)
            fork = client.fork(run, ForkRequest(checkpoint=checkpoint)).runs[0].run
            shutil.move(files.root, tmp_path / "away")
            wait_for_step(cluster, client, fork, 65)
            of_fork = RunFiles(cluster.settings.runs_dir / fork)
            assert str(of_fork.code / "cluster.py") in (of_fork.work / "seen.txt").read_text()
            client.submit(fork, Stop())
            assert wait_closed(client, fork).status == "stopped"
