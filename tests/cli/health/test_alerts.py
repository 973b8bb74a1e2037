"""`steer alerts`, `ack`, `snooze`, `explain` and `rollback trusted`: what is printed, and what the run becomes."""

import json

from control_plane.api.messages import Report
from control_plane.core.model.health import HealthChange
from control_plane.core.model.intents import Rollback
from tests.cli.conftest import Steer
from tests.core.examples import alert, cleared, committed
from tests.gateway.rig import RUN, LiveGateway


def raised(gateway: LiveGateway, *changes: HealthChange) -> list[int]:
    """Rank 0 reports these; returns the alerts' numbers."""
    gateway.call(gateway.server.report(Report(generation=1, health=changes)))
    return [view.seq for view in gateway.call(gateway.server.snapshot()).alerts]


SPIKE = alert(suggestion="rollback trusted --set lr*=0.5")
UNITS = alert("dead_units", subject="h.1", sentence="40 % of the units are dead")


def test_alerts_are_listed_with_evidence_suggestion_and_where_to_read_on(gateway: LiveGateway, steer: Steer) -> None:
    assert steer("alerts").stdout == f"no alerts in {RUN} at step 4 need attention\n"
    (seq,) = raised(gateway, HealthChange(raised=(SPIKE,)))
    answer = steer("alerts")
    assert answer.exit_code == 0
    assert [line.strip() for line in answer.stdout.splitlines()] == [
        f"{seq}  warning  step 12: loss_spike",
        "the loss has jumped",
        "loss 9.5 (threshold 4, mean 3.1 of 128 steps)",
        "try: steer rollback trusted --set lr*=0.5",
        "more: steer explain loss_spike",
    ]


def test_acknowledged_snoozed_and_cleared_alerts_leave_the_list_and_are_shown_with_all(
    gateway: LiveGateway, steer: Steer
) -> None:
    stall = alert("stalled_phase")
    spike, units, stalled = raised(gateway, HealthChange(raised=(SPIKE, UNITS, stall)))
    assert steer("ack", RUN, str(spike), "--note", "a bad shard").exit_code == 0
    assert steer("snooze", str(units), "--steps", "500").exit_code == 0
    raised(gateway, HealthChange(cleared=(cleared(stall),)))
    assert steer("alerts").stdout == f"no alerts in {RUN} at step 4 need attention\n"
    shown = steer("alerts", "--all").stdout
    for part in ("[seen by test-operator: a bad shard]", "[snoozed until step 504]", "[cleared at step 20]"):
        assert part in shown
    stages = {view["seq"]: view["stage"] for view in json.loads(steer("alerts", "--all", "--json").stdout)["alerts"]}
    assert stages == {spike: "acknowledged", units: "snoozed", stalled: "cleared"}


def test_alert_that_is_not_there_or_seen_already_says_so(gateway: LiveGateway, steer: Steer) -> None:
    (seq,) = raised(gateway, HealthChange(raised=(SPIKE,)))
    answer = steer("ack", RUN, "999")
    assert (answer.exit_code, f"has no alert 999; the newest are {seq}" in answer.stderr) == (3, True)
    steer("ack", RUN, str(seq))
    again = steer("ack", RUN, str(seq))
    assert (again.exit_code, "already acknowledged, by test-operator" in again.stderr) == (5, True)
    assert steer("ack", RUN, "spike").exit_code == 2


def test_rollback_to_trusted_goes_to_the_newest_trusted_checkpoint(gateway: LiveGateway, steer: Steer) -> None:
    saved = (committed(2, health="trusted"), committed(3, health="suspect"))
    gateway.call(gateway.server.report(Report(generation=1, checkpoints=saved)))
    answer = steer("rollback", RUN, "trusted", "--set", "lr*=0.5", "--yes", "--detach")
    assert answer.exit_code == 0, answer.stderr
    (view,) = [
        each for each in gateway.call(gateway.server.snapshot()).commands if each.command.intent.kind == "rollback"
    ]
    assert isinstance(view.command.intent, Rollback)
    assert view.command.intent.checkpoint == "step-2-g1"


def test_rollback_to_trusted_without_one_is_refused_with_what_there_is(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.report(Report(generation=1, checkpoints=(committed(3, health="suspect"),))))
    answer = steer("rollback", RUN, "trusted", "--yes")
    assert (answer.exit_code, "step-3-g1 (suspect)" in answer.stderr) == (3, True)


def test_explain_says_what_it_means_and_what_people_do(steer: Steer) -> None:
    shown = steer("explain", "loss spike").stdout
    assert "What people do:" in shown
    assert "Roll back" in shown or "roll back" in shown
    unknown = steer("explain", "loss_spyke")
    assert (unknown.exit_code, "did you mean one of" in unknown.stderr) == (3, True)
    names = json.loads(steer("explain", "--json").stdout)
    assert "loss_spike" in names["alert"]
