"""Proposals on a run's page: what they say, what the buttons send, and how the agent is started and stopped."""

from typing import Any
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from control_plane.api.agent_views import ProposalView
from control_plane.console_login import SessionRecord
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import INTENT, StartAgent, StopAgent
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import TOKEN, FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.test_branches import html
from tests.ui.test_console import press, text
from ui.panels.proposals import POLICIES, line_of

TENFOLD = {"kind": "set_learning_rate", "factor": 10.0}


def told(cluster: FakeCluster, trainer: FakeTrainer, role: str, author: str, intent: dict[str, Any]) -> None:
    """A command of somebody, as the gateway would pass it on."""
    command = Command(
        uuid=uuid4(),
        author=author,
        role=role,
        intent=INTENT.validate_python(intent),
        reason="autopilot (rule): the loss <b>rises</b>" if role == "agent" else None,
    )
    cluster.do(trainer.server.submit(command))


def propose(cluster: FakeCluster, trainer: FakeTrainer, intent: dict[str, Any]) -> None:
    """A proposal of the agent."""
    told(cluster, trainer, "agent", "pilot", {"kind": "propose", "intent": intent})


def proposals(cluster: FakeCluster, trainer: FakeTrainer) -> tuple[ProposalView, ...]:
    """Every proposal of the run."""
    return cluster.do(trainer.server.snapshot()).agent.proposals


@pytest.fixture
def proposed(cluster: FakeCluster, trainer: FakeTrainer) -> FakeTrainer:
    """A run whose agent has proposed a change of high risk."""
    told(cluster, trainer, "operator", "ann", {"kind": "start_agent", "settings": {"policy": "rule"}})
    propose(cluster, trainer, TENFOLD)
    return trainer


def write(app: AppTest, key: str, value: str) -> AppTest:
    """Fill in a text field."""
    field = next(field for field in app.text_input if str(field.key).startswith(key))
    field.set_value(value).run()
    return app


def test_proposal_says_what_why_how_risky_and_until_when(visit: Visit, proposed: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert not app.exception
    said = html(app)
    assert "high risk" in said
    assert "lr x 10" in said
    assert "the loss &lt;b&gt;rises&lt;/b&gt;" in said
    assert "rejected in 1" in said, "in 15 minutes"
    assert "1 proposal" in text(app)
    assert "**rule**, guarded, started by ann" in text(app)


def test_approved_proposal_becomes_the_persons_command(
    visit: Visit, cluster: FakeCluster, proposed: FakeTrainer
) -> None:
    app = press(visit(run="gpt2-1"), "Approve")
    (view,) = proposals(cluster, proposed)
    assert (view.verdict, view.by) == ("approved", "ada")
    made = cluster.do(proposed.server.snapshot()).commands[-1].command
    assert (made.describe(), made.author) == ("lr x 10", "ada")
    app.run()
    assert "approved by ada" in html(app)
    assert "Approve" not in [button.label for button in app.button]
    assert "approve proposal 'lr x 10'" in text(app).replace("\\", "").replace("&#39;", "'")


def test_proposal_on_trial_says_how_far_it_is_and_can_only_be_rejected(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    told(cluster, trainer, "operator", "ann", {"kind": "start_agent", "settings": {"mode": "auto", "trial_steps": 5}})
    propose(cluster, trainer, TENFOLD)
    app = visit(run="gpt2-1")
    assert not app.exception
    assert "on trial: saves a checkpoint before 5 steps without it and with it" in html(app)
    assert "Approve" not in [button.label for button in app.button]
    press(write(app, "why/", "not now"), "Reject it")
    (view,) = proposals(cluster, trainer)
    assert (view.verdict, view.note) == ("rejected", "not now")


def test_edited_proposal_is_what_the_person_wrote(visit: Visit, cluster: FakeCluster, proposed: FakeTrainer) -> None:
    app = write(visit(run="gpt2-1"), "edited/", "set lr*=2")
    press(app, "Approve this")
    (view,) = proposals(cluster, proposed)
    assert view.verdict == "edited"
    assert cluster.do(proposed.server.snapshot()).commands[-1].command.describe() == "lr x 2"


@pytest.mark.parametrize("line", ["", "make it better", "set lr=fast", "stop; rm -rf"])
def test_edit_that_is_no_command_changes_nothing(
    visit: Visit, cluster: FakeCluster, proposed: FakeTrainer, line: str
) -> None:
    app = press(write(visit(run="gpt2-1"), "edited/", line), "Approve this")
    assert proposals(cluster, proposed)[0].is_open
    assert "is no command for a proposal" in " ".join(each.value for each in app.run().warning)


def test_rejected_proposal_keeps_the_note(visit: Visit, cluster: FakeCluster, proposed: FakeTrainer) -> None:
    press(write(visit(run="gpt2-1"), "why/", "not before the evaluation"), "Reject it")
    (view,) = proposals(cluster, proposed)
    assert (view.verdict, view.note) == ("rejected", "not before the evaluation")


def test_proposal_that_was_answered_elsewhere_is_said(
    visit: Visit, cluster: FakeCluster, proposed: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    (view,) = proposals(cluster, proposed)
    told(
        cluster, proposed, "operator", "bob", {"kind": "answer_proposal", "proposal": str(view.uuid), "approve": False}
    )
    press(app, "Approve")
    assert "is already rejected by bob" in " ".join(each.value for each in app.run().warning)


def test_low_risk_is_done_at_once_and_listed(visit: Visit, cluster: FakeCluster, proposed: FakeTrainer) -> None:
    propose(cluster, proposed, {"kind": "set_learning_rate", "factor": 0.5})
    assert "made at once" in html(visit(run="gpt2-1"))


def test_viewer_sees_proposals_and_no_button(
    visit: Visit, proposed: FakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SessionRecord(secret_sha256="", expires_at=float("inf"), role="viewer")
    monkeypatch.setattr("ui.gateway.read_session", lambda *_: session)
    monkeypatch.setattr("ui.gateway.token_of", lambda *_: TOKEN)
    app = visit(run="gpt2-1")
    assert "lr x 10" in html(app)
    assert {"Approve", "Approve this", "Reject it", "Stop the agent"}.isdisjoint(each.label for each in app.button)


def test_agent_is_started_and_stopped(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert "None. An agent watches" in text(app)
    assert list(app.selectbox(key="agent_policy").options) == list(POLICIES.values()), "a run without sources"
    press(app, "Start")
    sent = cluster.do(trainer.server.snapshot()).commands[-1].command.intent
    assert isinstance(sent, StartAgent)
    assert (sent.settings.policy, sent.settings.mode, sent.settings.deadline_s) == ("auto", "guarded", 900.0)
    assert sent.settings.every_steps == 25
    press(app.run(), "Stop the agent")
    assert isinstance(cluster.do(trainer.server.snapshot()).commands[-1].command.intent, StopAgent)


@pytest.mark.parametrize(
    ("intent", "line"),
    [
        (TENFOLD, "set lr*=10"),
        ({"kind": "set_learning_rate", "value": 1e-4}, "set lr=0.0001"),
        ({"kind": "set_knobs", "changes": [{"knob": "weight_decay", "factor": 2.0}]}, "set weight_decay*=2"),
        ({"kind": "set_knobs", "changes": [{"knob": "flag", "value": True}]}, "set flag=true"),
        ({"kind": "pause"}, ""),
        ({"kind": "set_learning_rate", "factor": 0.5, "group": 1}, ""),
    ],
)
def test_line_that_can_be_edited(intent: dict[str, Any], line: str) -> None:
    assert line_of(INTENT.validate_python(intent)) == line
