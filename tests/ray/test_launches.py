"""Runs begun through the gateway, on a real cluster: one job, no secret in sight, and an end with a reason."""

import signal
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from control_plane.api.launching import LaunchRequest, ResumeRequest
from control_plane.client import SteerwayClient
from control_plane.core.model.errors import Invalid
from tests.ray.cluster import Cluster, _title, wait_closed, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CLOSED_WITHIN_S = 20.0


def driver_of(cluster: Cluster, run: str) -> psutil.Process:
    """The run's driver, as soon as there is one."""
    folder = str(cluster.settings.runs_dir / run)

    def found() -> psutil.Process | None:
        titles = ((process, _title(process)) for process in cluster.processes())
        drivers = (process for process, title in titles if f"-P -m ray_jobs.launch {folder}" in title)
        # Of the shells around it none has Python as its program.
        return next((process for process in drivers if "python" in process.cmdline()[0]), None)

    return wait_for(f"the driver of {run}", found)  # type: ignore[no-any-return]


def test_launch_is_one_job_and_a_driver_that_dies_at_once_is_a_run_with_a_reason(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text("import time\ntime.sleep(600)\n")
    config = f"name: launched\nseed: 1\nscaling: {{ranks: 1}}\nworkload: {{kind: script, path: {script}}}\n"
    begun = time.monotonic()
    with pytest.raises(Invalid, match=r"no-such\.py, but there is no such file"):
        client.launch(LaunchRequest(config=config.replace("train.py", "no-such.py")))
    refused_s = time.monotonic() - begun

    request = LaunchRequest(config=config, env=("MY_TOKEN",), secrets={"MY_TOKEN": "canary-of-a-launch"}, uuid=uuid4())
    launched = client.launch(request)
    [run] = launched.runs
    assert client.launch(request) == launched
    driver = driver_of(cluster, run.run)
    assert not [title for title in map(_title, cluster.processes()) if "canary" in title]
    assert client.job(run.run).is_alive
    driver.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    snapshot = wait_closed(client, run.run)
    print(f"refused within {refused_s:.1f} s; closed {time.monotonic() - killed:.1f} s after its driver was killed")
    assert time.monotonic() - killed < CLOSED_WITHIN_S
    assert snapshot.status == "failed"
    assert str(snapshot.reason).startswith(f"Ray job {run.job} failed before the run had begun: ")
    assert client.job(run.run).status == "failed"

    resumed = client.resume(run.run, ResumeRequest())
    assert resumed.runs[0].job == f"{run.run}-r2"
    driver_of(cluster, run.run).send_signal(signal.SIGKILL)
    wait_for("the end of the second job", lambda: not client.job(run.run).is_alive)
    assert "canary" not in "".join(
        path.read_text() for path in (cluster.settings.runs_dir / run.run / "logs").iterdir()
    )
