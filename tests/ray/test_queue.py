"""Two users, two quotas, and three runs on room for two: queue, start, usage and deletion on a real cluster.

The same without a cluster: `tests/ray_jobs/service/test_starts.py`, `tests/gateway/queueing`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from control_plane.api.launching import LaunchedRun, LaunchRequest
from control_plane.api.messages import RunSummary
from control_plane.client import SteerwayClient
from control_plane.core.model.errors import Conflict, NotAllowed, NotFound, Refused
from control_plane.core.model.intents import Pause
from control_plane.gateway.tokens import add_token, revoke_token
from control_plane.runs.deletion import Deletions
from control_plane.runs.quotas import change_quota, forget_quota
from tests.ray.cluster import Cluster, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPT = """
import sys, time
from pathlib import Path
(Path("/") / sys.argv[1]).touch()
while Path(sys.argv[2]).exists():
    time.sleep(0.1)
"""
CONFIG = """
name: {name}
seed: 1
scaling: {{ranks: {ranks}, cpus_per_rank: {cpus}, use_gpu: false}}
workload: {{kind: script, path: {script}, args: [{begun}, {hold}]}}
"""


class Users:
    """Owners of tokens, and runs that last until a test lets them end."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self._open = cluster, folder, ExitStack()
        self.script = folder / "hold.py"
        self.script.write_text(SCRIPT)
        self.cpus = sum(float(node["cpus"]) for node in cluster.nodes().values() if node["cpus"])

    def user(self, name: str, **quota: float) -> SteerwayClient:
        token = add_token(self.cluster.settings, name, "operator")
        change_quota(self.cluster.settings.home, name, dict(quota))
        self._open.callback(revoke_token, self.cluster.settings, name)
        self._open.callback(forget_quota, self.cluster.settings.home, name)
        return self._open.enter_context(SteerwayClient(self.cluster.settings.gateway_url, token, timeout_s=30))

    def launch(self, user: SteerwayClient, name: str, cpus: float, ranks: int = 1) -> LaunchedRun:
        (self.folder / f"{name}.hold").touch()
        text = CONFIG.format(
            name=name,
            ranks=ranks,
            cpus=cpus,
            script=self.script,
            begun=self.folder / f"{name}.begun",
            hold=self.folder / f"{name}.hold",
        )
        return user.launch(LaunchRequest(config=text)).runs[0]

    def has_begun(self, name: str) -> bool:
        return (self.folder / f"{name}.begun").exists()

    def let_end(self, name: str) -> None:
        (self.folder / f"{name}.hold").unlink(missing_ok=True)

    def close(self) -> None:
        for hold in self.folder.glob("*.hold"):
            hold.unlink()
        self._open.close()


@pytest.fixture
def users(cluster: Cluster, tmp_path: Path) -> Iterator[Users]:
    users = Users(cluster, tmp_path)
    yield users
    users.close()


def line(client: SteerwayClient, run: str) -> RunSummary:
    return next(summary for summary in client.runs() if summary.run == run)


def ended(client: SteerwayClient, run: str) -> Callable[[], bool]:
    return lambda: line(client, run).status == "finished"


def test_two_users_with_quotas_and_three_runs_on_room_for_two(cluster: Cluster, users: Users) -> None:
    ana, ben = users.user("ana", runs=1), users.user("ben", runs=2)
    half = users.cpus / 2
    with pytest.raises(Refused, match=f"needs {8 * half:g} CPUs"):
        users.launch(ana, "huge", half, ranks=8)
    one, two = users.launch(ana, "one", half), users.launch(ben, "two", half)
    over_quota, no_room = users.launch(ana, "three", half), users.launch(ben, "four", half)
    assert (one.job, two.job) == (one.run, two.run)
    assert over_quota.queued_because == "quota of ana: 1 of 1 runs"
    assert no_room.queued_because == f"needs {half:g} CPU{'' if half == 1 else 's'}, 0 free"
    wait_for("the start of both", lambda: users.has_begun("one") and users.has_begun("two"))

    shown = line(ana, over_quota.run)
    assert (shown.status, shown.owner, shown.reason) == ("queued", "ana", "waits: quota of ana: 1 of 1 runs")
    assert ben.snapshot(no_room.run).status == "queued"
    listed = json.loads(cluster.command("control_plane.cli.main", "queue", "--json").stdout)
    assert [(each["run"], each["owner"]) for each in listed["waiting"]] == [
        (over_quota.run, "ana"),
        (no_room.run, "ben"),
    ]
    with pytest.raises(Conflict, match="in the queue"):
        ana.submit(over_quota.run, Pause())

    with pytest.raises(NotAllowed, match="belongs to ben"):
        ana.delete(no_room.run)
    with pytest.raises(Conflict, match="steer stop"):
        ana.delete(one.run)
    assert ben.delete(no_room.run).owner == "ben"
    with pytest.raises(NotFound):
        ben.snapshot(no_room.run)

    users.let_end("one")
    wait_for("the end of one", ended(ana, one.run))
    wait_for("the start of three", lambda: users.has_begun("three"))
    assert not users.has_begun("four")
    users.let_end("two")
    users.let_end("three")
    wait_for("the end of all", lambda: ended(ana, two.run)() and ended(ana, over_quota.run)())

    usage = ana.usage()
    own = next(run for run in usage.runs if run.run == one.run)
    assert own.journal > 0
    assert own.logs > 0
    assert {owner.owner: owner.runs for owner in usage.owners if owner.owner in ("ana", "ben")} == {"ana": 2, "ben": 1}
    wait_for("the deletion", lambda: deleted(ana, one.run))
    assert one.run not in {run.run for run in ana.runs()}
    wait_for("the audit line", lambda: len(lines_of(cluster, "ana")) == 1)
    assert [(each["run"], each["by"]) for each in lines_of(cluster, "ben")] == [(no_room.run, "ben")]


def deleted(client: SteerwayClient, run: str) -> bool:
    """Delete a run whose job may still be ending."""
    try:
        client.delete(run)
    except Conflict:
        return False
    return True


def lines_of(cluster: Cluster, owner: str) -> list[dict[str, object]]:
    return [each for each in Deletions(cluster.settings.home).audit() if each["by"] == owner]
