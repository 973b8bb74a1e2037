"""The knobs, the cancels and the checkpoints of the console, without a browser."""

import pytest

from control_plane.core.model.commands import Change, SaveCheckpoint, SetKnobs, SetLearningRate
from control_plane.core.model.intents import Cancel
from control_plane.core.model.knobs import KnobSpec
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import KNOB_FACTS, FakeTrainer
from tests.ui.test_console import press, text
from tests.ui.test_recovery import html
from ui.panels.knobs import may_be, table


def test_knobs_in_force_are_listed_with_what_they_may_be(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    shown = table(cluster.do(trainer.server.snapshot()))
    assert "<td>weight_<wbr>decay <span>of the optimizer</span></td><td>0.01, 0</td><td>0 to 1</td>" in shown
    assert "<td>(0.9, 0.999)</td><td>numbers, 0 to 1</td>" in shown
    assert "<td>true</td><td>true or false</td>" in shown
    assert "steps &lt;b&gt;between&lt;/b&gt; two" in shown
    assert shown in html(visit(run="gpt2-1"))


def test_apply_sends_all_edited_knobs_as_one_command(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    seq = cluster.do(trainer.server.snapshot()).seq
    app.number_input(key="knob/weight_decay").set_value(0.1)
    app.text_input(key="knob/betas").input("0.9, 0.95")
    app.number_input(key="knob/eval_steps").set_value(20)
    app.selectbox(key="knob/augment").set_value("false")
    app.selectbox(key="knobs_group").set_value("decay")
    app.text_input(key="knobs_reason").input("it overfits")
    app = press(app, "Set knobs")
    assert not app.exception
    (view,) = cluster.do(trainer.server.snapshot()).commands
    assert view.command.intent == SetKnobs(
        changes=(
            Change(knob="weight_decay", value=0.1, group=0),
            Change(knob="betas", value=(0.9, 0.95), group=0),
            Change(knob="eval_steps", value=20),
            Change(knob="augment", value=False),
        )
    )
    assert (view.command.reason, view.command.based_on_seq) == ("it overfits", seq)
    cluster.do(trainer.step())
    app = visit(run="gpt2-1")
    assert "weight\\_decay 0.01, 0 before" in text(app) or "weight_<wbr>decay" in html(app)
    assert "<td>0.1, 0</td>" in html(app)
    assert app.number_input(key="knob/weight_decay").value is None


def test_what_was_accepted_is_no_longer_in_the_form(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    app.number_input(key="knob/weight_decay").set_value(0.1)
    app = press(app, "Set knobs")
    assert app.number_input(key="knob/weight_decay").value is None
    assert not app.error


def test_apply_on_a_view_that_is_stale_is_refused_and_says_who(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    cluster.send(trainer, SetLearningRate(value=1e-4))
    app.number_input(key="knob/weight_decay").set_value(0.1)
    app = press(app, "Set knobs")
    assert "the run has changed since" in app.error[0].value
    assert "lr = 0.0001" in app.error[0].value
    assert len(cluster.do(trainer.server.snapshot()).commands) == 1
    assert app.number_input(key="knob/weight_decay").value == 0.1
    assert not press(app, "Set knobs").error
    assert len(cluster.do(trainer.server.snapshot()).commands) == 2


@pytest.mark.parametrize("betas", ["", "a, b", "0.9,", "nan, 1"])
def test_apply_of_no_value_says_so_and_sends_nothing(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer, betas: str
) -> None:
    app = visit(run="gpt2-1")
    app.text_input(key="knob/betas").input(betas)
    app = press(app, "Set knobs")
    assert len(app.error) == 1
    assert cluster.do(trainer.server.snapshot()).commands == ()


def test_apply_while_nobody_answers_is_the_same_command_when_pressed_again(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    cluster.close_gateway()
    app.number_input(key="knob/eval_steps").set_value(20)
    app = press(app, "Set knobs")
    assert any("it is safe to send it again" in part.value for part in app.error)
    cluster.open_gateway()
    press(app, "Set knobs")
    assert len(cluster.do(trainer.server.snapshot()).commands) == 1


def test_run_without_other_knobs_says_so(visit: Visit, cluster: FakeCluster) -> None:
    cluster.create("gpt2-1")
    app = visit(run="gpt2-1")
    assert "have not listed any other knob" in text(app)
    assert "Set knobs" not in [button.label for button in app.button]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"kind": "number"}, "number"),
        ({"kind": "integer", "least": 1}, "integer, at least 1"),
        ({"kind": "number", "most": 0.5}, "at most 0.5"),
        (KNOB_FACTS["augment"], "true or false"),
    ],
)
def test_bounds_are_told_in_a_few_words(facts: dict[str, object], said: str) -> None:
    assert may_be(KnobSpec.parse("knob", facts) or KnobSpec("knob")) == said


def test_cancel_takes_back_what_is_not_settled(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    cluster.send(trainer, SetLearningRate(value=1e-4))
    app = press(visit(run="gpt2-1"), "Cancel")
    cancel = cluster.do(trainer.server.snapshot()).commands[-1].command
    assert isinstance(cancel.intent, Cancel)
    cluster.do(trainer.step())
    app = visit(run="gpt2-1")
    assert "cancelled at step 50 by ada" in text(app)
    assert "cancel 'lr = 0.0001'" in text(app)
    assert "Cancel" not in [button.label for button in app.button]


def test_cancel_of_what_is_settled_by_now_shows_the_refusal(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    cluster.send(trainer, SetLearningRate(value=1e-4))
    app = visit(run="gpt2-1")
    cluster.do(trainer.step())
    assert "cannot be cancelled" in press(app, "Cancel").warning[0].value


def test_checkpoint_is_pinned_unpinned_and_deleted(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    for note in ("before the <surgery>", "after it"):
        cluster.send(trainer, SaveCheckpoint(note=note))
        cluster.do(trainer.step())
    app = visit(run="gpt2-1")
    assert "before the &lt;surgery&gt;" in html(app)
    newest, older = app.selectbox(key="keeping_checkpoint").options
    assert "cannot be deleted" in press(app, "Delete permanently").warning[0].value
    app = visit(run="gpt2-1")
    app.selectbox(key="keeping_checkpoint").set_value(older).run()
    app = press(app, "Pin")
    assert "pinned" in html(app)
    app = press(app, "Unpin")
    press(app, "Delete permanently")
    left = cluster.do(trainer.server.snapshot()).checkpoints
    assert [each.checkpoint for each in left] == [newest]
