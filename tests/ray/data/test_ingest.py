"""Records sent to a real run while gateway, control actor and a rank are killed: none is lost, and none comes twice."""

import json
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from typer.testing import CliRunner

from control_plane.cli.main import app
from control_plane.client import SteerwayClient
from control_plane.client.data import SUFFIXES
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.intents.data import AddShards
from control_plane.core.model.records import CommandAccepted, CommandSettled
from tests.architecture.documents import bash_lines
from tests.ray.cluster import REPOSITORY, Cluster, kill, wait_closed, wait_for, wait_for_step, whole_journal

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

DOCUMENT = REPOSITORY / "docs" / "data.md"
REQUESTS, RECORDS = 60, 5


def config_in(folder: Path) -> Path:
    """A small GPT-2 on two ranks that draws from a file and from a live source."""
    (folder / "web.jsonl").write_text(
        "".join(json.dumps({"text": f"the page {n} of the web " * 8}) + "\n" for n in range(200))
    )
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "gpt2-local.yaml").read_text())
    config["deepspeed"] = str((REPOSITORY / "configs" / config["deepspeed"]).resolve())
    config["sources"] = {
        "web": {"format": "jsonl", "path": str(folder / "web.jsonl"), "weight": 0.7, "fields": {"text": "text"}},
        "fresh": {"format": "jsonl", "live": True, "weight": 0.3, "fields": {"text": "text"}},
    }
    config["checkpoint"] = {"every_steps": 10}
    config["training"]["max_steps"] = 100_000
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return folder / "train.yaml"


@pytest.fixture
def run(cluster: Cluster, client: SteerwayClient, tmp_path: Path) -> str:
    run = cluster.submit(str(config_in(tmp_path)))
    wait_for_step(cluster, client, run, 3)
    return run


def records_of(number: int) -> list[dict[str, str]]:
    """The records of one request."""
    return [{"text": f"request {number}, record {row}, of what users did"} for row in range(RECORDS)]


def test_lines_of_the_document_work(
    run: str, cluster: Cluster, client: SteerwayClient, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records_of(1)))
    lines = [
        words[1:]
        for words in bash_lines(DOCUMENT.read_text().split("## Human feedback")[0])
        if words[:2] == ["steer", "data"]
    ]
    assert len(lines) >= 3
    printed = {}
    for words in lines:
        words = [run if word == "RUN" else word for word in words]
        done = CliRunner().invoke(app, words, env=cluster.environment)
        assert done.exit_code == 0, f"steer {words}\n{done.output}"
        printed[words[1]] = done.output
    assert "fresh: 5 records taken in" in printed["add"]
    assert "on 2 of 2 ranks" in printed["weights"]
    CliRunner().invoke(app, ["stop", run, "--yes"], env=cluster.environment)
    wait_closed(client, run)


def test_kills_lose_and_double_nothing(run: str, cluster: Cluster, client: SteerwayClient) -> None:
    sent: list[int] = []

    def send_all() -> None:
        for number in range(REQUESTS):
            body = "".join(json.dumps(one) + "\n" for one in records_of(number)).encode()
            answer = client._send_patiently(run, "fresh", body, SUFFIXES[".jsonl"], UUID(int=number + 1), False)
            assert answer.records + answer.duplicates == RECORDS
            sent.append(number)
            time.sleep(0.2)

    sender = threading.Thread(target=send_all)
    sender.start()
    for at, title in ((10, "ray::ServeReplica"), (25, "ray::ControlActor"), (40, "ray::RayTrainWorker")):
        wait_for(f"{at} requests", lambda at=at: len(sent) >= at)
        victims = [
            one for one in cluster.processes() if one.name().startswith(title[:15]) and title in " ".join(one.cmdline())
        ]
        assert victims, title
        kill(victims[0])
    sender.join(300)
    assert sent == list(range(REQUESTS))

    def all_in() -> bool:
        try:
            fresh = next(one for one in client.data(run).sources if one.name == "fresh")
        except SteerwayError:
            return False
        return bool(fresh.received == fresh.mixture.get("records") == REQUESTS * RECORDS and fresh.waiting == 0)

    wait_for("all records in the mixture", all_in)
    CliRunner().invoke(app, ["stop", run, "--yes"], env=cluster.environment)
    wait_closed(client, run)
    entries = whole_journal(client, run)
    commands = [one.record.command for one in entries if isinstance(one.record, CommandAccepted)]
    added = {command.uuid: command.intent for command in commands if isinstance(command.intent, AddShards)}
    settled = [one.record for one in entries if isinstance(one.record, CommandSettled) and one.record.uuid in added]
    assert {one.status for one in settled} == {"applied"}
    shards = [shard for intent in added.values() for shard in intent.shards]
    assert len({shard.sha256 for shard in shards}) == len(shards)
    assert sum(shard.records for shard in shards) == REQUESTS * RECORDS
    print(f"{len(added)} commands, {len(shards)} shards, {REQUESTS * RECORDS} records")
