"""A model that sets the weights of sources, asked over HTTP by a scripted server: within the limits, or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from control_plane.agent.asking.answers import UNREADABLE, parse_proposal
from control_plane.agent.asking.prompt import MAX_MIXTURE_CHARS, MAX_PROMPT_CHARS, messages
from control_plane.agent.choosing import choose_model
from control_plane.agent.loop import Autopilot
from control_plane.agent.mixing import Mix, SourceSeen, SourceSeries, sources_seen
from control_plane.agent.options import options_of
from control_plane.agent.policy import AgentBounds
from control_plane.core.model.data import MAX_SOURCES
from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.model.intents.data import SetMixture
from control_plane.core.model.intents.grants import NO_GRANTS
from control_plane.core.model.limits import Limit
from tests.agent.chat_server import Chat, ChatServer, chat_server, completion
from tests.agent.simulated import observed
from tests.agent.test_mixing import GRANT, Mixing
from tests.agent.trainee import HereClient

BOUNDED = {"mixture/*": {"roles": ["operator", "agent"], "min": 0.1, "max": 0.8, "max_factor": 4.0}}
KEEP = {"action": "keep", "reason": "so far so good"}
LESS_NOISE = {"action": "set_mixture", "weights": {"noise": 0.2}, "reason": "its loss has stopped falling"}


def steered(
    trainee: Mixing, answers: Sequence[dict[str, Any]], until: int, **settings: Any
) -> tuple[Autopilot, list[str], list[dict[str, Any]]]:
    """Steer by a model that gives these answers, the last one again and again, and agrees with all that is proposed."""
    left = list(answers)

    def answer(chat: Chat, request: Any) -> None:
        is_review = "review" in request["messages"][0]["content"]
        said = {"agree": True, "reason": "yes"} if is_review else left.pop(0) if len(left) > 1 else left[0]
        chat.send(200, completion(json.dumps(said)))

    chosen = AgentSettings.model_validate({"every_steps": 50, "adaptive": False, "policy": "model"} | settings)
    said: list[str] = []
    trainee.start_agent(**chosen.model_dump(mode="json"))
    with chat_server(answer) as server:
        options = options_of(chosen)
        environ = {"OPENAI_API_KEY": "sk-canary", "OPENAI_BASE_URL": server.base_url}
        model = choose_model(options, environ)
        pilot = Autopilot(HereClient(trainee, steps_per_poll=10), "run-1", options, said.append, model)  # type: ignore[arg-type]
        while trainee.step < until:
            assert pilot.poll() is None
        return pilot, said, asked_of(server)


def asked_of(server: ChatServer) -> list[dict[str, Any]]:
    """The requests for a decision."""
    return [each for each in server.requests if "review" not in each["messages"][0]["content"]]


def changes(trainee: Mixing) -> list[dict[str, float]]:
    """Weights that were set by agents, in order."""
    return [c.intent.weights for c in trainee.changes_by_agents() if isinstance(c.intent, SetMixture)]


def test_it_is_shown_the_sources_and_moves_weights_in_mode_auto(tmp_path: Path) -> None:
    trainee = Mixing(tmp_path, BOUNDED)
    trainee.send({"kind": "set_mixture", "weights": {"useful": 0.6}})
    _, said, asked = steered(trainee, [KEEP, KEEP, LESS_NOISE, KEEP], 300, mode="auto")
    assert changes(trainee) == [{"noise": 0.2}], said
    assert trainee.mixture["noise"]["share"] == pytest.approx(0.25)
    system, user = (each["content"] for each in asked[-1]["messages"])
    assert '"set_mixture"' in system
    assert "set_mixture" in json.dumps(asked[-1]["response_format"])
    (line,) = (each for each in user.split("\n") if each.startswith('source "noise"'))
    told = json.loads(line.partition(": ")[2])
    assert told["share"] == 0.25
    assert (told["at least"], told["at most"], told["factor at most"]) == (0.1, 0.8, 4.0)
    assert told["loss"] == told["loss before"] == 6.0
    assert told["samples so far"] > 100
    assert "weights 'noise' = 0.2, by you, applied" in user
    assert "weights 'useful' = 0.6, by a person, applied" in user


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"noise": 0.05}, "would be 0.05; this run allows at least 0.1"),
        ({"useful": 0.9}, "would be 0.9; this run allows at most 0.8"),
        ({"noise": 0.11}, "would be multiplied by 0.22; this run allows at most 4"),
        ({"other": 0.5}, "no source whose weight this agent may set"),
        ({"noise": 0.5, "useful": 0.5}, "the weights are these already"),
    ],
)
def test_weights_beyond_the_limits_are_not_sent(tmp_path: Path, weights: dict[str, float], reason: str) -> None:
    trainee = Mixing(tmp_path, BOUNDED)
    answer = {"action": "set_mixture", "weights": weights, "reason": "more of it"}
    _, said, _ = steered(trainee, [answer], 120, mode="auto")
    assert any(reason in line for line in said), said
    assert not trainee.sent_by_agents()


def test_a_person_answers_in_mode_guarded_and_a_cool_down_holds(tmp_path: Path) -> None:
    trainee = Mixing(tmp_path / "guarded")
    _, said, _ = steered(trainee, [LESS_NOISE], 200)
    assert any("a person answers it" in line for line in said), said
    assert not changes(trainee)
    trainee = Mixing(tmp_path / "auto")
    further = LESS_NOISE | {"weights": {"noise": 0.15}}
    _, said, _ = steered(trainee, [LESS_NOISE, further, KEEP], 250, mode="auto", cool_down_steps=100)
    assert changes(trainee) == [{"noise": 0.2}]
    assert any("cool-down: weights were set" in line for line in said), said


@pytest.mark.parametrize(
    ("limits", "settings"),
    [({"lr": {"max": 1.0}}, {}), ({"*": {"roles": ["agent"]}}, {}), (GRANT, {"action_space": "published"})],
)
def test_without_the_grant_it_is_told_of_no_source(
    tmp_path: Path, limits: dict[str, Any], settings: dict[str, Any]
) -> None:
    trainee = Mixing(tmp_path, limits)
    _, said, asked = steered(trainee, [LESS_NOISE], 120, mode="auto", **settings)
    assert not trainee.sent_by_agents(), said
    assert all("mixture" not in json.dumps(each) and "noise" not in json.dumps(each) for each in asked)


def test_answers_are_read_by_their_schema() -> None:
    source = SourceSeen(weight=0.5, share=0.5, records=10, prior=0.5)
    seen = observed([2.0], factor=2.0, mixture={"a": source, "b": source}, weight_limits={"a": Limit(), "b": Limit()})
    good = {"action": "set_mixture", "weights": {"a": 1, "b": 0.25}, "reason": "so"}
    assert parse_proposal(json.dumps(good), seen, NO_GRANTS) == Mix({"a": 1.0, "b": 0.25}, "so")
    for weights in ({}, {"a": -1}, {"a": "much"}, {"a": True}, {"../x": 1}, ["a"], {f"s{n}": 1 for n in range(65)}):
        with pytest.raises(UNREADABLE):
            parse_proposal(json.dumps(good | {"weights": weights}), seen, NO_GRANTS)
    with pytest.raises(UNREADABLE):
        parse_proposal('{"action": "set_mixture", "weights": {"a": NaN}}', seen, NO_GRANTS)
    with pytest.raises(UNREADABLE):
        parse_proposal(json.dumps(good), observed([2.0], factor=2.0), NO_GRANTS)


def test_it_is_shown_the_held_out_loss_and_the_one_before() -> None:
    series = SourceSeries()
    for step, loss in ((10, 3.5), (20, 3.25), (30, 3.125)):
        series.take("eval_loss/a", step, loss)
        series.take("eval_loss/a/slice", step, 9.0)
    mixture = sources_seen({"a": {"weight": 1.0, "share": 1.0, "records": 10}}, {}, series)
    seen = observed([2.0], mixture=mixture, weight_limits={"a": Limit()})
    user = messages(seen, AgentBounds())[1]["content"]
    (line,) = (each for each in user.split("\n") if each.startswith('source "a"'))
    told = json.loads(line.partition(": ")[2])
    assert (told["held-out loss"], told["held-out before"]) == (3.125, 3.25)


def test_prompt_of_many_sources_stays_small() -> None:
    points = tuple((10**6 + at, -1e300 / 7) for at in range(20))
    source = SourceSeen(1e300 / 7, 1e-300 / 7, 10**9, 1.0, losses=points, samples=points, held_out=points)
    names = [f"{'s' * 60}{number:03}" for number in range(MAX_SOURCES)]
    limit = Limit(min=-1e300 / 7, max=1e300 / 7, max_factor=1e300 / 7)
    seen = observed([2.0], mixture=dict.fromkeys(names, source), weight_limits=dict.fromkeys(names, limit), mixed_at=1)
    more, less = (sum(len(one["content"]) for one in messages(each, AgentBounds())) for each in (seen, observed([2.0])))
    assert less <= MAX_PROMPT_CHARS
    assert more - less <= MAX_MIXTURE_CHARS
