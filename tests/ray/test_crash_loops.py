"""Scripts that fail again and again, on a real cluster: in the same way, and each time in another one."""

import re
from pathlib import Path

import pytest

from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from tests.ray.cluster import REPOSITORY, Cluster, wait_closed, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import ctypes, os, signal, sys
from pathlib import Path

import torch

from ray_jobs.loop.session import TrainingSession

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
session = TrainingSession(model, optimizer, total_steps=1000)
starts, rank = Path("starts"), int(os.environ["RANK"])
if rank == 0:
    starts.write_text((starts.read_text() if starts.exists() else "") + "x")


def load(step):
    if step == 7 and rank == 0:
        if "same" in sys.argv:
            raise ValueError(f"sample {id(model)} is broken")
        started = len(starts.read_text())
        if started % 3 == 1:
            ctypes.string_at(0)
        if started % 3 == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError(started)
    return torch.ones(2, 4)


with session:
    for step in session.steps():
        loss = model(load(step)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.step({"loss": loss.item()})
"""


def submit(cluster: Cluster, folder: Path, how: str) -> str:
    script = folder / f"{how}.py"
    script.write_text(SCRIPT)
    words = (f"workload.path={script}", f"workload.args=[{how}]", "checkpoint.every_steps=0")
    return cluster.submit(str(REPOSITORY / "configs/own-script.yaml"), *words)


def test_same_failure_three_times_fails_the_run_with_its_attempts(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    run = submit(cluster, tmp_path, "same")
    snapshot = wait_closed(client, run)
    reason = str(snapshot.reason)
    assert "the trainers failed 3 times in a row in the same way, at step " in reason, reason
    assert re.search(r"ValueError at same.py:\d+ in load \(ValueError: sample \d+ is broken\)", reason), reason
    assert [each.generation for each in snapshot.attempts] == [1, 2, 3]
    assert len({each.reached_step for each in snapshot.attempts}) == 1
    told = cluster.command("control_plane.cli.main", "status", run)
    assert told.returncode == 7
    assert told.stdout.count("attempt ") == 3


def test_other_failures_are_waited_for_longer_and_longer_until_somebody_stops_the_run(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    run = submit(cluster, tmp_path, "other")

    def waits() -> Snapshot | None:
        snapshot = client.snapshot(run)
        assert not snapshot.closed, snapshot.reason
        return snapshot if snapshot.restarting and snapshot.restarting.left_s > 3 else None

    snapshot = wait_for("a wait of more than 3 s", waits, 600)
    assert snapshot.restarting is not None
    assert (snapshot.restarting.alert, snapshot.ranks) == (True, ())
    causes = [each.cause for each in snapshot.attempts]
    assert re.match(r"signal SIGSEGV at other.py:\d+ in load", causes[0]), causes
    assert causes[1].startswith("killed"), causes
    assert re.match(r"KeyError at other.py:\d+ in load", causes[2]), causes
    told = cluster.command("control_plane.cli.main", "status", run)
    assert "starting again in " in told.stdout
    assert "the run fails again and again" in told.stdout
    done = cluster.command("control_plane.cli.main", "stop", run, "-y")
    assert done.returncode == 0, done.stderr
    # At once if it still waited, and by its trainers if they had been started meanwhile.
    assert wait_closed(client, run).status == "stopped"
