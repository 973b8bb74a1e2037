"""The Dataset panel of a run: shares, shards, weights that are set on confirmation, and records that are sent."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from control_plane.api.messages import Point, Report
from control_plane.console_login import SessionRecord
from control_plane.core.model.data import share_exponent
from control_plane.core.model.intents.agent import StartAgent
from control_plane.core.model.intents.data import AddShards, SetMixture
from control_plane.core.model.limits import Limit
from control_plane.gateway.data.announcer import ShardAnnouncer
from control_plane.storage.layout import RunFiles
from tests.ui.conftest import Visit
from tests.ui.data.mixing_trainer import CONFIG, MixingTrainer
from tests.ui.fake_cluster import TOKEN, FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.test_branches import html
from tests.ui.test_console import press, text
from ui.panels.dataset import shares


def with_files(cluster: FakeCluster, root: Path, run: str = "gpt2-1") -> ShardAnnouncer:
    """Give a run a folder with its config, and return what announces its shards."""
    files = RunFiles(root / run)
    files.root.mkdir(parents=True)
    files.config.write_text(CONFIG)
    cluster.runs.files = lambda run: files  # type: ignore[method-assign]
    return ShardAnnouncer(root, cluster.runs)


@pytest.fixture
def announcer(cluster: FakeCluster, tmp_path: Path) -> ShardAnnouncer:
    return with_files(cluster, tmp_path)


@pytest.fixture
def mixing(cluster: FakeCluster, announcer: ShardAnnouncer) -> FakeTrainer:
    """A run that draws from two sources."""
    made = cluster.create("gpt2-1", "gpt2-local", rank_0=MixingTrainer, total_steps=500)
    cluster.train(made, 50)
    return made


def send(app: AppTest, name: str, content: bytes) -> AppTest:
    """Choose a file and send it."""
    app.get("file_uploader")[0].set_value((name, content, "application/octet-stream")).run()  # type: ignore[attr-defined]
    return press(app, "Send")


def test_sources_are_shown_with_share_weight_and_records(visit: Visit, mixing: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    assert not app.exception
    said = html(app)
    assert "<b>web</b> <small>jsonl</small>" in said
    assert "<b>fresh</b> <small>jsonl, live</small>" in said
    assert "100.0%" in said
    assert "18,204" in said


def test_held_out_losses_are_shown_with_their_change(visit: Visit, cluster: FakeCluster, mixing: FakeTrainer) -> None:
    assert "held-out" not in html(visit(run="gpt2-1"))
    for step, loss in ((10, 3.0), (20, 2.5)):
        values = {"eval_loss/web": loss, "eval_error/web": 0.1, "eval_loss/web/poems": loss + 1}
        points = tuple(Point(step=step, name=name, value=value, time_s=0.0) for name, value in values.items())
        cluster.do(mixing.server.report(Report(generation=1, points=points)))
    said = html(visit(run="gpt2-1"))
    assert "<th>held out</th>" in said
    assert "<b>web</b> held-out loss 2.5 ± 0.1<span>-0.5 since the one before · step 20" in said
    assert "<b>web/poems</b> held-out loss 3.5<span>" in said


def test_weights_are_previewed_and_set_on_confirmation(visit: Visit, cluster: FakeCluster, mixing: FakeTrainer) -> None:
    app = visit(run="gpt2-1")
    button = next(one for one in app.button if one.label == "Apply weights")
    assert button.disabled, "nothing is changed"
    next(one for one in app.slider if one.label == "fresh").set_value(0.7).run()
    assert "fresh: 30.0% → <b>50.0%</b>" in html(app)
    press(app, "Apply weights")
    sent = cluster.do(mixing.server.snapshot()).commands[-1].command.intent
    assert isinstance(sent, SetMixture)
    assert sent.weights == {"fresh": 0.7}, "only what was changed"


@pytest.mark.parametrize("is_granted", [True, False])
def test_policies_of_mixtures_are_offered_where_there_are_sources_and_refused_without_the_limit(
    visit: Visit, cluster: FakeCluster, announcer: ShardAnnouncer, is_granted: bool
) -> None:
    limits = {"mixture/*": Limit(roles=("operator", "agent"))} if is_granted else {}
    made = cluster.create("gpt2-1", "gpt2-local", rank_0=MixingTrainer, limits=limits, total_steps=500)
    cluster.train(made, 50)
    app = visit(run="gpt2-1")
    app.selectbox(key="agent_policy").set_value("ado").run()
    (start,) = (one for one in app.button if one.label == "Start")
    assert start.disabled != is_granted
    assert ("no limit of this run lets an agent do that" in " ".join(one.value for one in app.warning)) != is_granted
    if is_granted:
        press(app, "Start")
        sent = cluster.do(made.server.snapshot()).commands[-1].command.intent
        assert isinstance(sent, StartAgent)
        settings = sent.settings
        assert (settings.policy, settings.every_steps, settings.max_changes) == ("ado", 50, 1000)


def test_records_are_sent_announced_and_shown(
    visit: Visit, cluster: FakeCluster, mixing: FakeTrainer, announcer: ShardAnnouncer
) -> None:
    app = send(visit(run="gpt2-1"), "more.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    assert "fresh: 2 new records." in text(app.run()).replace("\\", "")
    assert "waits for its command" in html(app)
    announcer.wake("gpt2-1", "fresh")
    cluster.do(announcer.look())
    assert isinstance(cluster.do(mixing.server.snapshot()).commands[-1].command.intent, AddShards)
    cluster.do(mixing.step())
    cluster.do(announcer.look())
    said = html(app.run())
    assert "drawn from step 51 on" in said
    assert "by ada" in said


def test_bad_record_is_named_by_its_line_and_nothing_is_taken_in(visit: Visit, mixing: FakeTrainer) -> None:
    app = send(visit(run="gpt2-1"), "more.jsonl", b'{"text": "a"}\n{"label": 1}\n').run()
    assert "line 2: 1 of its fields are not in the schema" in " ".join(one.value for one in app.warning).replace(
        "\\", ""
    )
    assert "waits for" not in html(app)


def test_viewer_sees_the_sources_and_no_button(
    visit: Visit, mixing: FakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SessionRecord(secret_sha256="", expires_at=float("inf"), role="viewer")
    monkeypatch.setattr("ui.gateway.read_session", lambda *_: session)
    monkeypatch.setattr("ui.gateway.token_of", lambda *_: TOKEN)
    app = visit(run="gpt2-1")
    assert "18,204" in html(app)
    assert {"Apply weights", "Send"}.isdisjoint(each.label for each in app.button)


def test_run_without_sources_has_no_panel(visit: Visit, trainer: FakeTrainer) -> None:
    assert "Dataset" not in text(visit(run="gpt2-1"))


def test_shares_follow_weights_and_temperature() -> None:
    assert shares({"a": 0.25, "b": 0.75, "c": 0.0}, 1.0) == {"a": 0.25, "b": 0.75, "c": 0.0}
    assert shares({"a": 0.0}, 1.0) == {"a": 0.0}
    mixture = {"a": {"weight": 1.0, "share": 1 / 3}, "b": {"weight": 4.0, "share": 2 / 3}}
    assert share_exponent(mixture) == pytest.approx(0.5), "temperature 2"
    assert share_exponent({"a": {"weight": 1.0, "share": 1.0}}) == 1.0
