"""Alerts in the run's state: acknowledged, snoozed, cleared; and what they make of checkpoints."""

import pytest

from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.health import AlertCleared, AlertRaised
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import BranchStarted, CommandAccepted, Entry
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import decisions
from control_plane.core.rules.alert_rules import clear_alert
from control_plane.core.rules.branch_rules import newest_trusted, stands_on
from control_plane.core.rules.checkpoint_rules import retired_checkpoints
from control_plane.core.rules.recovery import resume_point
from control_plane.server.views import (
    MAX_ALERTS_IN_SNAPSHOT,
    MAX_URGENT_ALERTS_IN_SNAPSHOT,
    alerts_of,
    snapshot_of,
)
from tests.core.examples import alert, cleared, command, committed, running, started, uuid


def then(state: RunState, *records: object) -> RunState:
    for record in records:
        evolve(state, Entry(seq=state.seq + 1, time="t", record=record))  # type: ignore[arg-type]
    return state


def stage(state: RunState, step: int = 20) -> str:
    return alerts_of(state, step)[-1].stage


def test_alert_is_open_until_somebody_has_seen_it_or_it_has_cleared() -> None:
    state = running(AlertRaised(alert=alert(), generation=1))
    seq = state.seq
    assert stage(state) == "open"
    then(state, *decisions.accept(state, command(1, "acknowledge_alert", alert=seq, note="known")))
    (view,) = alerts_of(state, 20)
    assert (view.stage, view.acknowledged_by, view.note, view.seq) == ("acknowledged", "ann", "known", seq)
    with pytest.raises(Conflict, match="already acknowledged, by ann"):
        decisions.accept(state, command(2, "acknowledge_alert", alert=seq))
    then(state, *clear_alert(state, cleared(alert()), 1))
    assert stage(state) == "cleared"
    assert clear_alert(state, cleared(alert()), 1) == [], "once"


def test_snapshot_has_every_alert_that_needs_attention_and_the_newest_others() -> None:
    first = alert(subject="layer.first")
    state = running(AlertRaised(alert=first, generation=1))
    for at in range(3 * MAX_ALERTS_IN_SNAPSHOT):
        one = alert(step=10 + at, onset_step=10 + at)
        then(state, AlertRaised(alert=one, generation=1))
        then(state, *clear_alert(state, cleared(one), 1))
    views = snapshot_of(state, {}, progress=None, progress_age_s=None).alerts
    assert [view.seq for view in views] == sorted(view.seq for view in views)
    assert [view.alert for view in views if view.needs_attention] == [first]
    assert [view.alert.step for view in views if not view.needs_attention] == list(
        range(10 + 2 * MAX_ALERTS_IN_SNAPSHOT, 10 + 3 * MAX_ALERTS_IN_SNAPSHOT)
    )


def test_snapshot_is_bounded_however_many_alerts_need_attention() -> None:
    every = [alert(subject=f"rank {at}") for at in range(MAX_URGENT_ALERTS_IN_SNAPSHOT + 10)]
    state = running(*(AlertRaised(alert=one, generation=1) for one in every))
    views = snapshot_of(state, {}, progress=None, progress_age_s=None).alerts
    assert [view.alert for view in views] == every[10:]
    assert len(alerts_of(state, 20)) == len(every), "and no other reader misses any"


def test_unknown_alert_is_not_found_and_the_newest_are_named() -> None:
    state = running(AlertRaised(alert=alert(), generation=1))
    with pytest.raises(NotFound, match=f"has no alert 99; the newest are {state.seq}"):
        decisions.accept(state, command(1, "snooze_alert", alert=99))


def test_snooze_covers_later_alerts_of_the_kind_and_subject_until_its_step() -> None:
    state = running(AlertRaised(alert=alert(subject="layer.0"), generation=1))
    then(state, *decisions.accept(state, command(1, "snooze_alert", alert=state.seq, until_step=50)))
    assert (stage(state, 50), stage(state, 51)) == ("snoozed", "open")
    then(state, AlertRaised(alert=alert(step=40, onset_step=39, subject="layer.0"), generation=1))
    assert stage(state, 40) == "snoozed"
    then(state, AlertRaised(alert=alert(step=40, onset_step=39, subject="layer.1"), generation=1))
    assert stage(state, 40) == "open"


def test_snooze_without_a_step_ends_when_the_alert_clears() -> None:
    state = running(AlertRaised(alert=alert(), generation=1))
    seq = state.seq
    then(state, *decisions.accept(state, command(1, "snooze_alert", alert=seq)))
    assert stage(state, 10**6) == "snoozed"
    then(state, AlertCleared(alert=seq, cleared=cleared(alert()), generation=1))
    then(state, AlertRaised(alert=alert(step=40, onset_step=39), generation=1))
    assert stage(state) == "open"
    with pytest.raises(Conflict, match="has cleared"):
        decisions.accept(state, command(2, "snooze_alert", alert=seq))


def health_of(state: RunState) -> dict[str, str]:
    return {each.checkpoint: each.health for each in state.checkpoints.existing}


def test_alert_makes_the_checkpoints_from_its_onset_on_suspect_and_no_others() -> None:
    state = running(*(committed(step, health="trusted") for step in (8, 10, 12)))
    then(state, AlertRaised(alert=alert("data_starvation", onset_step=1), generation=1))
    assert set(health_of(state).values()) == {"trusted"}, "speed is no fault of the weights"
    then(state, AlertRaised(alert=alert(onset_step=10), generation=1))
    assert health_of(state) == {"step-8-g1": "trusted", "step-10-g1": "suspect", "step-12-g1": "suspect"}
    assert state.checkpoints.existing[2].health_reasons == ("loss_spike",)
    then(state, committed(20, health="trusted"))
    assert health_of(state)["step-20-g1"] == "trusted", "what is saved later has its own verdict"


def test_alert_on_a_branch_doubts_what_the_branch_began_with_and_not_its_parents_later_ones() -> None:
    state = running(*(committed(step, health="trusted") for step in (8, 10, 12)))
    then(state, BranchStarted(branch="b", parent="main", checkpoint="step-10-g1", step=10, rollback=uuid(1)))
    then(state, started(901, 2, step=10, branch="b"), committed(14, 2, health="trusted", branch="b"))
    then(state, AlertRaised(alert=alert(step=15, onset_step=9, branch="b"), generation=2))
    assert health_of(state) == {
        "step-8-g1": "trusted",
        "step-10-g1": "suspect",
        "step-12-g1": "trusted",
        "step-14-g2": "suspect",
    }
    found = newest_trusted(state)
    assert found is not None
    assert found.checkpoint == "step-8-g1"


def test_rollback_to_trusted_is_recorded_with_the_name_and_a_retry_is_the_same_command() -> None:
    state = running(committed(8, health="trusted"), committed(10, health="suspect"))
    asked = command(1, "rollback", checkpoint="trusted")
    records = decisions.accept(state, asked)
    (accepted,) = records
    assert isinstance(accepted, CommandAccepted)
    assert isinstance(accepted.command.intent, Rollback)
    assert accepted.command.intent.checkpoint == "step-8-g1"
    then(state, *records, committed(12, health="trusted"))
    assert decisions.accept(state, asked) == []
    with pytest.raises(Conflict, match="is already the command"):
        decisions.accept(state, command(1, "rollback", checkpoint="step-10-g1"))


def test_rollback_to_trusted_without_one_says_what_there_is() -> None:
    state = running(committed(8), committed(10, health="suspect"))
    with pytest.raises(NotFound, match=r"step-10-g1 \(suspect\), step-8-g1 \(unknown\)"):
        decisions.accept(state, command(1, "rollback", checkpoint="trusted"))


def test_retention_keeps_the_newest_trusted_checkpoint_while_only_suspect_ones_are_saved() -> None:
    keep_one = {"keep_last": 1, "keep_every_steps": 0, "keep_best": 0, "best_metric": "loss", "best_mode": "min"}
    state = running(started(901, 2, retention=keep_one))
    saved = [committed(step, 2, health=health) for step, health in ((4, "trusted"), (8, "trusted"), (10, "suspect"))]
    then(state, *saved, committed(12, 2, health="suspect"))
    assert "step-8-g2" in stands_on(state)
    assert {gone.checkpoint for gone, _ in retired_checkpoints(state)} == {"step-4-g2", "step-10-g2"}


def test_start_is_told_of_the_alerts_of_its_branch_and_training_that_have_not_cleared() -> None:
    over, still = alert(subject="rank 0"), alert(subject="rank 1")
    others = (alert(branch="branch-2"), alert(training=2))
    state = running(*(AlertRaised(alert=one, generation=1) for one in (over, still, *others)))
    then(state, *clear_alert(state, cleared(over), 1))
    (told,) = resume_point(state).alerts
    assert (told.key, told.step) == (still.key, still.step)
    then(state, *clear_alert(state, told, 1))
    assert resume_point(state).alerts == ()
