"""Sources of a real run: weights and a source change on both ranks at one step; killed and replayed, it is the same."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from control_plane.cli.launching.request import LaunchChoices, launch
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Stop
from control_plane.core.model.data import ShardRecord, SourceSettings
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import AddSource, SetMixture
from tests.ray.cluster import REPOSITORY, Cluster, wait_closed, wait_for, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 300


def lines(word: str, count: int) -> bytes:
    """A shard of texts."""
    return b"".join(json.dumps({"text": f"{word} {number} " * 8}).encode() + b"\n" for number in range(count))


def config(folder: Path) -> Path:
    """The shipped config on two sources of its own, small enough for a test."""
    shutil.copytree(REPOSITORY / "configs", folder, dirs_exist_ok=True)
    for name in ("web", "notes"):
        (folder / f"{name}.jsonl").write_bytes(lines(name, 200))
    text = (folder / "gpt2-local.yaml").read_text()
    sources = "".join(
        f"  {name}: {{format: jsonl, path: {name}.jsonl, weight: {weight}, fields: {{text: text}}}}\n"
        for name, weight in (("web", 0.75), ("notes", 0.25))
    )
    (folder / "mixed.yaml").write_text(f"{text}\nsources:\n{sources}digest: {{every_steps: 1}}\n")
    return folder / "mixed.yaml"


def test_sources_change_on_a_run_that_is_killed_and_replayed(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    overrides = ("model.n_layer=1", "model.n_embd=32", "training.eval_strategy=no", "checkpoint.every_steps=10")
    # No loss is logged at the step of a checkpoint: after a restart a sign of that name is measured there, too.
    overrides = (*overrides, "training.logging_steps=33")
    steps = (f"training.max_steps={STEPS}", "training.per_device_train_batch_size=4", "data.max_train_bytes=200000")
    run = cluster.submit(str(config(tmp_path)), *overrides, *steps)
    content = lines("fresh", 50)
    shard = ShardRecord(source="fresh", sha256=hashlib.sha256(content).hexdigest(), records=50, bytes=len(content))
    folder = cluster.settings.runs_dir / run / "data" / "fresh"
    folder.mkdir(parents=True)
    (folder / f"{shard.sha256}.jsonl").write_bytes(content)
    settings = SourceSettings.model_validate(
        {"format": "jsonl", "live": True, "weight": 1.0, "fields": {"text": "text"}}
    )
    weights = client.submit(run, SetMixture(weights={"web": 0.2}), not_before_step=15).uuid
    added = client.submit(run, AddSource(source="fresh", settings=settings, shards=(shard,)), not_before_step=25).uuid
    wait_for_step(cluster, client, run, 32)
    killed = cluster.command("control_plane.cli.main", "chaos", "kill-rank", "1")
    assert killed.returncode == 0, killed.stderr
    assert wait_closed(client, run).status == "finished", cluster.logs(run)
    for uuid, step in ((weights, 15), (added, 25)):
        settled = client.command(run, uuid).settled
        assert settled is not None
        assert (settled.status, settled.step, (settled.after or {})["first_step"]) == ("applied", step, step + 1)
        assert len(settled.ranks) == 2
    last = client.command(run, added).settled
    shares = {name: source["share"] for name, source in ((last.after if last else None) or {})["mixture"].items()}
    assert shares == pytest.approx({"web": 0.2 / 1.45, "notes": 0.25 / 1.45, "fresh": 1.0 / 1.45}, abs=1e-5)
    done = cluster.command("control_plane.cli.main", "replay", run, "--json")
    assert done.returncode == 0, done.stderr
    verdict = wait_for("the verdict", lambda: json.loads(done.stdout.splitlines()[-1]))
    print(verdict)
    assert verdict["verdict"] == "identical", verdict


def test_sources_travel_from_a_machine_whose_folder_is_gone_and_bad_records_do_not(
    cluster: Cluster, client: SteerwayClient, tmp_path: Path
) -> None:
    path = config(tmp_path / "laptop")
    (tmp_path / "laptop" / "crawl" / "a").mkdir(parents=True)
    shutil.move(tmp_path / "laptop" / "web.jsonl", tmp_path / "laptop" / "crawl" / "a" / "1.jsonl")
    small = ("model.n_layer=1", "model.n_embd=32", "data.max_train_bytes=200000", "training.max_steps=100000")
    overrides = (*small, "sources.web.path=crawl/*/*.jsonl")
    run = launch(client, str(path), overrides, LaunchChoices(), shares_files=False).runs[0].run
    with (tmp_path / "laptop" / "notes.jsonl").open("a") as file:
        file.write('{"text": "half of a li')
    with pytest.raises(Invalid, match=r"sources.notes: notes.jsonl, line 201: it is not valid JSON"):
        launch(client, str(path), overrides, LaunchChoices(), shares_files=False)
    shutil.rmtree(tmp_path / "laptop")
    wait_for_step(cluster, client, run, 5)
    assert cluster.command("control_plane.cli.main", "chaos", "kill-rank", "1").returncode == 0
    wait_for("a new generation", lambda: client.snapshot(run).generation > 1)
    wait_for_step(cluster, client, run, 8)
    assert client.data(run).sources[1].mixture["records"] == 200
    client.submit(run, Stop())
    assert wait_closed(client, run).status == "stopped"
