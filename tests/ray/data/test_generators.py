"""Generators on a real cluster: a function fills the weak source within its budget over a kill, and what a model has
written waits for a person.

The model is a scripted chat server of these tests: it is no language model, and shows nothing about one.
"""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from control_plane.api.data_views import ShardView, SourceView
from control_plane.cli.main import app
from control_plane.client import SteerwayClient
from control_plane.config_text import from_yaml, to_yaml
from control_plane.core.model.errors import SteerwayError
from tests.agent.chat_server import Chat, chat_server, completion
from tests.ray.cluster import REPOSITORY, Cluster, kill, running, wait_closed, wait_for, wait_for_step, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

KEY = "canary-key-of-the-model"
BUDGET = 50
WRITER = '''
import helper

def write(asked):
    """New records for what is weak, with the words of its examples."""
    words = asked["examples"][0]["text"].split() if asked["examples"] else ["none"]
    for number in range(asked["records"] + 5):
        yield {"text": helper.text(words, asked["step"], number)}
'''
HELPER = """
import os

def text(words, step, number):
    return f"{words[0]} {words[-1]} written at step {step} as number {number} by {os.environ['WRITER_NAME']}"
"""


def config_in(folder: Path) -> Path:
    """A small GPT-2 on two ranks: pages that are all alike, and poems that are not."""
    pages = [{"text": f"the page of the web number {n} " * 8} for n in range(200)]
    poems = [{"text": " ".join(f"{(n * 7919 + k * 104_729) % 9973:x}" for k in range(40))} for n in range(60)]
    for name, records in (("web", pages), ("poems", poems)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (folder / "write_poems.py").write_text(WRITER)
    (folder / "helper.py").write_text(HELPER)
    config: Any = from_yaml((REPOSITORY / "configs" / "gpt2-local.yaml").read_text(), "the config")
    config["deepspeed"] = str((REPOSITORY / "configs" / config["deepspeed"]).resolve())
    source = {"format": "jsonl", "fields": {"text": "text"}, "held_out": 0.25, "live": True}
    config["sources"] = {name: source | {"path": f"{name}.jsonl"} for name in ("web", "poems")}
    config["generators"] = {
        "fill": {
            "source": "poems",
            "path": "write_poems.py",
            "function": "write",
            "helps": ["poems"],
            "records": 20,
            "max_records": BUDGET,
        },
        "told": {"source": "web", "prompt": "Short pages.", "records": 3, "max_records": 3, "approval": True},
    }
    config["env"] = {"WRITER_NAME": "a poet"}
    config["training"] |= {"max_steps": 100_000, "eval_steps": 10}
    (folder / "train.yaml").write_text(to_yaml(config))
    return folder / "train.yaml"


def answer(chat: Chat, request: dict[str, Any]) -> None:
    """Records as a model writes them: good ones, one that breaks the schema, and one that is none."""
    asked = json.loads(request["messages"][-1]["content"])
    good = [{"text": f"page {asked['number']} {n} of a model that repeats {KEY}"} for n in range(asked["records"])]
    bad = [{"text": 7}] if asked["records"] > 1 else []
    chat.send(200, completion(json.dumps({"records": ["none", *bad, *good]})))


def processes_of(run: str, generator: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            shown = process.cmdline()
            if "control_plane.agent.generating" in shown and {run, generator} <= set(shown):
                found.append(process)
    return found


def source_of(client: SteerwayClient, run: str, name: str) -> SourceView | None:
    with suppress(SteerwayError):
        return next(one for one in client.data(run).sources if one.name == name)
    return None


def sent_by(client: SteerwayClient, run: str, source: str, author: str) -> list[ShardView]:
    view = source_of(client, run, source)
    return [shard for shard in view.shards if shard.author == author] if view is not None else []


def test_generators_write_what_the_weak_source_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(answer) as chat:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", chat.base_url)
        with running(tmp_path / "home") as cluster, cluster.client() as client:
            run = cluster.submit(str(config_in(tmp_path)))
            wait_for_step(cluster, client, run, 10)
            _function_fills_the_weak_source(cluster, client, run)
            _model_waits_for_a_person(cluster, client, run, chat)
            CliRunner().invoke(app, ["stop", run, "--yes"], env=cluster.environment)
            wait_closed(client, run)
            wait_for("the end of the generators", lambda: not processes_of(run, "fill") + processes_of(run, "told"))
            shown = cluster.logs(run) + "".join(entry.model_dump_json() for entry in whole_journal(client, run))
            shown += "".join(path.read_text() for path in (tmp_path / "home" / "runs" / run).rglob("*.json*"))
            assert KEY not in shown


def _function_fills_the_weak_source(cluster: Cluster, client: SteerwayClient, run: str) -> None:
    """A kill of its process between two batches changes nothing: the budget is that of the index."""
    author = "generator:fill"
    begun = time.monotonic()
    wait_for("the first batch", lambda: sent_by(client, run, "poems", author), 300)
    print(f"first batch {time.monotonic() - begun:.0f} s after step 10")
    for process in wait_for("the process", lambda: processes_of(run, "fill")):
        kill(process)

    def full() -> bool:
        view = source_of(client, run, "poems")
        return view is not None and view.by_author.get(author) == BUDGET and view.waiting == 0

    wait_for("the whole budget", full, 400)
    shards = sent_by(client, run, "poems", author)
    assert sorted(shard.records for shard in shards) == [10, 20, 20]
    assert {shard.stage for shard in shards} == {"live"}
    spots = client.weak_spots(run)
    assert {spot.source for spot in spots} == {"web", "poems"}
    print([(spot.name, spot.loss, spot.error, spot.step, spot.evaluations) for spot in spots])
    folder = cluster.settings.runs_dir / run / "data" / "poems"
    texts = [json.loads(line)["text"] for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(set(texts)) == BUDGET
    assert all(text.endswith("by a poet") for text in texts)
    assert "none none" not in " ".join(texts), "it was shown examples"
    time.sleep(15)
    view = source_of(client, run, "poems")
    assert view is not None
    assert view.by_author == {author: BUDGET}


def _model_waits_for_a_person(cluster: Cluster, client: SteerwayClient, run: str, chat: Chat | Any) -> None:
    def proposed() -> Any:
        with suppress(SteerwayError):
            return [view for view in client.agent(run).agent.proposals if view.verdict is None]
        return None

    (view,) = wait_for("the proposal", proposed)
    (shard,) = sent_by(client, run, "web", "generator:told")
    assert (shard.stage, shard.records, view.author) == ("announced", 2, "generator:told")
    assert view.intent.shards[0].sha256 == shard.sha256
    assert chat.requests[0]["messages"][0]["role"] == "system"
    asked = json.loads(chat.requests[0]["messages"][1]["content"])
    assert (asked["task"], asked["schema"]) == ("Short pages.", {"text": {"type": "text", "required": True}})
    assert asked["examples"]
    done = CliRunner().invoke(app, ["agent", "approve", run, str(view.seq)], env=cluster.environment)
    assert done.exit_code == 0, done.output
    wait_for("its records", lambda: sent_by(client, run, "web", "generator:told")[-1].stage == "live")
    other = wait_for("the last record", lambda: (proposed() or [None])[0], 300)
    done = CliRunner().invoke(app, ["agent", "reject", run, str(other.seq)], env=cluster.environment)
    assert done.exit_code == 0, done.output
    wait_for("its refusal", lambda: sent_by(client, run, "web", "generator:told")[0].stage == "refused")
    refused = sent_by(client, run, "web", "generator:told")[0]
    assert refused.reason is not None
    assert "rejected by" in refused.reason
