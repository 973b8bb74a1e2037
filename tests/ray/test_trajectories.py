"""A run on a real cluster is walked as a tree: rolled back, killed, forked, its best fork adopted, and replayed."""

import json
import os
import signal
from pathlib import Path

import pytest

from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Pause, SaveCheckpoint, SetKnobs, SetLearningRate
from control_plane.core.model.intents import Rollback, SetSchedule
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


def steer(cluster: Cluster, *words: str) -> str:
    done = cluster.command("control_plane.cli.main", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trains(snapshot: Snapshot, branch: str) -> bool:
    return (snapshot.branch, snapshot.status) == (branch, "running")


def begun(cluster: Cluster, *words: str) -> list[str]:
    done = cluster.command("ray_jobs.driver.fork_and_replay", *words, "--json")
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

        # A finished run goes on from where it was better; and then with the best of its forks, in the same processes.
        steer(cluster, "rollback", run, base.checkpoint, "--branch", "again", "-y")
        wait_for("its trainers", lambda: trains(client.snapshot(run), "again") or None, PATIENCE_S)
        ask(client, run, Pause())
        best = min(forks, key=lambda fork: float(client.snapshot(fork).latest["loss"]))
        told = json.loads(steer(cluster, "adopt", run, best, "--branch", "best", "-y", "--json"))
        assert told["arrival"]["branch"] == "best"
        assert base.step < told["arrival"]["step"] <= base.step + 10
        print(f"adopted {best} at step {told['arrival']['step']}: trained on after {told['arrival']['took_s']:.1f} s")
        assert ended(client, run).status == "finished", cluster.logs(run)
        assert client.snapshot(run).branch == "best"
        assert f"* best  adopted from {best}, branch main, at step" in steer(cluster, "tree", run)
        beside = json.loads(steer(cluster, "compare", f"{run}:main", f"{run}:best", best, "--json"))
        assert (beside["common"]["run"], beside["common"]["step"]) == (run, base.step)

        verdict = json.loads(steer(cluster, "replay", run, "--json").splitlines()[-1])
        assert verdict["verdict"] == "identical", verdict
        assert verdict["digests"] >= STEPS // 5
        print(f"replay: {verdict}")
