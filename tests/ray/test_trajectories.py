"""A run on a real cluster is walked as a tree: rolled back, forked, killed in between, and replayed bit for bit."""

import json
import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.client import SteerwayClient
from control_plane.core.commands import Command, SaveCheckpoint, SetKnobs, SetLearningRate
from control_plane.core.intents import Rollback, SetSchedule
from control_plane.handle import Snapshot
from tests.ray.cluster import REPOSITORY, Cluster, running, wait_for, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 120
PATIENCE_S = 600.0
SETTINGS = (
    f"training.max_steps={STEPS}",
    "training.eval_steps=30",
    "checkpoint.every_steps=10",
    "digest.every_steps=5",
)


def ask(client: SteerwayClient, run: str, intent: object) -> Snapshot:
    settled = client.wait_settled(run, client.submit(run, intent).uuid, 120).settled  # type: ignore[arg-type]
    assert settled is not None
    assert settled.status == "applied", settled
    return client.snapshot(run)


def ended(client: SteerwayClient, run: str) -> Snapshot:
    """Its end; it may have to wait for its turn, on a busy machine for minutes."""
    return wait_for(  # type: ignore[no-any-return]
        f"the end of {run}", lambda: snapshot if (snapshot := client.snapshot(run)).closed else None, PATIENCE_S
    )


def begun(cluster: Cluster, *words: str) -> list[str]:
    done = cluster.command("ray_jobs.descend", *words, "--json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1])["runs"])


def test_a_run_is_rolled_back_killed_forked_and_replayed(tmp_path: Path) -> None:
    with running(tmp_path / "home", nodes=2) as cluster, cluster.client() as client:
        run = cluster.submit(str(REPOSITORY / "configs/gpt2-local.yaml"), *SETTINGS)
        wait_for_step(cluster, client, run, 12)
        ask(client, run, SetLearningRate(factor=0.5))
        ask(client, run, SetKnobs.model_validate({"changes": [{"knob": "dropout", "value": 0.2}]}))
        base = ask(client, run, SaveCheckpoint(label="base", pin=True)).checkpoints[-1]
        os.kill(client.snapshot(run).ranks[1].pid, signal.SIGKILL)
        wait_for("the recovery", lambda: client.snapshot(run).recoveries and client.snapshot(run).recoveries[-1].over)
        wait_for_step(cluster, client, run, base.step + 15)
        ask(client, run, Rollback(checkpoint=base.checkpoint, first=(SetLearningRate(value=3e-4, schedule="hold"),)))
        ask(client, run, SetSchedule(shape="cosine", end=0.1))
        ask(client, run, Rollback(branch="main"))
        assert ended(client, run).status == "finished", cluster.logs(run)

        # Four forks on a cluster that has room for one: they wait for their turn, and all finish.
        firsts = [[SetLearningRate(value=rate).model_dump(mode="json")] for rate in (1e-4, 3e-4, 1e-3, 3e-3)]
        flags = [word for first in firsts for word in ("--first", json.dumps(first))]
        forks = begun(cluster, "fork", run, base.checkpoint, f"training.max_steps={base.step + 10}", *flags)
        for fork in forks:
            last = ended(client, fork)
            assert (last.status, last.step) == ("finished", base.step + 10), cluster.logs(fork)
            assert last.parent is not None
            assert (last.parent.run, last.parent.step) == (run, base.step)

        # One whose model is another one is refused, with the reason.
        (misfit,) = begun(cluster, "fork", run, base.checkpoint, "model.n_embd=64")
        assert "does not fit this model" in str(ended(client, misfit).reason)

        # A finished run goes on from where it was better.
        back = Command(uuid=uuid4(), author="test", intent=Rollback(checkpoint=base.checkpoint))
        resumed = cluster.command("ray_jobs.submit", "--resume", run, "--back", back.model_dump_json(), "--json")
        assert resumed.returncode == 0, resumed.stderr
        wait_for("its trainers", lambda: client.snapshot(run).branch == "branch-3" or None)
        assert ended(client, run).status == "finished", cluster.logs(run)

        replayed = cluster.command("control_plane.cli.main", "replay", run, "--json")
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        verdict = json.loads(replayed.stdout.splitlines()[-1])
        assert verdict["verdict"] == "identical", verdict
        assert verdict["digests"] >= STEPS // 5
        print(f"replay: {verdict}")
