"""Inbox of alerts: what it says, what its buttons send, marks on the charts, and trust beside checkpoints."""

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from control_plane.api.messages import AlertView, Report, StepRange
from control_plane.api.suggestions import suggested_intent
from control_plane.console_login import SessionRecord
from control_plane.core.model.health import Alert, Cleared, Evidence, HealthChange
from control_plane.core.model.intents import Rollback, SetLearningRate
from control_plane.core.model.intents.server import AcknowledgeAlert, SnoozeAlert
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import TOKEN, FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.test_branches import html
from tests.ui.test_charts import history, series
from tests.ui.test_console import press, text
from ui.charts.charts import View, chart_options
from ui.charts.layout import alert_marks
from ui.panels.alerts import evidence_words, row

SPIKE = Alert(
    kind="loss_spike",
    level="critical",
    step=45,
    onset_step=44,
    sentence="The loss is 9.5, <b>far</b> above its window.",
    evidence=(Evidence(sign="loss", value=9.5, threshold=4.0, window_steps=128, mean=3.1),),
    suggestion="rollback trusted --set lr*=0.5",
)
DEAD = Alert(
    kind="dead_units",
    level="warning",
    step=46,
    onset_step=40,
    subject="h.3",
    sentence="98 % of the units of h.3 are dead.",
    evidence=(Evidence(sign="dormant/h.3", value=0.98, threshold=0.5),),
    suggestion="set lr*=0.5",
)


def report(cluster: FakeCluster, trainer: FakeTrainer, *raised: Alert, cleared: tuple[Cleared, ...] = ()) -> None:
    """What rank 0 says of the training's health."""
    change = HealthChange(raised=raised, cleared=cleared)
    cluster.do(trainer.server.report(Report(generation=trainer.generation, health=(change,))))


def click(app: AppTest, label: str) -> AppTest:
    """Press the first button with this label."""
    return press(app, label)


def intents(cluster: FakeCluster, trainer: FakeTrainer) -> list[Any]:
    """Every command of the run."""
    return [view.command.intent for view in cluster.do(trainer.server.snapshot()).commands]


@pytest.fixture
def alerted(cluster: FakeCluster, trainer: FakeTrainer) -> FakeTrainer:
    """A run of 50 steps with two alerts."""
    report(cluster, trainer, DEAD, SPIKE)
    return trainer


def test_run_page_without_alerts_has_no_inbox(visit: Visit, trainer: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert "Acknowledge" not in [button.label for button in app.button]
    assert 'class="alert' not in html(app)


def test_inbox_says_what_is_wrong_since_when_and_on_what_evidence(visit: Visit, alerted: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert not app.exception
    said = html(app)
    assert said.index("loss spike") < said.index("dead units"), "the worst is first"
    assert "The loss is 9.5, &lt;b&gt;far&lt;/b&gt; above its window." in said
    assert "since step 44" in said
    assert "loss 9.5, limit 4, mean 3.1 over 128 steps" in said
    assert "2 alerts" in text(app)
    assert "What people do:" in text(app)
    assert "AlertRaised" in text(app), "the log has them, too"


def test_acknowledged_alert_leaves_the_inbox_for_the_earlier_ones(
    visit: Visit, cluster: FakeCluster, alerted: FakeTrainer
) -> None:
    app = click(visit(run="gpt2-1"), "Acknowledge")
    assert isinstance(intents(cluster, alerted)[-1], AcknowledgeAlert)
    said = html(app.run())
    assert "acknowledged by ada" in said
    assert [view.alert.kind for view in cluster.do(alerted.server.snapshot()).alerts if view.needs_attention] == [
        "dead_units"
    ]


def test_all_alerts_are_acknowledged_at_once(visit: Visit, cluster: FakeCluster, alerted: FakeTrainer) -> None:
    app = click(visit(run="gpt2-1"), "Acknowledge all 2")
    assert [type(intent) for intent in intents(cluster, alerted)] == [AcknowledgeAlert] * 2
    assert "Acknowledge" not in [button.label for button in app.run().button]


def test_one_kind_in_several_layers_is_answered_at_once(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    report(cluster, trainer, *(DEAD.model_copy(update={"subject": f"h.{at}"}) for at in range(8)))
    app = visit(run="gpt2-1")
    said = html(app)
    assert said.count("<b>dead units") == 6
    assert "And 2 more of this kind" in text(app)
    assert [button.label for button in app.button].count("Do it") == 1
    click(app, "Acknowledge these 8")
    assert not [view for view in cluster.do(trainer.server.snapshot()).alerts if view.needs_attention]


def test_alert_is_snoozed_for_some_steps(visit: Visit, cluster: FakeCluster, alerted: FakeTrainer) -> None:
    app = click(visit(run="gpt2-1"), "For 100 steps")
    (intent,) = intents(cluster, alerted)
    assert isinstance(intent, SnoozeAlert)
    assert intent.until_step == alerted.done + 100
    assert "snoozed until step 150" in html(app.run())


def test_suggested_command_is_sent_with_the_alert_as_its_reason(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    report(cluster, trainer, DEAD)
    click(visit(run="gpt2-1"), "Do it")
    (view,) = cluster.do(trainer.server.snapshot()).commands
    assert view.command.intent == SetLearningRate(factor=0.5)
    assert view.command.reason is not None
    assert view.command.reason.endswith("dead units")


def test_viewer_sees_alerts_and_no_button(visit: Visit, alerted: FakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SessionRecord(secret_sha256="", expires_at=float("inf"), role="viewer")
    monkeypatch.setattr("ui.gateway.read_session", lambda *_: session)
    monkeypatch.setattr("ui.gateway.token_of", lambda *_: TOKEN)
    app = visit(run="gpt2-1")
    assert "loss spike" in html(app)
    assert {"Acknowledge", "Do it"}.isdisjoint(button.label for button in app.button)
    assert "Suggested: `steer rollback trusted --set lr*=0.5`" in text(app)


@pytest.mark.parametrize(
    ("line", "intent"),
    [
        ("set lr*=0.5", SetLearningRate(factor=0.5)),
        (
            "rollback trusted --set lr*=0.5",
            Rollback(checkpoint="trusted", first=(SetLearningRate(factor=0.5),)),
        ),
        ("look at the data", None),
        ("rollback trusted --set", None),
        ("rollback trusted --yes now", None),
        ("rollback trusted --branch 200", None),
        ("set lr=fast", None),
        ("set 'lr*=0.5", None),
    ],
)
def test_suggestion_is_a_command_or_text_and_never_a_guess(line: str, intent: Any) -> None:
    assert suggested_intent(line) == intent


def view_of(alert: Alert, **more: Any) -> AlertView:
    """An open alert."""
    fields = {"seq": 7, "alert": alert, "stage": "open", "raised_at": "2026-01-01T00:01:00Z"}
    return AlertView.model_validate(fields | more)


def test_alerts_are_marked_where_they_began_and_named_on_the_chart_of_their_sign() -> None:
    line = [StepRange(branch="main", first=0, last=None)]
    marked = alert_marks([view_of(SPIKE), view_of(DEAD)], "step", 0.0, line, (1.0, 60.0))
    assert [(mark.x, mark.label, mark.level) for mark in marked] == [
        (40.0, "", "warning"),
        (44.0, "loss spike", "critical"),
    ]
    made = chart_options(history("loss", dict.fromkeys(range(1, 60), 2.0)), marked, View())
    on_loss, on_rate = series(made, "0/alerts"), series(made, "1/alerts")
    assert [one["label"]["show"] for one in on_loss["data"]] == [True, True]
    assert [one["label"]["show"] for one in on_rate["data"]] == [False, False]
    assert [one["xAxis"] for one in on_rate["markLine"]["data"]] == [40, 44]
    assert series(made, "0/interventions")["markLine"]["data"] == [], "alerts are no commands"


def test_alerts_of_a_branch_that_was_left_are_not_marked() -> None:
    line = [StepRange(branch="main", first=0, last=42), StepRange(branch="calm", first=42, last=None)]
    assert [mark.label for mark in alert_marks([view_of(SPIKE), view_of(DEAD)], "step", 0.0, line)] == ["dead units"]


def test_evidence_that_is_not_finite_is_said() -> None:
    assert evidence_words(Evidence(sign="loss", value=float("nan"))) == "loss NaN"
    assert (
        evidence_words(Evidence(sign="grad_norm", value=float("inf"), threshold=2.0)) == "grad_norm infinite, limit 2"
    )


def test_alert_that_a_reflex_answered_says_so() -> None:
    assert "reflex loss_spike has answered" in row(view_of(SPIKE, reflex="loss_spike"))
    assert "its budget is used up" in row(view_of(SPIKE, reflex="loss_spike", declined="its budget is used up"))


def test_checkpoints_show_their_trust_and_the_dialog_warns_of_a_suspect_one(visit: Visit, cluster: FakeCluster) -> None:
    made = cluster.create("gpt2-1", "gpt2-local", total_steps=500, save_every=20)
    made.health = "trusted"
    cluster.train(made, 50)
    report(cluster, made, SPIKE.model_copy(update={"onset_step": 35}))
    app = visit(run="gpt2-1")
    assert not app.exception
    said = html(app)
    assert said.index('<em class="suspect">suspect</em>') < said.index('<em class="trusted">trusted</em>')
    assert "saved during: loss spike" in said
    app = next(button for button in app.button if button.key == "back/step-00000040-g1").click().run()
    assert "Suspect: it was saved during loss spike. The newest trusted one is" in app.warning[0].value
    app = visit(run="gpt2-1")
    app = next(button for button in app.button if button.key == "back/trusted").click().run()
    press(app, "Roll back")
    assert intents(cluster, made)[-1] == Rollback(checkpoint="step-00000020-g1")
