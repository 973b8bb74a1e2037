"""What dies comes back: a rank, a rank that is only stopped, the driver, and at last the whole cluster.

One run goes through all of it. That it ends bit for bit as if nothing had happened is shown in `tests/ray_jobs`.
"""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Pause, Resume, SetLearningRate, Stop
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandRepeated, CommandSettled
from tests.ray.cluster import REPOSITORY, Cluster, wait_closed, wait_for, wait_for_step, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

CONFIG = (
    str(REPOSITORY / "configs/gpt2-local.yaml"),
    "training.max_steps=100000",
    "training.eval_strategy='no'",
    "checkpoint.every_steps=10",
)


@pytest.fixture(scope="module")
def run(cluster: Cluster, client: SteerwayClient) -> str:
    run = cluster.submit(*CONFIG)
    wait_for_step(cluster, client, run, 25)
    return run


def pid_of(client: SteerwayClient, run: str, rank: int) -> int:
    return next(place.pid for place in client.snapshot(run).ranks if place.rank == rank)


def wait_recovered(cluster: Cluster, client: SteerwayClient, run: str, losses: int, beyond: int) -> Snapshot:
    """The run has come back from its `losses`-th loss, and is further than it was."""

    def back() -> Snapshot | None:
        try:
            snapshot = client.snapshot(run)
        except SteerwayError:
            return None
        assert not snapshot.closed, f"{snapshot.reason}\n{cluster.logs(run)}"
        recovered = len(snapshot.recoveries) == losses and snapshot.recoveries[-1].over
        return snapshot if recovered and snapshot.step > beyond else None

    return wait_for(f"recovery {losses} of {run}", back)  # type: ignore[no-any-return]


def test_killed_rank_is_replaced_and_commands_hold(cluster: Cluster, client: SteerwayClient, run: str) -> None:
    receipt = client.submit(run, SetLearningRate(value=1.5e-3, schedule="hold"))
    settled = client.wait_settled(run, receipt.uuid, 60).settled
    assert settled is not None
    assert settled.status == "applied"
    before = client.snapshot(run)
    os.kill(pid_of(client, run, 1), signal.SIGKILL)
    after = wait_recovered(cluster, client, run, 1, before.step)
    loss = after.recoveries[-1]
    assert any("killed" in death.reason or "peer" in death.reason for death in loss.deaths), loss.deaths
    assert loss.checkpoint is not None
    assert set(loss.phases_s) == {"detect", "re-form", "load", "first step"}
    assert after.knobs["lr"] == [1.5e-3] * len(after.knobs["lr"])
    if settled.step is not None and loss.resumed_step is not None and loss.resumed_step < settled.step:
        repeated = [e.record for e in whole_journal(client, run) if isinstance(e.record, CommandRepeated)]
        assert [(each.uuid, each.step) for each in repeated] == [(receipt.uuid, settled.step)]


def test_stopped_rank_is_found_and_replaced(cluster: Cluster, client: SteerwayClient, run: str) -> None:
    before = wait_for_step(cluster, client, run, client.snapshot(run).step + 15)
    stopped = pid_of(client, run, 0)
    os.kill(stopped, signal.SIGSTOP)
    after = wait_recovered(cluster, client, run, 2, before.step)
    assert any("was stopped (SIGSTOP)" in death.reason for death in after.recoveries[-1].deaths), after.recoveries[-1]
    wait_for("the end of the stopped process", lambda: not psutil.pid_exists(stopped), 60)


def test_pause_stays_a_pause_and_a_lost_driver_is_resumed(cluster: Cluster, client: SteerwayClient, run: str) -> None:
    paused = client.wait_settled(run, client.submit(run, Pause()).uuid, 60).settled
    assert paused is not None
    at_work = cluster.command("ray_jobs.submit", "--resume", run)
    assert at_work.returncode == 5
    assert "is still active" in at_work.stderr
    drivers = [each for each in cluster.processes() if _is_driver(each, run)]
    assert drivers
    for driver in drivers:
        driver.kill()

    def resumed() -> str | None:
        done = cluster.command("ray_jobs.submit", "--resume", run, "--json")
        return json.loads(done.stdout.splitlines()[-1])["job"] if done.returncode == 0 else None

    assert wait_for("the death of the driver to be known", resumed, 60) == f"{run}-r2"
    generation = client.snapshot(run).generation
    wait_for("a new generation", lambda: client.snapshot(run).generation > generation)
    wait_for("the pause", lambda: client.snapshot(run).phase == "paused")
    assert client.snapshot(run).step == paused.step
    settled = client.wait_settled(run, client.submit(run, Resume()).uuid, 60).settled
    assert settled is not None
    assert settled.step == paused.step
    wait_for_step(cluster, client, run, (paused.step or 0) + 5)


def test_lost_cluster_is_replaced_by_a_new_one(cluster: Cluster, client: SteerwayClient, run: str) -> None:
    before = wait_for_step(cluster, client, run, client.snapshot(run).step + 15)
    down = cluster.command("cluster.local", "down")
    assert down.returncode == 0, down.stderr
    up = cluster.command("cluster.local", "up")
    assert up.returncode == 0, up.stderr
    with cluster.client() as anew:
        done = cluster.command("ray_jobs.submit", "--resume", run, "--json")
        assert done.returncode == 0, done.stderr
        wait_for("a new generation", lambda: anew.snapshot(run).generation > before.generation)
        after = wait_for_step(cluster, anew, run, before.step + 5)
        assert after.knobs["lr"] == [1.5e-3] * len(after.knobs["lr"])
        stop = anew.submit(run, Stop(save=True))
        settled = anew.wait_settled(run, stop.uuid, 60).settled
        assert settled is not None
        assert settled.status == "applied"
        assert wait_closed(anew, run).status == "stopped"
        left = [path.name for path in (cluster.settings.runs_dir / run / "checkpoints").iterdir()]
        assert str((settled.after or {})["checkpoint"]) in left
        outcomes = [e.record for e in whole_journal(anew, run) if isinstance(e.record, CommandSettled)]
        assert [each.status for each in outcomes] == ["applied"] * 4


def _is_driver(process: psutil.Process, run: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "ray_jobs.launch" in words and any(Path(word).name == run for word in words)
