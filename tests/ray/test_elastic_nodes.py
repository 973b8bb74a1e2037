"""Nodes come and go under an elastic run: fewer ranks, more ranks, and a checkpoint before a node is taken away."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.record import read_record
from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import SetLearningRate, Stop
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CheckpointCommitted, CommandAccepted, GenerationStarted
from tests.ray.cluster import REPOSITORY, Cluster, running, wait_closed, wait_for, wait_for_step, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

RUN_WITHIN_S = 400.0
"""Four ranks on two cores take their time."""

DRAINED_WITHIN_S = 120

GLOBAL_BATCH = 24


def submit(cluster: Cluster, *settings: str) -> str:
    return cluster.submit(
        str(REPOSITORY / "configs/gpt2-local.yaml"),
        "training.max_steps=100000",
        "training.eval_strategy='no'",
        "checkpoint.every_steps=10",
        *settings,
    )


def wait_for_ranks(client: SteerwayClient, cluster: Cluster, run: str, ranks: int, beyond: int) -> Snapshot:
    """The run trains on so many ranks, and is further than it was."""

    def there() -> Snapshot | None:
        try:
            snapshot = client.snapshot(run)
        except SteerwayError:
            return None
        assert not snapshot.closed, f"{snapshot.reason}\n{cluster.logs(run)}"
        trains = snapshot.status == "running" and len(snapshot.ranks) == ranks and snapshot.step > beyond
        return snapshot if trains else None

    return wait_for(f"{ranks} ranks of {run}", there, RUN_WITHIN_S)  # type: ignore[no-any-return]


def stop(client: SteerwayClient, run: str) -> None:
    settled = client.wait_settled(run, client.submit(run, Stop(save=True)).uuid, 120).settled
    assert settled is not None
    assert settled.status == "applied"
    assert wait_closed(client, run).status == "stopped"


def busy_node(client: SteerwayClient, run: str) -> str:
    return sorted({place.node for place in client.snapshot(run).ranks})[-1]


def test_run_goes_on_with_the_ranks_that_are_left_and_takes_new_ones(tmp_path: Path) -> None:
    with running(tmp_path / "home", nodes=3) as cluster, cluster.client() as client:
        each = cluster.nodes()["node-2"]["cpus"]
        few, many = int(each), 2 * int(each)
        # Micro-batches of 2: the global batch of 24 can be shared by up to 12 ranks that divide it.
        run = submit(
            cluster,
            f"scaling.ranks={many}",
            f"scaling.min_ranks={few}",
            f"scaling.max_ranks={many}",
            "training.per_device_train_batch_size=2",
            f"training.gradient_accumulation_steps={GLOBAL_BATCH // 2 // many}",
        )
        before = wait_for_ranks(client, cluster, run, many, 25)
        client.wait_settled(run, client.submit(run, SetLearningRate(value=1.5e-3, schedule="hold")).uuid, 60)
        lost = busy_node(client, run)
        killed = cluster.command("cluster.chaos", "kill-node", lost)
        assert killed.returncode == 0, killed.stderr
        fewer = wait_for_ranks(client, cluster, run, few, before.step + 25)
        assert lost not in {place.node for place in fewer.ranks}
        assert fewer.knobs["lr"] == [1.5e-3] * len(fewer.knobs["lr"])

        joined = cluster.command("cluster.local", "add-node")
        assert joined.returncode == 0, joined.stderr
        more = wait_for_ranks(client, cluster, run, many, fewer.step + 15)
        assert more.knobs["lr"] == [1.5e-3] * len(more.knobs["lr"])
        stop(client, run)

        records = [entry.record for entry in whole_journal(client, run)]
        starts = [record for record in records if isinstance(record, GenerationStarted)]
        sizes = [start.world_size for start in starts]
        assert (sizes[0], sizes[-1], few in sizes) == (many, many, True)
        switches = [now for was, now in itertools.pairwise(starts) if was.world_size != now.world_size]
        assert len(switches) >= 2
        assert all((start.checkpoint or "").endswith("-universal") for start in switches), switches
        assert not [start for start in starts if start.refused], starts


def test_drained_node_is_left_with_a_checkpoint_before_its_deadline(tmp_path: Path) -> None:
    with running(tmp_path / "home", nodes=3) as cluster, cluster.client() as client:
        run = submit(cluster, "checkpoint.every_steps=0")
        before = wait_for_step(cluster, client, run, 25)
        node = busy_node(client, run)
        drained = drain(cluster, cluster.nodes()[node]["node_id"], DRAINED_WITHIN_S)
        assert drained.returncode == 0, drained.stdout + drained.stderr

        def asked() -> list[CheckpointCommitted]:
            return [
                entry.record
                for entry in whole_journal(client, run)
                if isinstance(entry.record, CheckpointCommitted) and entry.record.label
            ]

        (saved, *_) = wait_for("the checkpoint before the deadline", asked, DRAINED_WITHIN_S)
        assert saved.step >= before.step
        commands = [
            entry.record.command for entry in whole_journal(client, run) if isinstance(entry.record, CommandAccepted)
        ]
        assert [(each.author, each.reason.split(" is being")[0][:5]) for each in commands] == [("steerway", "node ")]
        killed = cluster.command("cluster.chaos", "kill-node", node)
        assert killed.returncode == 0, killed.stderr
        after = wait_for_ranks(client, cluster, run, len(before.ranks), saved.step + 5)
        assert node not in {place.node for place in after.ranks}
        starts = [e.record for e in whole_journal(client, run) if isinstance(e.record, GenerationStarted)]
        assert starts[-1].step >= saved.step
        stop(client, run)


def drain(cluster: Cluster, node_id: str, within_s: int) -> subprocess.CompletedProcess[str]:
    """As a cloud's notice of preemption does it: `ray drain-node`."""
    record = read_record(cluster.settings)
    assert record is not None
    return subprocess.run(
        [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node",
            f"--address={record.ray_address}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken away",
            f"--deadline-remaining-seconds={within_s}",
        ],
        env=cluster.environment | record.ray_environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
