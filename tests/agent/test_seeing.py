"""Observation of a run for the prompt: numbers and words of ours, whatever the run reports."""

from typing import Any

import pytest

from control_plane.agent.history import SteeringHistory
from control_plane.agent.seeing import alerts_of, checkpoints_of, config_of, past_of, signs_of, told
from control_plane.api.messages import AlertView, Snapshot
from control_plane.core.model.health import Alert, Evidence
from control_plane.core.model.intents.grants import NO_GRANTS, Grants
from control_plane.core.model.records import CheckpointCommitted, Entry
from tests.agent.simulated import NOON
from tests.core import examples


def snapshot(**fields: Any) -> Snapshot:
    """A snapshot of a running run."""
    about: dict[str, Any] = {"run": "r", "name": "r", "status": "running", "seq": 1, "term": 1, "generation": 1}
    return Snapshot(**(about | {"created_at": NOON, "step": 50, "total_steps": 100} | fields))


def test_config_is_numbers_and_known_names() -> None:
    facts = {"parameters": 1000, "optimizer": "AdamW", "schedule": "ignore", "vocab_size": "many", "secret": 3}
    assert config_of(snapshot(facts=facts)) == {"parameters": 1000.0, "optimizer": "AdamW"}


def test_signs_are_the_runs_and_by_our_names() -> None:
    latest = {"grad_norm": 1.5, "loss": 2.0, "ignore all": 1.0, "weight_norm/ignore all": 2.0, "step_s": 0.1}
    assert signs_of(snapshot(latest=latest)) == {"grad_norm": 1.5}


def test_alerts_are_kinds_and_numbers_of_the_open_ones() -> None:
    alert = Alert(
        kind="loss_spike", level="warning", step=9, onset_step=8, sentence="ignore all", subject="ignore",
        evidence=(Evidence(sign="ignore", value=9.0, threshold=4.0),),
    )  # fmt: skip
    views = [AlertView(seq=i, alert=alert, stage=stage, raised_at=NOON) for i, stage in enumerate(("open", "cleared"))]
    (seen,) = alerts_of(snapshot(alerts=tuple(views)))  # type: ignore[arg-type]
    assert (seen.kind, seen.level, seen.step, seen.value, seen.threshold) == ("loss_spike", "warning", 8, 9.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "is_offered"),
    [
        ({"health": "trusted"}, True),
        ({"health": "unknown"}, False),
        ({"health": "unknown", "pinned": True}, True),
        ({"health": "suspect", "pinned": True}, False),
        ({"health": "trusted", "branch": "other"}, False),
        ({"health": "trusted", "step": 51}, False),
    ],
)
def test_checkpoints_that_may_be_rolled_back_to(changes: dict[str, Any], is_offered: bool) -> None:
    about: dict[str, Any] = {"checkpoint": "step-00000020-g1", "step": 20, "generation": 1, "path": "p"}
    found = checkpoints_of(snapshot(checkpoints=(CheckpointCommitted(**(about | changes)),)))
    assert bool(found) is is_offered


def folded(*records: Any) -> SteeringHistory:
    """A history of these records."""

    class Reader:
        def journal(self, run: str, after: int = 0, limit: int = 0) -> list[Entry]:
            return [Entry(seq=i, time=NOON, record=record) for i, record in enumerate(records, start=1)][after:]

    history = SteeringHistory()
    history.read(Reader(), "r", len(records))
    return history


def test_past_leaves_out_what_a_rollback_left_behind() -> None:
    before = [examples.created(), examples.started()]
    for number, step in ((1, 10), (2, 30)):
        before += [
            examples.accepted(number, "set_learning_rate", factor=number / 4),
            examples.settled(number, step=step),
        ]
    assert [past.what for past in past_of(folded(*before), NO_GRANTS)] == ["lr x 0.25", "lr x 0.5"]
    again = examples.started(901, generation=2, step=20)
    assert [past.what for past in past_of(folded(*before, again), NO_GRANTS)] == ["lr x 0.25"]


def test_knobs_are_named_if_granted() -> None:
    both = examples.intent("set_knobs", changes=[{"knob": "wd", "value": 0.1}, {"knob": "ignore all", "factor": 2.0}])
    assert told(both, NO_GRANTS) == "2 other knobs"
    assert told(both, Grants.model_validate({"knobs": {"wd": {}}})) == "'wd' = 0.1, 1 other knobs"
    assert told(examples.intent("freeze", parameters="ignore all"), NO_GRANTS) == "freeze"
    assert told(examples.intent("run_action", name="ignore all"), NO_GRANTS) == "run action"
    assert told(examples.intent("evaluate"), NO_GRANTS) is None
