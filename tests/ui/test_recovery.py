"""Losses and checkpoints on a run's page."""

from datetime import UTC, datetime

from streamlit.testing.v1 import AppTest

from control_plane.api.messages import RecoveryView, Restarting
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointFailed,
    Death,
    Entry,
    GenerationStarted,
    Record,
    RefusedCheckpoint,
)
from tests.core import examples
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from tests.ui.test_console import press, text
from ui.charts.palette import LIGHT
from ui.panels.checkpoints import ages, failed_since, newest, refused, row
from ui.panels.recovery import bar, lost_words, stage_words, waiting, way_back

LOST = RecoveryView(
    generation=1,
    lost_at="2026-01-01T00:01:00Z",
    step=137,
    silent_s=2.1,
    deaths=(Death(rank=1, node="node-3", reason="its <process> ended"),),
)
STARTED = LOST.model_copy(update={"checkpoint": "step-00000120-g1", "resumed_step": 120, "world_size": 1})
BACK = STARTED.model_copy(update={"lost_steps": 17, "phases_s": {"detect": 2.1, "re-form": 3.0, "load": 1.0}})
LATER = datetime.fromisoformat("2026-01-01T00:01:07Z")


def html(app: AppTest) -> str:
    """What the page says in HTML of its own."""
    return "\n".join(str(part.proto.body) for part in app.get("html"))


def entries(*records: Record) -> list[Entry]:
    """These records, a second apart."""
    return [Entry(seq=n, time=f"2026-01-01T00:00:{n:02d}Z", record=record) for n, record in enumerate(records, start=1)]


def committed(name: str, step: int = 10, **more: object) -> CheckpointCommitted:
    """A checkpoint."""
    body = {"checkpoint": name, "step": step, "generation": 1, "path": "p", "size_bytes": 1_500_000}
    return CheckpointCommitted.model_validate(body | more)


def failed(step: int) -> CheckpointFailed:
    """A save that came to nothing."""
    return CheckpointFailed(checkpoint="c", step=step, generation=1, reason="disk full")


def test_run_page_while_recovering_says_who_was_lost_and_what_is_on(
    visit: Visit,
    cluster: FakeCluster,
    trainer: FakeTrainer,
) -> None:
    cluster.do(trainer.lose([1], "its process ended"))
    app = visit(run="gpt2-1")
    assert not app.exception
    assert "Trainers failed at step 50\\: rank 1 on node-0 died \\(its process ended\\)" in app.warning[0].value
    assert "**re-form and load**" in app.warning[0].value
    assert "recovering" in text(app)
    assert "None yet. If the trainers fail now" in text(app)


def test_run_page_of_a_recovering_run_takes_commands(
    visit: Visit,
    cluster: FakeCluster,
    trainer: FakeTrainer,
) -> None:
    cluster.do(trainer.lose([1], "its process ended"))
    app = press(visit(run="gpt2-1"), "Pause")
    assert cluster.do(trainer.server.snapshot()).commands[-1].what == "pause"
    assert len(app.warning) == 1, "the notice, and no refusal"


def test_run_page_after_a_recovery_shows_its_price(visit: Visit, cluster: FakeCluster) -> None:
    made = cluster.create("gpt2-1", total_steps=500, save_every=20, began_s_ago=60)
    cluster.train(made, 50)
    cluster.do(made.lose([2, 3], "<b>out of memory</b>"))
    cluster.do(made.come_back(ranks=2, form_s=3.0, refuse={"step-00000040-g1": "shard 1 is damaged"}))
    cluster.train(made, 1)
    app = visit(run="gpt2-1")
    assert not app.exception
    assert not app.warning
    said = html(app)
    assert "ranks 2 and 3 on node-0 died (&lt;b&gt;out of memory&lt;/b&gt;)" in said
    assert "restored step-00000020-g1 (step 20) · 4 → 2 ranks · 30 steps lost · recovered in" in said
    assert "step-00000040-g1 was refused: shard 1 is damaged" in said
    assert "re-form 3.0 s" in said
    assert "<em>refused</em>" in said
    assert "training again at step 21: 30 steps lost" in text(app)


def test_lost_words_say_when_they_were_heard_last() -> None:
    assert lost_words(LOST, UTC).endswith(" died \\(its \\<process\\> ended\\).** Last heartbeat at 00:00:57.")


def test_stage_words_say_which_phase_is_on_and_for_how_long() -> None:
    forming = stage_words(LOST, LATER)
    assert "detect 2.1 s" in forming
    assert "**re-form and load**, 7 s so far" in forming
    stepping = stage_words(STARTED, LATER)
    assert "generation 2 restored" in stepping
    assert "**first step**, 7 s since the failure" in stepping


def test_way_back_compares_the_ranks_if_it_knows_both_numbers() -> None:
    first: GenerationStarted = examples.started(ranks=2)
    assert way_back(BACK, {1: first}) == (
        "restored step-00000120-g1 (step 120) · 2 → 1 ranks · 17 steps lost · recovered in 6.1 s"
    )
    assert "· 1 rank ·" in way_back(BACK, {})
    assert way_back(LOST, {}) == "no new trainers yet"


def test_bar_is_as_long_as_the_recovery_in_the_scale_of_the_longest() -> None:
    assert 'style="width:50.0%"' in bar(BACK, 12.2, LIGHT)
    assert "detect</" not in bar(BACK, 12.2, LIGHT)
    assert "re-form 3.0 s" in bar(BACK, 12.2, LIGHT)
    assert bar(LOST, 12.2, LIGHT) == ""


def test_failed_saves_are_an_alert_until_one_succeeds() -> None:
    assert failed_since(entries(failed(10), committed("a"), failed(20), failed(30))) == [failed(20), failed(30)]
    assert failed_since(entries(failed(10), committed("a"))) == []


def test_run_page_with_a_failed_save_says_so(
    visit: Visit,
    cluster: FakeCluster,
    trainer: FakeTrainer,
) -> None:
    cluster.do(trainer.fail_a_save("no space left"))
    assert "Saving a checkpoint at step 50 failed\\: no space left" in visit(run="gpt2-1").error[0].value


def test_checkpoints_are_listed_newest_first() -> None:
    found = [committed("old", 10), committed("new", 1200), committed("bad", 1100)]
    assert [each.checkpoint for each in newest(found)] == ["new", "bad", "old"]


def test_checkpoint_row_has_what_is_known() -> None:
    old, bad = committed("old", 10, pinned=True, label="<x>"), committed("bad", 1100)
    known = entries(old, examples.started().model_copy(update={"refused": (_refused("bad"),)}))
    said = row(old, ages(known, LATER).get("old"), False, "main")
    assert "old <em>pinned</em> <span>step 10 · 1 min · 1.5 MB</span><span>&lt;x&gt;</span>" in said
    assert refused(known) == {"bad"}
    assert "bad <em>refused</em> <span>step 1,100 · 1.5 MB · main</span>" in row(bad, None, True, "calm")


def _refused(name: str) -> RefusedCheckpoint:
    return RefusedCheckpoint(checkpoint=name, reason="damaged")


def test_start_that_is_put_off_is_told_with_a_warning_where_it_was_often() -> None:
    told = Restarting(failures=4, wait_s=4.0, left_s=3.4, alert=True, reason="killed")
    assert waiting(told) == [
        "starting again in 3 s after 4 failures without a new step: killed",
        "the run fails again and again: see its logs, or stop it",
    ]
    assert len(waiting(told.model_copy(update={"failures": 2, "alert": False}))) == 1
