"""Knobs, limits, stale views and roles through the gateway: what is carried on, and what is refused in which words."""

from typing import Any
from uuid import uuid4

import pytest

from control_plane.api.messages import Snapshot
from control_plane.core.model.limits import Limit
from control_plane.storage.layout import RunFiles
from tests.gateway.conftest import Rig
from tests.gateway.rig import KNOB_FACTS, KNOBS, RUN, open_server, start_trainers

LIMITED = "run-2"
LIMITS = {
    "lr": Limit(min=1e-6, max=1e-2),
    "weight_decay": Limit(max_factor=10, cool_down_s=3600),
    "betas": Limit(roles=("operator",)),
}


def knob(name: str, value: Any) -> dict[str, Any]:
    """A command that sets one knob."""
    return {"intent": {"kind": "set_knobs", "changes": [{"knob": name, "value": value}]}}


@pytest.fixture
def limited(rig: Rig) -> Rig:
    """Besides, a run whose owner has set limits."""
    server = open_server(RunFiles(rig.runs.root / LIMITED), LIMITS)
    rig.runs.handles[LIMITED] = server
    rig.call(start_trainers, server)
    return rig


def test_snapshot_says_what_can_be_set_and_what_is_allowed(limited: Rig) -> None:
    snapshot = Snapshot.model_validate_json(limited.get(f"/runs/{LIMITED}").content)
    assert (snapshot.knobs, snapshot.knob_facts) == (KNOBS, KNOB_FACTS)
    assert snapshot.limits == LIMITS
    assert snapshot.facts == {"model": "tiny"}


def test_command_carries_its_steps_its_basis_and_the_role_of_its_author(rig: Rig) -> None:
    seq = rig.get(f"/runs/{RUN}").json()["seq"]
    said = {"not_before_step": 5, "not_after_step": 9, "based_on_seq": seq}
    uuid = rig.post(f"/runs/{RUN}/commands", "admin", json=knob("eval_steps", 10) | said).json()["uuid"]
    command = rig.get(f"/runs/{RUN}/commands/{uuid}").json()["command"]
    assert {name: command[name] for name in said} == said
    assert (command["role"], command["author"]) == ("admin", "test-admin")


def test_role_in_the_body_is_refused(rig: Rig) -> None:
    answer = rig.post(f"/runs/{RUN}/commands", json=knob("eval_steps", 10) | {"role": "admin"})
    assert (answer.status_code, answer.json()["errors"][0]["where"]) == (422, "body.role")


def test_last_step_before_the_first_is_refused_in_a_sentence(rig: Rig) -> None:
    answer = rig.post(
        f"/runs/{RUN}/commands", json=knob("eval_steps", 10) | {"not_before_step": 9, "not_after_step": 8}
    )
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid")
    assert answer.json()["detail"] == "'not_after_step' is 8, which is before 'not_before_step' 9"


def test_resume_of_a_later_step_is_refused_in_a_sentence(rig: Rig) -> None:
    answer = rig.post(f"/runs/{RUN}/commands", json={"intent": {"kind": "resume"}, "not_before_step": 9})
    assert answer.status_code == 422
    assert "a paused run would never reach that step" in answer.json()["detail"]


def test_view_that_is_stale_is_a_conflict_that_says_who_changed_what(rig: Rig) -> None:
    seq = rig.get(f"/runs/{RUN}").json()["seq"]
    based = {"based_on_seq": seq}
    assert rig.post(f"/runs/{RUN}/commands", "agent", json=knob("eval_steps", 10)).status_code == 202
    answer = rig.post(f"/runs/{RUN}/commands", json=knob("eval_steps", 20) | based)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    assert "test-agent: eval_steps = 10" in answer.json()["detail"]
    assert answer.json()["course_seq"] == seq + 1


@pytest.mark.parametrize(
    ("body", "role", "said"),
    [
        ({"intent": {"kind": "set_learning_rate", "value": 0.1}}, "operator", "this run allows at most 0.01"),
        (knob("betas", [0.9, 0.95]), "agent", "betas may be changed by operator, not by agent"),
        (
            {"intent": {"kind": "set_knobs", "changes": [{"knob": "weight_decay", "factor": 20.0}]}},
            "operator",
            "weight_decay would be multiplied by 20",
        ),
    ],
)
def test_command_beyond_a_limit_is_refused_and_changes_nothing(
    limited: Rig, body: dict[str, Any], role: Any, said: str
) -> None:
    seq = limited.get(f"/runs/{LIMITED}").json()["seq"]
    answer = limited.post(f"/runs/{LIMITED}/commands", role, json=body)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.json()
    assert limited.get(f"/runs/{LIMITED}").json()["seq"] == seq


def test_knob_of_an_endless_integer_is_no_failure(limited: Rig) -> None:
    answer = limited.post(f"/runs/{LIMITED}/commands", json=knob("weight_decay", 10**400))
    assert answer.status_code == 422


def test_cancel_of_nothing_is_not_found_and_of_a_cancel_a_conflict(rig: Rig) -> None:
    def cancel(uuid: str) -> Any:
        return rig.post(f"/runs/{RUN}/commands", json={"intent": {"kind": "cancel", "command": uuid}})

    assert cancel(str(uuid4())).status_code == 404
    waiting = rig.post(f"/runs/{RUN}/commands", json=knob("eval_steps", 10)).json()["uuid"]
    first = cancel(waiting)
    assert first.status_code == 202
    assert cancel(first.json()["uuid"]).status_code == 409


def test_agent_is_told_what_it_may_do(rig: Rig) -> None:
    answer = rig.post(f"/runs/{RUN}/commands", "agent", json={"intent": {"kind": "freeze", "parameters": "*"}})
    assert answer.status_code == 403
    allowed = "evaluate, note_effect, propose, run_action, save_checkpoint, set_knobs"
    assert f"the role agent may not freeze; allowed are {allowed}" in answer.json()["detail"]


def test_action_that_the_run_does_not_name_for_agents_is_refused_to_one(rig: Rig) -> None:
    seq = rig.get(f"/runs/{RUN}").json()["seq"]
    answer = rig.post(f"/runs/{RUN}/commands", "agent", json={"intent": {"kind": "run_action", "name": "x"}})
    assert answer.status_code == 422
    assert "x may not be run by an agent" in answer.json()["detail"]
    assert rig.get(f"/runs/{RUN}").json()["seq"] == seq


def test_openapi_describes_every_intent(rig: Rig) -> None:
    schemas = rig.get("/openapi.json").json()["components"]["schemas"]
    body = schemas["CommandRequest"]["properties"]
    assert {"not_after_step", "based_on_seq"} <= set(body)
    kinds = set(body["intent"]["discriminator"]["mapping"])
    assert {"set_knobs", "set_schedule", "freeze", "reset_parameters", "run_action", "cancel"} <= kinds
