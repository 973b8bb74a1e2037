"""A policy of mixtures on a real cluster: it sets weights, over a kill, and a replay repeats them and fits nothing.

The cluster is real, the agent is a process of its gateway, and one rank is killed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.client import SteerwayClient
from control_plane.core.model.intents.agent import Propose, StartAgent
from control_plane.core.model.intents.data import SetMixture
from control_plane.core.model.records import CommandAccepted, CommandSettled
from tests.ray.agents.test_autopilot import agents_of, until
from tests.ray.cluster import REPOSITORY, Cluster, wait_closed, wait_for, wait_for_step, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 500
LEAST_BATCHES = 20
AGENT = {"policy": "ado", "every_steps": 20, "mixing": {"least_batches": LEAST_BATCHES, "fit_every_steps": 40}}


def config_in(folder: Path, limits: dict[str, Any], agent: dict[str, Any] | None) -> Path:
    """A small GPT-2 on a text that can be learned and on one of single letters, of equal weights."""
    easy = [f"the page {number % 9} of the book of pages, and again " * 4 for number in range(300)]
    noise = [" ".join(chr(97 + (number * 7919 + at * at * 31) % 26) for at in range(60)) for number in range(300)]
    for name, texts in (("easy", easy), ("noise", noise)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "gpt2-local.yaml").read_text())
    config["deepspeed"] = str((REPOSITORY / "configs" / config["deepspeed"]).resolve())
    config["model"] |= {"n_layer": 1, "n_embd": 32}
    config["data"] |= {"max_train_bytes": 200_000}
    config["training"] |= {"max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 10}
    config["training"] |= {"eval_strategy": "no"}
    config["checkpoint"] = {"every_steps": 25}
    config["digest"] = {"every_steps": 1}
    config["sources"] = {
        name: {"format": "jsonl", "path": str(folder / f"{name}.jsonl"), "weight": 0.5, "fields": {"text": "text"}}
        for name in ("easy", "noise")
    }
    config["limits"] = limits
    if agent is not None:
        config["agent"] = agent
    (folder / "mixed.yaml").write_text(yaml.safe_dump(config))
    return folder / "mixed.yaml"


def applied(client: SteerwayClient, run: str) -> list[CommandSettled]:
    """What became of the changes of weights that were applied."""
    records = [entry.record for entry in whole_journal(client, run)]
    changes = {
        each.command.uuid
        for each in records
        if isinstance(each, CommandAccepted) and isinstance(each.command.intent, SetMixture)
    }
    return [
        each
        for each in records
        if isinstance(each, CommandSettled) and each.uuid in changes and each.status == "applied"
    ]


def test_ado_sets_weights_over_a_kill_and_a_replay_repeats_them(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    limits = {"mixture/*": {"roles": ["operator", "admin", "agent"]}}
    run = cluster.submit(str(config_in(tmp_path, limits, AGENT)))
    until(lambda: len(applied(client, run)) >= 1)
    killed = cluster.command("control_plane.cli.main", "chaos", "kill-rank", "1", run)
    assert killed.returncode == 0, killed.stderr
    before = len(applied(client, run))
    until(lambda: client.snapshot(run).generation == 2 and len(applied(client, run)) > before)
    assert wait_closed(client, run).status == "finished", cluster.logs(run)
    journal = [entry.record for entry in whole_journal(client, run)]
    proposed = [
        each.command.intent
        for each in journal
        if isinstance(each, CommandAccepted) and isinstance(each.command.intent, Propose)
    ]
    changes = applied(client, run)
    assert len(proposed) >= len(changes) >= 2
    assert min(each.step or 0 for each in proposed) >= LEAST_BATCHES
    for settled in changes:
        mixture = (settled.after or {})["mixture"]
        assert len(settled.ranks) == 2
        assert (settled.after or {})["first_step"] == (settled.step or 0) + 1
        assert min(source["share"] for source in mixture.values()) >= 0.01 - 1e-6
    until(lambda: not agents_of(run))
    done = cluster.command("control_plane.cli.main", "replay", run, "--json")
    assert done.returncode == 0, done.stderr
    verdict = wait_for("the verdict", lambda: json.loads(done.stdout.splitlines()[-1]))
    print(verdict)
    assert verdict["verdict"] == "identical", verdict
    replay = next(each.run for each in client.runs() if each.parent is not None and each.parent.run == run)
    repeated = [entry.record for entry in whole_journal(client, replay)]
    kinds = [type(each.command.intent) for each in repeated if isinstance(each, CommandAccepted)]
    assert not {Propose, StartAgent} & set(kinds), "a replay has no agent"
    assert [each.step for each in applied(client, replay)] == [each.step for each in changes]


def test_without_sources_or_the_limit_no_policy_of_mixtures_is_started(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    run = cluster.submit(str(config_in(tmp_path, {}, None)))
    wait_for_step(cluster, client, run, 3)
    refused = cluster.command("control_plane.cli.main", "agent", "start", run, "--policy", "ado")
    assert refused.returncode != 0
    assert "no limit of this run lets an agent do that" in refused.stderr + refused.stdout
    assert client.snapshot(run).agent.settings is None
    stopped = cluster.command("control_plane.cli.main", "stop", run, "--yes")
    assert stopped.returncode == 0, stopped.stderr
    wait_closed(client, run)
