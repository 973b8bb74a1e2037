"""The effect of a command on a real run: its replay without it is equal until there, and placebos show what is none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from control_plane.client import SteerwayClient
from control_plane.compare.effect import EffectReport
from control_plane.core.model.commands import SetKnobs, SetLearningRate
from control_plane.core.model.intents import Freeze, SetSchedule
from control_plane.storage.metrics import MetricsStore
from tests.ray.cluster import REPOSITORY, Cluster, wait_closed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS, TRIPLED_AT, NOTHING_AT = 60, 20, 30
WITHIN_S = 1800

SCRIPT = f"""
import torch
from steerway import TrainingSession

torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
layers = {{"first": model[0], "last": model[2]}}
groups = [{{"params": list(layer.parameters()), "name": name}} for name, layer in layers.items()]
optimizer = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.01)
inputs = torch.randn(512, 16)
wanted = torch.sin(inputs.sum(1, keepdim=True))
session = TrainingSession(model, optimizer, total_steps={STEPS})
with session:
    for step in session.steps():
        at = torch.arange(32) + 32 * step
        loss = ((model(inputs[at % 480]) - wanted[at % 480]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        metrics = {{"loss": loss.detach()}}
        if step % 5 == 4:
            with torch.no_grad():
                metrics["eval_loss"] = ((model(inputs[480:]) - wanted[480:]) ** 2).mean()
        session.step(metrics)
"""

CONFIG = """
name: effects
seed: 1
scaling: {{ranks: 1}}
workload: {{kind: script, path: {script}}}
digest: {{every_steps: 5}}
checkpoint: {{every_steps: 0}}
"""


def effect(cluster: Cluster, run: str, uuid: object) -> tuple[EffectReport, str]:
    """What `steer effect` says of a command, and what it said meanwhile."""
    words = [sys.executable, "-m", "control_plane.cli.main", "effect", run, str(uuid), "--placebos", "5", "--json"]
    done = subprocess.run(
        [*words, "--parallel", "2"],
        env=cluster.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return EffectReport.model_validate(json.loads(done.stdout)), done.stderr


def losses(cluster: Cluster, run: str) -> dict[int, float]:
    """The run's losses as they were stored."""
    store = MetricsStore(cluster.settings.runs_dir / run / "metrics.sqlite")
    try:
        return {point.step: point.value for point in store.read(0, 10_000, ("loss",)).points}
    finally:
        store.close()


def test_effects_of_two_of_five_interventions(cluster: Cluster, client: SteerwayClient, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "run.yaml").write_text(CONFIG.format(script=tmp_path / "train.py"))
    run = cluster.submit(str(tmp_path / "run.yaml"))
    decay: Any = {"changes": [{"knob": "weight_decay", "factor": 2.0}]}
    asked = [
        (TRIPLED_AT, SetLearningRate(factor=3.0)),
        (25, SetKnobs.model_validate(decay)),
        (NOTHING_AT, SetLearningRate(factor=1.0000001)),
        (35, Freeze(parameters="0.bias")),
        (40, SetSchedule(shape="cosine", end=0.1)),
    ]
    uuids = [client.submit(run, intent, not_before_step=step).uuid for step, intent in asked]
    assert wait_closed(client, run).status == "finished", cluster.logs(run)
    assert [client.command(run, uuid).status for uuid in uuids] == ["applied"] * 5

    tripled, said = effect(cluster, run, uuids[0])
    assert said.count("begins") == 6
    assert (tripled.until.verdict, tripled.until.until_step) == ("identical", TRIPLED_AT)
    assert (tripled.until.digests, tripled.until.losses) == (4, TRIPLED_AT)
    own, without = losses(cluster, run), losses(cluster, tripled.replay)
    assert {step: without[step] for step in own if step <= TRIPLED_AT} == {
        step: loss for step, loss in own.items() if step <= TRIPLED_AT
    }
    # The rate is used in the step after the command, and first seen in the loss of the one after that.
    assert all(without[step] != own[step] for step in range(TRIPLED_AT + 2, STEPS + 1))
    found = {metric.name: metric for metric in tripled.metrics}
    for name in ("loss", "eval_loss"):
        print(name, found[name].statistics)
        assert all(statistic.distinguishable for statistic in found[name].statistics), found[name]
    assert [(each.step, each.becomes[0]) for each in tripled.rewritten] == [
        (25, "weight_decay = 0.02 (group 0), weight_decay = 0.02 (group 1)"),
        (30, "lr = 0.009"),
        (40, "lr = 0.009 (hold)"),
    ]
    assert tripled.refused == ()

    again, said = effect(cluster, run, uuids[0])
    assert again == tripled
    assert "begins" not in said

    nothing, _ = effect(cluster, run, uuids[2])
    assert nothing.until.verdict == "identical"
    # Of all metrics together one may well be beyond five placebos by chance.
    unmoved = {metric.name: metric.of("last tenth") for metric in nothing.metrics}
    print({name: unmoved[name] for name in ("loss", "eval_loss")})
    assert not unmoved["loss"].distinguishable
    assert not unmoved["eval_loss"].distinguishable
    left_out = [child.parent.without for child in client.tree(run).children if child.parent and child.parent.without]
    assert len(left_out) == 12
    assert {each.command for each in left_out} == {uuids[0], uuids[2]}
