"""A stranger's script on a real cluster, as its owner would see it: submitted, steered, killed, and what it leaves."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.client import SteerwayClient
from control_plane.core.model.commands import SetLearningRate
from tests.ray.cluster import Cluster, wait_closed, wait_for, wait_for_step
from tests.strangers.catalog import SCRIPTS, STRANGERS, TRAINER

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def submitted(cluster: Cluster, tmp_path: Path, script: str, args: str, **settings: Any) -> str:
    config = tmp_path / "run.yaml"
    given: dict[str, Any] = {
        "name": "stranger",
        "seed": 1,
        "scaling": {"ranks": 2, "cpus_per_rank": 1, "use_gpu": False},
        "workload": {"kind": "script", "path": str(SCRIPTS / script), "args": args.split()},
        "checkpoint": {"every_steps": 20, "keep_last": 2},
        "env": {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
    }
    config.write_text(yaml.safe_dump(given | settings))
    return cluster.submit(str(config))


def outputs(cluster: Cluster, run: str) -> str:
    done = cluster.command("control_plane.cli.main", "outputs", run)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_masked_words_are_steered_and_a_rank_is_lost(cluster: Cluster, client: SteerwayClient, tmp_path: Path) -> None:
    stranger = next(each for each in STRANGERS if each.name == "masked_lm")
    run = submitted(cluster, tmp_path, stranger.script, stranger.args.replace("_epochs=2", "_epochs=50"))
    wait_for_step(cluster, client, run, 25)
    settled = client.wait_settled(run, client.submit(run, SetLearningRate(value=1e-3)).uuid, 60).settled
    assert settled is not None
    assert [reading["lr"] for reading in settled.ranks] == [[1e-3, 1e-3]] * 2
    os.kill(client.snapshot(run).ranks[1].pid, signal.SIGKILL)
    wait_for("the recovery", lambda: client.snapshot(run).recoveries and client.snapshot(run).recoveries[-1].over)
    last = wait_closed(client, run)
    assert (last.status, last.step) == ("finished", 600), f"{last.reason}\n{cluster.logs(run)}"
    said = outputs(cluster, run)
    assert "out/model.safetensors" in said
    assert "out/eval_results.json" in said
    # `datasets` reads its folder when it is imported, which a spare has done before it knows its run.
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_translations_end_by_sys_exit_and_are_found(cluster: Cluster, client: SteerwayClient, tmp_path: Path) -> None:
    args = f"{TRAINER} --output_dir=t5 --num_train_epochs=2 --predict_with_generate=true --save_strategy=no"
    run = submitted(cluster, tmp_path, "seq2seq/run_translation.py", args)
    last = wait_closed(client, run)
    assert (last.status, last.step) == ("finished", 24), f"{last.reason}\n{cluster.logs(run)}"
    said = outputs(cluster, run)
    assert "t5/model.safetensors" in said
    assert "t5/generated_predictions.txt" in said
