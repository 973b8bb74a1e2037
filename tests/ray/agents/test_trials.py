"""Trials of proposals on a real run: the better of two branches goes on, over a killed agent and server."""

from uuid import UUID, uuid4

import psutil
import pytest

from control_plane.api.agent_views import ProposalView
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import SetLearningRate
from control_plane.core.model.intents.agent import AgentSettings, Propose, StartAgent
from control_plane.core.model.intents.course import Stop
from control_plane.core.model.records import CommandAccepted, CommandSettled
from tests.ray.agents.test_autopilot import agents_of, until
from tests.ray.cluster import Cluster, kill, whole_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 12
WITHIN_S = 240.0


def test_the_better_of_two_branches_goes_on_whatever_is_killed_and_what_a_person_does_wins(
    cluster: Cluster, client: SteerwayClient
) -> None:
    """A rate of nothing is raised (adopted), then lowered to nothing (not better), then a person acts."""
    overrides = ("training.max_steps=100000", "training.learning_rate=1e-5", "training.lr_scheduler_type=constant")
    further = ("training.warmup_steps=0", "training.logging_steps=1", "checkpoint.every_steps=0")
    run = cluster.submit("configs/gpt2-local.yaml", *overrides, *further)
    until(lambda: client.snapshot(run).step >= 5)
    settings = AgentSettings(policy="nothing", mode="auto", trial_steps=STEPS, every_steps=5)
    client.submit(run, StartAgent(settings=settings))
    with SteerwayClient.from_settings(cluster.settings, role="agent") as agent:

        def propose(factor: float) -> UUID:
            uuid = uuid4()
            agent.submit(run, Propose(intent=SetLearningRate(factor=factor)), uuid=uuid, reason="a test's proposal")
            return uuid

        def view(uuid: UUID) -> ProposalView:
            return next(each for each in client.snapshot(run).agent.proposals if each.uuid == uuid)

        until(lambda: len(agents_of(run)) == 1)
        better = propose(100.0)
        until(lambda: (view(better).trial or "").startswith("without"))
        agents_of(run)[0].kill()
        kill(cluster.control_actors()[0])
        until(lambda: view(better).verdict)
        assert view(better).verdict == "adopted", view(better).note
        assert "trial: better by" in str(view(better).note)
        branch = client.snapshot(run).branch
        assert branch == f"trial-{view(better).seq}"
        assert client.snapshot(run).knobs["lr"][0] == pytest.approx(1e-3)
        assert_the_same_data(client, run, "main", branch)

        worse = propose(1e-3)
        until(lambda: (view(worse).trial or "").startswith("with it") and client.snapshot(run).ranks)
        failures = len(client.snapshot(run).recoveries)
        kill(psutil.Process(client.snapshot(run).ranks[1].pid))
        until(lambda: view(worse).verdict)
        until(lambda: len(client.snapshot(run).recoveries) > failures)
        assert view(worse).verdict == "not_better", view(worse).note
        until(lambda: client.snapshot(run).branch == branch and client.snapshot(run).status == "running")
        assert client.snapshot(run).knobs["lr"][0] == pytest.approx(1e-3)

        third = propose(0.5)
        until(lambda: (view(third).trial or "").startswith("with it"))
        mine = uuid4()
        client.submit(run, SetLearningRate(value=2e-3), uuid=mine)
        assert view(third).verdict == "abandoned"
        assert client.wait_settled(run, mine, WITHIN_S).status == "applied"
        step = client.snapshot(run).step
        until(lambda: client.snapshot(run).step >= step + 2 * STEPS)
        assert client.snapshot(run).branch == f"trial-{view(third).seq}"
        assert client.snapshot(run).knobs["lr"][0] == pytest.approx(2e-3)
    assert_each_command_is_settled_once(client, run)
    client.submit(run, Stop())


def assert_the_same_data(client: SteerwayClient, run: str, without: str, with_it: str) -> None:
    """The first loss after the checkpoint is the same on both branches: same weights, same batch; later ones differ."""
    points = client.metrics(run, limit=5000, names=("loss",)).points
    began = next(each.step for each in client.snapshot(run).branches if each.branch == with_it)
    losses = {
        branch: {point.step: point.value for point in points if point.branch == branch} for branch in (without, with_it)
    }
    assert losses[without][began + 1] == losses[with_it][began + 1]
    assert losses[without][began + STEPS] != losses[with_it][began + STEPS]


def assert_each_command_is_settled_once(client: SteerwayClient, run: str) -> None:
    records = [entry.record for entry in whole_journal(client, run)]
    sent = [each.command.uuid for each in records if isinstance(each, CommandAccepted)]
    ended = [each.uuid for each in records if isinstance(each, CommandSettled)]
    assert len(sent) == len(set(sent))
    assert len(ended) == len(set(ended))
