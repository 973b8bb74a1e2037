"""The console without a browser: inputs are set, buttons are pressed, and what it says is read."""

from pathlib import Path
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from control_plane.api.messages import Receipt
from control_plane.core.model.commands import Command, Pause, SetLearningRate
from control_plane.core.rules.capacity import Demand
from control_plane.runs.queue_files import QueueEntry
from control_plane.runs.queued_run import QueuedRun
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer


def text(app: AppTest) -> str:
    """Everything that the page says in words."""
    parts = [*app.markdown, *app.text, *app.caption, *app.error, *app.warning, *app.info, *app.success, *app.subheader]
    return "\n".join(str(part.value) for part in parts)


def apply(app: AppTest, value: str, how: str = "Set to", reason: str = "") -> AppTest:
    """Fill in the form and press Apply."""
    app.text_input(key="lr_value").input(value)
    app.text_input(key="lr_reason").input(reason)
    if how != "Set to":
        next(one for one in app.button_group if one.key == "lr_how").set_value(how)
    return next(button for button in app.button if button.label == "Apply").click().run()


def press(app: AppTest, label: str) -> AppTest:
    """Press a button of the page's head."""
    return next(button for button in app.button if button.label == label).click().run()


def test_runs_page_without_runs_says_how_to_submit_one(visit: Visit) -> None:
    app = visit()
    assert "There are no runs yet" in text(app)
    assert "steer submit" in app.code[0].value


def test_runs_page_lists_name_status_and_step(visit: Visit, trainer: FakeTrainer) -> None:
    said = text(visit())
    assert "running" in said
    assert "4" in said


def test_run_page_of_a_live_run_shows_it(visit: Visit, trainer: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert not app.exception
    assert app.subheader[0].value == "gpt2-local"
    assert "running" in text(app)
    assert "training started on 4 ranks from step 0" in text(app)


def test_run_page_of_an_unknown_run_says_so_and_links_back(visit: Visit, trainer: FakeTrainer) -> None:
    app = visit(run="gpt2-2")
    assert "There is no run 'gpt2-2'." in app.warning[0].value


def test_run_page_of_a_malformed_run_says_what_a_run_id_is(visit: Visit) -> None:
    assert "is not a valid run id" in visit(run="../etc").error[0].value


def test_apply_of_a_value_is_accepted_then_applied_on_every_rank(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    app = apply(visit(run="gpt2-1"), "1e-4", reason="loss is flat").run()
    assert "waits for the next step boundary" in text(app)
    cluster.do(trainer.step())
    said = text(app.run())
    assert "applied at step 50 on 4 of 4 ranks" in said
    assert "lr 0.0001 now, read back on every rank" in said
    assert "“loss is flat”" in said


def test_apply_of_a_factor_multiplies_the_live_value(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    before = trainer.lr[0]
    apply(visit(run="gpt2-1"), "0.5", how="Multiply by")
    snapshot = cluster.do(trainer.server.snapshot())
    assert snapshot.commands[-1].command.intent == SetLearningRate(factor=0.5)
    assert trainer.lr[0] == before


def test_apply_that_a_rank_rejects_shows_its_reason(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    app = apply(visit(run="gpt2-1"), "9")
    cluster.do(trainer.step())
    assert "rejected at step 50: rank 2: the optimizer's limit is 1.0" in text(app.run())


@pytest.mark.parametrize("value", ["nan", "-1", "0", "1e9", "fast", ""])
def test_apply_of_no_number_says_so_and_sends_nothing(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer, value: str
) -> None:
    app = apply(visit(run="gpt2-1"), value)
    assert len(app.error) == 1
    assert "Value" in app.error[0].value or "value" in app.error[0].value
    assert cluster.do(trainer.server.snapshot()).commands == ()


def test_pause_then_resume_follow_the_run(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    app = press(visit(run="gpt2-1"), "Pause")
    cluster.do(trainer.step())
    app = visit(run="gpt2-1")
    assert "paused" in text(app)
    press(app, "Resume")
    cluster.do(trainer.step())
    assert "running" in text(visit(run="gpt2-1"))


def test_pause_of_a_run_that_is_paused_by_now_shows_the_refusal(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    cluster.send(trainer, Pause())
    assert "already paused" in press(app, "Pause").warning[0].value


def test_stop_asks_first_and_saves(visit: Visit, cluster: FakeCluster, trainer: FakeTrainer) -> None:
    press(visit(run="gpt2-1"), "Stop this run")
    cluster.do(trainer.step())
    app = visit(run="gpt2-1")
    assert "stopped" in text(app)
    assert "Pause" not in [button.label for button in app.button]


def test_gateway_that_goes_away_is_said_and_found_again(
    visit: Visit, cluster: FakeCluster, trainer: FakeTrainer
) -> None:
    app = visit(run="gpt2-1")
    cluster.close_gateway()
    assert "The gateway does not answer" in app.run().error[0].value
    assert app.subheader[0].value == "gpt2-local"
    cluster.open_gateway()
    assert not app.run().error


def test_console_without_a_token_says_where_one_comes_from(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STEERWAY_TOKEN")
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    assert "No token at" in visit().error[0].value


def test_console_without_a_login_shows_nothing(
    visit: Visit, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.create("gpt2-1")
    monkeypatch.setattr("ui.gateway.read_session", lambda *_: None)
    app = visit()
    assert "steer console" in app.error[0].value
    assert "gpt2-1" not in text(app)


def test_console_with_a_wrong_token_says_that_it_is_not_let_in(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_TOKEN", "another-token")
    assert "refuses this console's access" in visit().error[0].value


def test_run_page_of_a_waiting_run_says_that_nothing_was_measured(visit: Visit, cluster: FakeCluster) -> None:
    cluster.create("gpt2-1")
    said = text(visit(run="gpt2-1"))
    assert "No metrics yet" in said
    assert "No trainer has started yet" in said


def test_run_page_of_a_queued_run_says_why_it_waits(visit: Visit, cluster: FakeCluster) -> None:
    demand = Demand(count=1, most=1, per_rank={"CPU": 1.0})
    reason = "quota of ana: 2 of 2 runs"
    entry = QueueEntry(run="gpt2-1", request=uuid4(), owner="ana", since_s=1e9, demand=demand, reason=reason)

    async def stop(entry: QueueEntry, command: Command) -> Receipt:
        raise NotImplementedError

    cluster.runs.servers["gpt2-1"] = QueuedRun(entry, None, stop)  # type: ignore[assignment]
    app = visit(run="gpt2-1")
    assert not app.exception
    assert "In the start queue: waits" in text(app)
    assert "2 of 2 runs" in text(app)
    assert next(button for button in app.button if button.label == "Pause").disabled
    assert not visit().exception
