"""`steer agent start|stop|status|proposals|approve|edit|reject`: over a real gateway and a real control server."""

import json
from pathlib import Path

import pytest

from control_plane.api.agent_spending import Budgets, Spent
from control_plane.api.agent_views import AgentProcess, AgentReport, AgentView
from control_plane.cli.agents.status import screen
from control_plane.cli.output.formatting import span
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Change, Intent, SetKnobs, SetLearningRate
from control_plane.core.model.errors import Conflict, NotFound
from control_plane.core.model.intents import Pause
from control_plane.core.model.intents.agent import AgentSettings, Propose
from control_plane.core.model.limits import AGENT
from control_plane.storage.layout import RunFiles
from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, TOKENS, LiveGateway

QUARTER = SetLearningRate(factor=0.25)


def propose(gateway: LiveGateway, *intents: Intent) -> list[int]:
    """Propose as the agent does; return the numbers."""
    with SteerwayClient(gateway.url, TOKENS[AGENT]) as client:
        for intent in intents:
            client.submit(RUN, Propose(intent=intent), reason="autopilot (test): the loss is flat")  # type: ignore[arg-type]
        return [view.seq for view in client.snapshot(RUN).agent.proposals][-len(intents) :]


def test_an_agent_is_started_once_with_its_settings_and_stopped(
    gateway: LiveGateway, steer: Steer, tmp_path: Path
) -> None:
    grants = tmp_path / "grants.yaml"
    grants.write_text("knobs: {weight_decay: {max_factor: 3, max: 0.5}}")
    started = steer(
        *("agent", "start", RUN, "--mode", "suggest", "--every", "10", "--deadline", "60", "--default", "approve"),
        *("--policy", "rule", "--max-lr", "0.5", "--fixed", "--grants", str(grants), "--actions", "full"),
    )
    assert started.exit_code == 0, started.stderr
    assert "steer agent status" in started.stdout
    with SteerwayClient(gateway.url, TOKENS["operator"]) as client:
        settings = client.snapshot(RUN).agent.settings
        (summary,) = client.runs()
    assert settings is not None
    assert (settings.mode, settings.every_steps, settings.adaptive, settings.max_lr) == ("suggest", 10, False, 0.5)
    assert (settings.default, settings.action_space) == ("approve", "full")
    assert settings.grants.knobs["weight_decay"].max_factor == 3
    assert summary.agent == "suggest"
    twin = steer("agent", "start", RUN)
    assert twin.exit_code == Conflict.exit_code
    assert "has an agent already" in twin.stderr
    assert steer("agent", "stop", RUN).exit_code == 0
    assert steer("agent", "stop", RUN).exit_code == Conflict.exit_code


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--mode", "brave"), "mode = 'brave'"),
        (("--policy", "guess"), "allowed are auto, model"),
        (("--min-lr", "0.5"), "min_lr 0.5 is not below max_lr"),
        (("--max-factor", "0.1"), "max_factor = 0.1"),
        (("--default", "maybe"), "default = 'maybe'"),
        (("--grants", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_named(
    gateway: LiveGateway, steer: Steer, words: tuple[str, ...], reason: str
) -> None:
    answer = steer("agent", "start", RUN, *words)
    assert answer.exit_code != 0
    assert reason in answer.stderr


def test_proposals_are_approved_edited_and_rejected_by_their_number(gateway: LiveGateway, steer: Steer) -> None:
    assert steer("agent", "start", RUN, "--mode", "suggest", "--deadline", "3600").exit_code == 0
    first, second, third = propose(
        gateway, QUARTER, SetKnobs(changes=(Change(knob="weight_decay", value=0.2),)), Pause()
    )
    listed = steer("agent", "proposals", RUN).stdout
    assert f"{first}  waits" in listed
    assert "then rejected" in listed
    assert "(high risk)" in listed
    assert "the loss is flat" in listed
    approved = steer("agent", "approve", RUN, str(first), "--note", "go")
    assert approved.exit_code == 0, approved.stderr
    assert "applied at step" in approved.stdout
    assert "lr 0.0005 -> 0.000125" in approved.stdout
    edited = steer("agent", "edit", RUN, str(second), "lr*=0.5", "--json")
    assert json.loads(edited.stdout)["made"]["command"]["intent"]["factor"] == 0.5
    assert steer("agent", "reject", str(third), "--note", "not now").exit_code == 0
    again = steer("agent", "approve", RUN, str(first))
    assert again.exit_code == Conflict.exit_code
    assert "already approved by test-operator" in again.stderr
    assert "no proposal" in steer("agent", "proposals", RUN).stdout
    closed = steer("agent", "proposals", RUN, "--all").stdout
    for words in ("approved by test-operator", "edited by test-operator", "rejected by test-operator", "not now"):
        assert words in closed
    shown = json.loads(steer("agent", "proposals", RUN, "--all", "--json").stdout)
    assert [each["verdict"] for each in shown] == ["approved", "edited", "rejected"]


def test_an_approved_proposal_is_tried_first_and_rejecting_it_ends_the_trial(
    gateway: LiveGateway, steer: Steer
) -> None:
    started = steer("agent", "start", RUN, "--mode", "suggest", "--trial", "5", "--action-space", "published")
    assert started.exit_code == 0, started.stderr
    (number,) = propose(gateway, QUARTER)
    approved = steer("agent", "approve", RUN, str(number))
    assert approved.exit_code == 0, approved.stderr
    assert "it is tried first: " in approved.stdout
    listed = steer("agent", "proposals", RUN).stdout
    assert f"{number}  on trial: " in listed
    assert f"steer agent reject {number} ends the trial" in listed
    shown = steer("agent", "status", RUN).stdout
    assert "5 steps without a change and with it" in shown
    assert steer("agent", "reject", RUN, str(number), "--note", "not now").exit_code == 0
    assert "rejected by test-operator" in steer("agent", "proposals", RUN, "--all").stdout
    assert "on trial, 5 steps without it and 5 with it" in steer("journal", RUN).stdout


def test_a_policy_that_needs_more_says_so_at_its_start(gateway: LiveGateway, steer: Steer) -> None:
    started = steer("agent", "start", RUN, "--policy", "probing")
    assert "2 is allowed: give `--max-factor 1000`" in started.stdout


def test_a_proposal_is_named_by_the_beginning_of_its_uuid_too_and_what_is_none_is_said(
    gateway: LiveGateway, steer: Steer
) -> None:
    steer("agent", "start", RUN, "--mode", "suggest")
    (number,) = propose(gateway, QUARTER)
    (view,) = json.loads(steer("agent", "proposals", RUN, "--json").stdout)
    assert steer("agent", "reject", RUN, view["uuid"][:9]).exit_code == 0
    missing = steer("agent", "approve", RUN, "99999")
    assert missing.exit_code == NotFound.exit_code
    assert "waiting for an answer: none" in missing.stderr
    for words, reason in (
        (("approve", RUN, "xyz"), "is no number and no uuid"),
        (("edit", RUN, str(number)), "one or more KNOB=VALUE"),
        (("edit", RUN, str(number), "weight_decoy=1"), "did you mean weight_decay"),
        (("edit", RUN, str(number), "lr=abc"), "is not a number"),
    ):
        answer = steer("agent", *words)
        assert answer.exit_code != 0
        assert reason in answer.stderr


def test_status_is_one_screen_that_fits_a_narrow_terminal(gateway: LiveGateway, steer: Steer) -> None:
    assert "none is started" in steer("agent", "status", RUN).stdout
    steer("agent", "start", RUN, "--mode", "suggest")
    (number,) = propose(gateway, QUARTER)
    files = RunFiles(gateway.runs.root / RUN)
    files.logs.mkdir(parents=True, exist_ok=True)
    files.agent_log.write_text("2026-01-01T00:00:00Z starting\n2026-01-01T00:00:01Z step 7: loss 2.1: halve\n")
    shown = steer("agent", "status", RUN).stdout
    for words in ("suggest: a person answers every proposal", "step 7: loss 2.1: halve", str(number), "15 min"):
        assert words in shown
    report = json.loads(steer("agent", "status", RUN, "--json").stdout)
    assert report["process"]["state"] == "none"
    assert "starting" in steer("logs", RUN, "--source", "agent").stdout


@pytest.mark.parametrize("columns", [20, 32, 60, 100, 500])
def test_no_line_of_the_status_is_wider_than_the_terminal(columns: int) -> None:
    process = AgentProcess(state="given_up", reason="no such model " * 20, since="2026-01-01T00:00:00Z", failures=5)
    report = AgentReport(
        run=RUN,
        status="running",
        step=7,
        agent=AgentView(settings=AgentSettings(), started_by="ada", since_seq=4),
        process=process,
        model="o4-mini",
        budgets=Budgets(max_calls=2000, max_tokens=5_000_000, max_cost=5.0, prompt_price=1.1, completion_price=4.4),
        spent=Spent(calls=17, tokens=31_200, cost=0.0812),
        last_decision="step 5: \x1b[31m" + "halve " * 30,
    )
    lines = screen(report, columns)
    assert max(map(len, lines)) <= max(32, min(columns, 120))
    text = " ".join(" ".join(lines).split())
    assert "given up: stop and start it to try again" in text
    assert "17 of 2,000 calls, 31,200 of 5,000,000 tokens, 0.0812 of 5" in text
    assert "\x1b" not in text


def test_the_short_form_of_the_foreground_agent_still_works(
    gateway: LiveGateway, steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_TOKEN", TOKENS[AGENT])
    for words in ((RUN,), ("run", RUN), ("--policy", "guess")):
        answer = steer("agent", *words, "--policy", "guess")
        assert "guess" in answer.stderr
    assert "proposals" in steer("agent", "--help").stdout


def test_durations_are_short() -> None:
    assert [span(seconds) for seconds in (0.4, 59, 60, 842, 3600, 12_000, 187_200)] == [
        "0 s",
        "59 s",
        "1 min",
        "14 min 2 s",
        "1 h",
        "3 h 20 min",
        "2 d 4 h",
    ]
