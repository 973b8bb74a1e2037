"""A real run on a real cluster: the README's three-line script, steered, while its control server is killed."""

import json
import shutil
import threading
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest

from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Pause, Resume, SaveCheckpoint, SetLearningRate
from control_plane.core.model.errors import NotFound, SteerwayError
from control_plane.core.model.health import AlertCleared, AlertRaised
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import CommandAccepted, CommandSettled, GenerationStarted, RunClosed, TermStarted
from control_plane.storage.layout import RunFiles
from control_plane.storage.outputs import outputs
from tests.gateway.health.receiver import Received, Receiver
from tests.ray.cluster import (
    REPOSITORY,
    Cluster,
    kill,
    wait_closed,
    wait_for,
    wait_for_step,
    whole_journal,
)
from tests.ray.conftest import WEBHOOK_SECRET
from tests.ray.sent.project import launch, write_project

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STEPS = 1500

ALARMED = "health: {checkpoints: {most_steps: 1, least_s: 0.0}}"
"""A checkpoint that is two steps old is too old: an alert that is raised at once."""


@pytest.fixture(scope="module")
def run(cluster: Cluster, client: SteerwayClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script with modules and data beside it, sent from a folder that the cluster does not see: it is removed."""
    folder = tmp_path_factory.mktemp("laptop") / "code"
    write_project(folder)
    run = launch(client, folder, STEPS, ALARMED)
    shutil.rmtree(folder.parent)
    wait_for_step(cluster, client, run, 5)
    return run


def test_three_lines_make_a_script_steerable() -> None:
    plain, steerable = (
        (REPOSITORY / "examples" / name).read_text().split('"""', 2)[2].strip().splitlines()
        for name in ("plain_trainer.py", "steerable_trainer.py")
    )
    changed = [line for line in steerable if line not in plain and line.strip()]
    assert [line.rsplit("  # ", 1)[-1] for line in changed] == ["1", "2", "3"]
    assert len(steerable) - len(plain) <= 3


def test_a_live_rate_is_applied_at_one_step_on_both_ranks(run: str, client: SteerwayClient) -> None:
    receipt = client.submit(run, SetLearningRate(value=3e-4, schedule="hold"), reason="slower, please")
    settled = client.wait_settled(run, receipt.uuid, 60).settled
    assert settled is not None
    assert settled.status == "applied"
    assert [reading["lr"] for reading in settled.ranks] == [[3e-4], [3e-4]]
    rates = wait_for(
        "a logged step after the change",
        lambda: [p.value for p in client.metrics(run, names=("lr",)).points if p.step > (settled.step or 0)],
    )
    assert set(rates) == {3e-4}


def test_code_that_was_sent_is_in_the_runs_folder_and_was_imported(
    run: str, cluster: Cluster, client: SteerwayClient
) -> None:
    files = RunFiles(cluster.settings.runs_dir / run)
    assert sorted(path.name for path in files.code.iterdir() if path.name != "__pycache__") == sorted(
        ["train.py", "zero2.json", "cluster.py", "ui", "data"]
    )
    assert (files.work / "seen.txt").read_text() == f"{files.code}/cluster.py and {files.code}/ui/__init__.py: 1,2,3"
    assert (files.work / "data" / "numbers.csv").resolve() == files.code / "data" / "numbers.csv"
    assert client.bundle(sha256(files.bundle.read_bytes()).hexdigest()).complete


def test_an_unknown_run_is_not_found(run: str, client: SteerwayClient) -> None:
    with pytest.raises(NotFound, match="no run"):
        client.snapshot("nobody-knows-it")


def test_a_pause_takes_commands_and_ends(run: str, client: SteerwayClient) -> None:
    paused = client.wait_settled(run, client.submit(run, Pause()).uuid, 60).settled
    changed = client.wait_settled(
        run, client.submit(run, SetLearningRate(factor=2.0, schedule="hold")).uuid, 60
    ).settled
    resumed = client.wait_settled(run, client.submit(run, Resume()).uuid, 60).settled
    assert paused is not None
    assert changed is not None
    assert resumed is not None
    assert paused.step == changed.step == resumed.step
    assert changed.after is not None
    assert changed.after["lr"] == [6e-4]


class Sender(threading.Thread):
    """Sends learning rates, one after the other, and keeps what was acknowledged."""

    def __init__(self, cluster: Cluster, run: str, count: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.run_id, self.count = cluster, run, count
        self.acknowledged: dict[UUID, float] = {}
        self.failed: list[str] = []

    def run(self) -> None:
        with self.cluster.client() as client:
            for index in range(self.count):
                rate = 1e-4 + index * 1e-6
                try:
                    receipt = client.submit(self.run_id, SetLearningRate(value=rate, schedule="hold"))
                except SteerwayError as error:
                    self.failed.append(error.reason)
                else:
                    self.acknowledged[receipt.uuid] = rate


def test_killing_the_control_server_loses_no_command_and_stops_no_training(
    run: str, cluster: Cluster, client: SteerwayClient
) -> None:
    sender = Sender(cluster, run, count=40)
    step_before = client.snapshot(run).step
    sender.start()
    for acknowledged in (5, 15, 25):
        wait_for("some commands", lambda wanted=acknowledged: len(sender.acknowledged) >= wanted, 60)
        (actor,) = wait_for("the control actor", cluster.control_actors, 60)
        kill(actor)
    sender.join(120)
    assert not sender.is_alive()
    assert len(sender.acknowledged) >= 30
    for uuid in sender.acknowledged:
        client.wait_settled(run, uuid, 60)
    entries = whole_journal(client, run)
    records = [entry.record for entry in entries]
    settled = {r.uuid: r for r in records if isinstance(r, CommandSettled)}
    assert len(settled) == sum(isinstance(record, CommandSettled) for record in records)
    for uuid, rate in sender.acknowledged.items():
        assert settled[uuid].status == "applied", settled[uuid]
        assert settled[uuid].after["lr"] == [rate]  # type: ignore[index]
    accepted = [r.command.uuid for r in records if isinstance(r, CommandAccepted)]
    assert len(set(accepted)) == len(accepted)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert sum(isinstance(record, TermStarted) for record in records) >= 4
    assert sum(isinstance(record, GenerationStarted) for record in records) == 1
    assert client.snapshot(run).step > step_before


def test_a_rollback_begins_a_branch_in_the_living_processes_of_a_users_script(
    run: str, cluster: Cluster, client: SteerwayClient
) -> None:

    def save() -> CommandSettled | None:
        settled = client.wait_settled(run, client.submit(run, SaveCheckpoint(pin=True)).uuid, 60).settled
        # Refused while another one is being written, as the run does it by itself now and then.
        return settled if settled is not None and settled.status == "applied" else None

    saved = wait_for("a checkpoint of ours", save, 60)
    before = client.snapshot(run)
    wait_for_step(cluster, client, run, (saved.step or 0) + 10)
    back = Rollback(checkpoint=saved.after["checkpoint"], first=(SetLearningRate(value=7e-4, schedule="hold"),))
    client.wait_settled(run, client.submit(run, back).uuid, 60)

    def trains_on() -> Snapshot | None:
        snapshot = client.snapshot(run)
        assert not snapshot.closed, cluster.logs(run)
        return snapshot if snapshot.branch != "main" and snapshot.generation > before.generation else None

    after = wait_for("training on the branch", trains_on)
    assert [place.pid for place in after.ranks] == [place.pid for place in before.ranks], "the processes live on"
    assert not after.recoveries
    rates = wait_for(
        "steps of the branch",
        lambda: [p.value for p in client.metrics(run, names=("lr",)).points if p.branch == after.branch],
    )
    assert set(rates) == {7e-4}
    assert wait_for_step(cluster, client, run, (saved.step or 0) + 3).branch == after.branch


def test_the_run_ends_and_its_journal_says_so(run: str, cluster: Cluster, client: SteerwayClient) -> None:
    from control_plane.core.model.commands import Stop

    client.submit(run, Stop())
    snapshot = wait_closed(client, run)
    assert snapshot.status == "stopped", cluster.logs(run)
    assert isinstance(whole_journal(client, run)[-1].record, RunClosed)
    # A relative path lies in the run's own folder; the script writes it after its training has been stopped.
    files = RunFiles(Path(cluster.environment["STEERWAY_HOME"]) / "runs" / run)
    model = Path("trainer-output/model.safetensors")
    wait_for("the script's model", lambda: model in [each.path for each in outputs(files)])
    with pytest.raises(SteerwayError, match="takes no more commands"):
        client.submit(run, SetLearningRate(value=1e-4))
    entries = whole_journal(client, run)
    wait_for("the control actor's retirement", lambda: not cluster.control_actors(), 60)
    assert whole_journal(client, run) == entries
    assert client.snapshot(run).status == "stopped"
    assert not cluster.control_actors()


def is_sent(record: object) -> bool:
    """Whether a message is sent about it, at the level `warning`."""
    if isinstance(record, AlertRaised):
        return record.alert.level != "info"
    return isinstance(record, AlertCleared)


def test_alerts_of_the_run_were_sent_signed_and_as_slack_takes_them_and_each_was_taken_once(
    run: str, client: SteerwayClient, receiver: Receiver
) -> None:
    """The service refuses each message once. The control server was killed three times in between."""
    alerts = [entry for entry in whole_journal(client, run) if is_sent(entry.record)]
    raised = [entry.record.alert for entry in alerts if isinstance(entry.record, AlertRaised)]
    assert "checkpoint_too_old" in {alert.kind for alert in raised}

    def all_taken(path: str) -> dict[str, list[Received]] | None:
        messages = receiver.of(path, run)
        taken = [each for each in messages.values() if each[-1].status == 200]
        return messages if len(taken) == len(alerts) else None

    for path in ("/ops", "/chat"):
        messages = wait_for(f"messages to {path}", lambda path=path: all_taken(path), 60).values()
        assert {tuple(request.status for request in each) for each in messages} == {(500, 200)}
        assert all(first.body == again.body for first, again in messages)
    ops = [json.loads(again.body) for _, again in receiver.of("/ops", run).values()]
    assert [message["seq"] for message in ops] == [entry.seq for entry in alerts]
    assert all(each.is_signed_with(WEBHOOK_SECRET) for pair in receiver.of("/ops", run).values() for each in pair)
    assert not any(each.signature for pair in receiver.of("/chat", run).values() for each in pair)
    texts = [json.loads(again.body) for _, again in receiver.of("/chat", run).values()]
    assert all(text.keys() == {"text"} and text["text"].startswith(f"{run}: ") for text in texts)
    assert raised[0].sentence in texts[0]["text"]
