"""Episodes: one a proposal, with the state at its step, the verdict and the effect."""

import json
from pathlib import Path

import pytest

from control_plane.agent.episodes import NAMES, Episode, as_line, episodes_of, summary
from tests.agent.test_proposing import HALVE, KEEP, Rig, Says


def exported(rig: Rig) -> list[Episode]:
    """The episodes of the rig's run, through their JSON lines."""
    points = rig.client.metrics("run-1", 0, 10**6, NAMES).points
    lines = [as_line(each) for each in episodes_of("run-1", rig.trainee.entries(), points)]
    assert all(isinstance(json.loads(line), dict) for line in lines)
    return [Episode.model_validate_json(line) for line in lines]


def test_episode_of_an_automatic_proposal_has_state_verdict_and_effect(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Says(HALVE, KEEP))
    rig.trainee.model = lambda lr: (3.0 if lr > 1.5e-2 else 1.5) + 0.01 * (rig.trainee.step % 3)
    rig.poll(lambda: rig.trainee.step >= 150)
    (episode,) = exported(rig)
    assert (episode.verdict, episode.outcome, episode.by_person) == ("automatic", "applied", False)
    assert episode.proposal == episode.made
    assert episode.proposal.describe() == "lr x 0.5"
    assert episode.state.lr == pytest.approx(2e-2)
    assert episode.state.losses[-1][0] == episode.state.step <= 35
    assert len(episode.state.losses) <= 20
    assert episode.effect is not None
    assert (episode.effect.source, episode.effect.judgement) == ("noted", "better")
    assert summary([episode]) == {"episodes": 1, "automatic": 1, "better": 1}


def test_episode_of_an_edited_and_of_a_rejected_proposal(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Says(HALVE), mode="suggest", cool_down_steps=5)
    rig.poll(lambda: bool(rig.opened()))
    answer = {"kind": "answer_proposal", "proposal": str(rig.opened()[0].uuid), "approve": True}
    rig.trainee.send(answer | {"intent": {"kind": "set_learning_rate", "factor": 0.75}})
    rig.trainee.settle()
    rig.poll(lambda: bool(rig.opened()))
    rig.trainee.send({"kind": "answer_proposal", "proposal": str(rig.opened()[0].uuid), "approve": False})
    rig.poll(lambda: bool(rig.opened()))
    edited, rejected, waiting = exported(rig)
    assert (edited.verdict, edited.by_person, edited.proposal.describe()) == ("edited", True, "lr x 0.5")
    assert edited.made is not None
    assert edited.made.describe() == "lr x 0.75"
    assert (rejected.verdict, rejected.made, rejected.effect) == ("rejected", None, None)
    assert waiting.verdict == "open"
    assert rejected.state.changes == 1
