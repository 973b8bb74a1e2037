"""The monitor's promises, whatever the detectors: alerts begin and end once, state is JSON, trust has reasons."""

import json
import math
import random
from math import inf

from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import HealthSettings
from control_plane.core.health.windows import median, median_without
from control_plane.core.model.health import IDENTITY, Alert, Cleared, HealthChange

NAN = math.nan


def calm(step: int) -> dict[str, float]:
    """Return the signs of a healthy step."""
    return {"loss": 3.0 + 0.01 * (step % 7), "grad_norm": 1.0 + 0.01 * (step % 5), "lr": 1e-3}


def test_a_loss_that_is_not_finite_is_told_at_once_and_once_and_cleared_when_it_is_over() -> None:
    monitor = HealthMonitor(HealthSettings(), branch="b1", training=2)
    changes: dict[int, HealthChange] = {}
    for step in range(1, 40):
        bad = {"loss": NAN} if 10 <= step < 20 else {}
        if (change := monitor.observe(step, calm(step) | bad)) != HealthChange():
            changes[step] = change
    (alert,), (cleared,) = changes[10].raised, changes[29].cleared
    assert set(changes) == {10, 29}
    assert (alert.kind, alert.level, alert.onset_step, alert.branch, alert.training) == (
        "non_finite",
        "critical",
        10,
        "b1",
        2,
    )
    assert "loss is not a number" in alert.sentence
    assert (cleared.kind, cleared.onset_step, cleared.step) == ("non_finite", 10, 29)
    assert (cleared.subject, cleared.branch, cleared.training) == (alert.subject, "b1", 2)


def test_an_overflow_of_fp16_is_no_loss_of_the_weights() -> None:
    monitor = HealthMonitor(HealthSettings())
    fp16 = {"loss_scale": 1024.0, "loss_scale_min": 1.0}
    monitor.observe(1, calm(1) | fp16 | {"skipped_steps": 3})
    change = monitor.observe(2, calm(2) | fp16 | {"grad_norm": math.inf, "skipped_steps": 4})
    assert [(alert.kind, alert.level) for alert in change.raised] == [("gradient_overflow", "info")]
    assert monitor.trust()[0] != "suspect"


def test_a_checkpoint_is_suspect_while_an_alert_about_the_weights_is_open() -> None:
    monitor = HealthMonitor(HealthSettings())
    assert monitor.trust() == ("unknown", ("no loss was measured",))
    monitor.observe(1, calm(1) | {"loss": NAN})
    assert monitor.trust() == ("suspect", ("non_finite",))


def test_state_is_json_and_goes_on_after_a_restore() -> None:
    one = HealthMonitor(HealthSettings())
    for step in range(1, 30):
        one.observe(step, calm(step) | ({"loss": NAN} if step == 25 else {}))
    two = HealthMonitor(HealthSettings(), branch="b1")
    two.restore(json.loads(json.dumps(one.state())))
    changes = [two.observe(step, calm(step)) for step in range(30, 40)]
    (cleared,) = [cleared for change in changes for cleared in change.cleared]
    assert (cleared.onset_step, cleared.branch) == (25, "main"), "the alert was raised on the parent branch"


def test_an_unknown_state_starts_with_empty_windows() -> None:
    monitor = HealthMonitor(HealthSettings())
    monitor.observe(1, calm(1) | {"loss": NAN})
    for state in ({}, {"version": 0, "open": "?"}):
        monitor.restore(state)
        assert monitor.trust()[0] == "unknown"


def test_silent_kinds_and_a_disabled_monitor_raise_nothing() -> None:
    silent = HealthSettings.model_validate({"silent": ["non_finite"]})
    for settings in (silent, HealthSettings(enabled=False)):
        assert HealthMonitor(settings).observe(1, {"loss": NAN}) == HealthChange()


def test_a_detector_whose_state_is_of_another_release_begins_anew_and_the_others_go_on() -> None:
    one = HealthMonitor(HealthSettings())
    for step in range(1, 100):
        one.observe(step, calm(step))
    state = one.state()
    state["detectors"]["loss_spike"] = {"window": "?"}
    del state["detectors"]["gradient_spike"]
    two = HealthMonitor(HealthSettings())
    two.restore(state)
    assert two.trust()[1] == ("loss trend: 99 of 128 steps seen",), "what was not seen yet is no doubt"
    assert two.observe(100, calm(100)) == HealthChange()
    assert [reason.split(":")[0] for reason in two.trust()[1]] == ["loss", "grad_norm", "loss trend"]


def test_a_rank_is_compared_with_its_own_jitter() -> None:
    """On a shared machine step times differ by a half all the time, on every rank."""
    chance = random.Random(1)
    monitor, raised = HealthMonitor(HealthSettings()), []
    for step in range(5, 4000, 5):
        times = [0.2 * math.exp(chance.gauss(0, 0.3)) for _ in range(2)]
        if step >= 3000:
            times[1] *= 20
        raised += monitor.observe(step, {}, {"own_step_s": times}).raised
    assert [(alert.kind, alert.subject, alert.step) for alert in raised] == [("straggling_rank", "rank 1", 3005)], (
        "once"
    )


def test_overflow_of_a_step_that_was_skipped_is_not_taken_for_lost_weights() -> None:
    """bf16 has no loss scale: that the step was skipped is what tells."""
    monitor = HealthMonitor(HealthSettings())
    for step in range(1, 5):
        monitor.observe(step, {"loss": 2.0, "grad_norm": 1.0, "skipped_steps": 0.0})
    skipped = monitor.observe(5, {"loss": 2.0, "grad_norm": inf, "skipped_steps": 1.0})
    assert [alert.kind for alert in skipped.raised] == ["gradient_overflow"]
    assert "loss scale" not in skipped.raised[0].sentence
    taken = monitor.observe(6, {"loss": 2.0, "grad_norm": inf, "skipped_steps": 1.0})
    assert [alert.kind for alert in taken.raised] == ["non_finite"]


def test_alert_that_a_repeated_start_does_not_raise_again_is_cleared_at_its_step() -> None:
    failed = HealthMonitor(HealthSettings())
    raised: list[Alert] = []
    saved = failed.state()
    for step in range(1, 11):
        slow = {"memory_bytes": 99.0 if step >= 7 else 1.0, "memory_limit_bytes": 100.0}
        raised += failed.observe(step, calm(step) | slow | ({"loss": NAN} if step == 8 else {})).raised
    assert [(alert.kind, alert.step) for alert in raised] == [("non_finite", 8), ("memory_near_limit", 9)]
    again = HealthMonitor(HealthSettings())
    again.restore(saved)
    again.expect(Cleared.model_validate(alert.model_dump(include=IDENTITY)) for alert in raised)
    changes = {step: again.observe(step, calm(step) | ({"loss": NAN} if step == 8 else {})) for step in range(1, 30)}
    assert [(step, alert.key) for step, change in changes.items() for alert in change.raised] == [(8, raised[0].key)]
    ended = [(step, one.key) for step, change in changes.items() for one in change.cleared]
    assert ended == [(9, raised[1].key), (18, raised[0].key)], "the one is gone, and the other one was raised again"


def test_alert_of_a_checkpoint_whose_windows_are_lost_is_cleared_at_the_first_step() -> None:
    failed, again = HealthMonitor(HealthSettings()), HealthMonitor(HealthSettings())
    (alert,) = failed.observe(5, calm(5) | {"loss": NAN}).raised
    again.restore({})
    again.expect([Cleared.model_validate(alert.model_dump(include=IDENTITY))])
    (cleared,) = again.observe(20, calm(20)).cleared
    assert (cleared.key, cleared.step) == (alert.key, 20)
    kept = HealthMonitor(HealthSettings())
    kept.restore(failed.state())
    kept.expect([Cleared.model_validate(alert.model_dump(include=IDENTITY))])
    assert kept.observe(6, calm(6)) == HealthChange(), "it is still open, and ends as any other"


def test_straggler_and_full_memory_of_ranks_that_are_no_more_have_ended() -> None:
    monitor = HealthMonitor(HealthSettings())

    def gather(step: int, own_s: list[float], used: list[float]) -> HealthChange:
        most = [100.0] * len(used)
        rows = {"own_step_s": own_s, "memory_bytes": used, "memory_limit_bytes": most}
        return monitor.observe(step, calm(step), rows)

    raised: list[Alert] = []
    for step in range(1, 20):
        slow = step > 8
        raised += gather(step, [0.1, 1.0 if slow else 0.1], [1.0, 99.0 if slow else 1.0]).raised
    assert {(alert.kind, alert.subject) for alert in raised} == {
        ("straggling_rank", "rank 1"),
        ("memory_near_limit", "rank 1"),
    }
    change = gather(20, [0.1], [1.0])
    assert {one.key for one in change.cleared} == {alert.key for alert in raised}
    assert monitor.observe(21, calm(21)) == HealthChange()


def test_median_of_the_others_is_the_same_without_looking_at_each_of_them() -> None:
    dice = random.Random(5)
    for _ in range(500):
        values = [dice.choice([1.0, 2.0, dice.random()]) for _ in range(dice.randint(2, 9))]
        for place, value in enumerate(values):
            assert median_without(sorted(values), value) == median(values[:place] + values[place + 1 :])


def forgotten(held_out: list[float]) -> list[tuple[int, str]]:
    """Return (step, kind) of what is raised for these held-out losses, one after every 20 steps; the loss is 3."""
    monitor = HealthMonitor(HealthSettings())
    raised: list[Alert] = []
    for step in range(1, 20 * len(held_out) + 1):
        measured = {} if step % 20 else {"heldout/old_loss": held_out[step // 20 - 1]}
        raised += monitor.observe(step, calm(step) | measured).raised
    return [(alert.step, alert.kind) for alert in raised if alert.kind == "forgetting"]


def test_older_data_learned_by_heart_are_not_forgotten_while_their_loss_is_next_to_nothing() -> None:
    by_heart = [2.0, 0.5, *[0.005, 0.004] * 10, 0.03, 0.05, 0.07, 0.09]
    assert forgotten(by_heart) == [], "twenty times the best value, and a fiftieth of the first loss"
    assert forgotten([*by_heart, 0.4, 0.4, 0.4]) == [(560, "forgetting")]
    assert forgotten([*[2.4, 2.41] * 9, 2.56, 2.6]) == [(400, "forgetting")], "a rise of a twentieth"


def test_a_single_evaluation_makes_no_forgetting() -> None:
    assert forgotten([*[2.4, 2.41] * 9, 2.75, 2.4, 2.41]) == []
    assert forgotten([*[2.4, 2.41] * 9, 2.6, 2.7]) == [(400, "forgetting")]
