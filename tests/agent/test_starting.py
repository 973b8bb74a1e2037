"""Start of an agent: its policies by name, what a person is told before, and decisions counted over restarts."""

from uuid import uuid4

import pytest

from control_plane.agent.choosing import MODEL_POLICIES, POLICIES, advice
from control_plane.agent.history import SteeringHistory
from control_plane.agent.options import options_of
from control_plane.agent.policy import AUTOPILOT
from control_plane.agent.rules.catalogue import RULES
from control_plane.cli.commands.agent import ledger_of
from control_plane.config import settings
from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.rules import decisions
from tests.agent.test_trials import RUN, Reader, from_the_start
from tests.core.agent.test_proposals import HALVE, proposal, sent
from tests.core.agent.trial_run import Run


def test_policies_of_the_core_are_the_rules_and_the_models() -> None:
    assert set(POLICIES) == {*MODEL_POLICIES, "rule", *RULES}


@pytest.mark.parametrize(
    ("given", "step", "told"),
    [
        ({"policy": "probing"}, 0, ["2 is allowed: give `--max-factor 1000`"]),
        ({"policy": "probing", "max_factor": 1000}, 0, []),
        ({"policy": "probing", "max_factor": 1000}, 40, ["the run is at step 40: start it with the run"]),
        ({"policy": "probing", "action_space": "published"}, 40, ["2 is allowed", "the run is at step 40"]),
        ({"policy": "guarded"}, 40, []),
    ],
)
def test_what_probing_needs_is_said_at_its_start(given: dict[str, object], step: int, told: list[str]) -> None:
    said = advice(options_of(AgentSettings.model_validate(given)), step)
    assert (said is None) == (not told)
    assert all(each in str(said) for each in told)


def test_decisions_are_counted_from_the_journal_since_the_agent_was_started() -> None:
    run = Run(settings={"mode": "suggest"})
    for decision in (3, 9):
        intent = {"kind": "propose", "intent": HALVE, "decision": decision}
        command = proposal(HALVE).model_dump() | {"uuid": uuid4(), "intent": intent, "reason": f"{AUTOPILOT}x): y"}
        run.send(type(proposal(HALVE)).model_validate(command))
    history = SteeringHistory()
    history.read(Reader(from_the_start(run)), RUN, run.state.seq)
    assert history.decisions == 9
    run.write(decisions.accept(run.state, sent(80, "stop_agent")))
    run.write(decisions.accept(run.state, sent(81, "start_agent", settings={"policy": "rule"})))
    history.read(Reader(from_the_start(run)), RUN, run.state.seq)
    assert history.decisions == 0


def test_a_foreground_agent_spends_the_budgets_of_the_gateways_agent(tmp_path: object) -> None:
    here = settings({}, home=tmp_path)
    assert ledger_of(here, "r-1") == here.runs_dir / "r-1" / "agent" / "ledger.jsonl"
    elsewhere = here.model_copy(update={"url": "https://steerway.lab"})
    assert ledger_of(elsewhere, "r-1").name == "r-1.ledger.jsonl"
