"""At least 600 hostile cases through the real loop: no change beyond policy, no step of training waited.

`make test` runs one of 24 of them; `pytest -m "slow or not slow" tests/agent/hostile` runs and counts them all.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from control_plane.agent import loop, seeing
from control_plane.agent.policy import Ruling
from control_plane.api.messages import Report
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.health import Alert, HealthChange
from control_plane.core.model.intents import INTENT
from tests.agent.chat_server import says
from tests.agent.hostile import cases
from tests.agent.hostile.answers import INJECTIONS, KEY, action
from tests.agent.hostile.rig import EVERY, Arena, Case, Crash, arena, beyond_policy
from tests.agent.trainee import GatewayClient, Trainee

QUICK = 24
LEAST = 600
STEPS_MEANWHILE = 5
SCRIPTED = (*cases.garbage(), *cases.endpoints(), *cases.greedy())
CRASHES = list(itertools.product(range(1, 25), cases.MODES))
LOST = list(itertools.product(range(1, 9), cases.MODES))
TWINS = list(itertools.product(("halve", "double", "pause", "evaluate"), cases.MODES))
CHANNELS = (
    "run name",
    "reasons",
    "notes",
    "metrics",
    "alerts",
    "knobs",
    "descriptions",
    "arguments",
    "checkpoints",
    "facts",
    "logs",
)


def some(values: Any) -> list[Any]:
    """One of `QUICK` quickly, the others slowly."""
    return [value if i % QUICK == 0 else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One gateway and one chat server for all cases."""
    with arena(tmp_path_factory.mktemp("hostile")) as made:
        yield made


def check(stage: Arena, trainee: Trainee, case: Case) -> None:
    """Nothing beyond policy was done, and nothing secret or unprintable was said."""
    assert beyond_policy(trainee, case.mode, case.grants) == []
    assert not [line for line in stage.said if KEY in line or not line.isprintable()]
    assert trainee.call(trainee.server.snapshot()).status == "running"


def test_there_are_at_least_600_cases(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {
        "answers and endpoints": sum(case.counts for case in SCRIPTED),
        "slow endpoints": len(cases.slow()),
        "injections": len(CHANNELS) * len(INJECTIONS),
        "crashes": len(CRASHES),
        "lost answers": len(LOST),
        "twins": len(TWINS),
    }
    with capsys.disabled():
        print(f"\nhostile cases: {sum(counts.values())} ({', '.join(f'{n} {what}' for what, n in counts.items())})")
    assert sum(counts.values()) >= LEAST


@pytest.mark.parametrize("case", some(SCRIPTED), ids=lambda case: case.name)
def test_hostile_answers_change_nothing_beyond_policy(stage: Arena, case: Case) -> None:
    trainee = stage.trainee(case)
    before = len(stage.chat.requests)
    stage.fly(case, trainee, decisions=max(3, len(case.answers)))
    assert len(stage.chat.requests) > before
    check(stage, trainee, case)


@pytest.mark.parametrize("case", some(cases.slow()), ids=lambda case: case.name)
def test_training_does_not_wait_for_an_endpoint_that_takes_its_time(stage: Arena, case: Case) -> None:
    trainee = stage.trainee(case)
    over, steps = threading.Event(), list[int]()
    waited_s: list[float] = []

    def train() -> None:
        while not over.is_set():
            trainee.train(1)
            steps.append(trainee.step)
            time.sleep(0.002)

    def watched(chat: Any, request: Any) -> None:
        """Let training make some steps while the agent waits for this answer, and only then misbehave."""
        first, began_s = len(steps), time.monotonic()
        while len(steps) < first + STEPS_MEANWHILE and time.monotonic() - began_s < 10 * case.timeout_s:
            time.sleep(0.002)
        waited_s.append(time.monotonic() - began_s)
        case.answers[0](chat, request)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        hanging = replace(case, answers=(watched,))
        stage.fly(hanging, trainee, decisions=1, on_wait=lambda: time.sleep(0.1))
    finally:
        over.set()
        trainer.join(10)
    assert waited_s
    assert max(waited_s) < case.timeout_s, "no steps were made until the agent gave up waiting"
    assert any("did not answer within" in line or "exceeds" in line for line in stage.said[-4:])
    check(stage, trainee, case)


def _inject(stage: Arena, case: Case, channel: str) -> Trainee:
    """A run whose text of one kind is an injection, as many as it takes."""
    texts = dict.fromkeys(INJECTIONS, 1.0)
    about: dict[str, Any] = {}
    if channel == "knobs":
        about = {"knobs": texts, "knob_facts": {text: {"kind": "number", "per_group": False} for text in texts}}
    elif channel == "descriptions":
        described = {"kind": "number", "per_group": False, "description": " ".join(INJECTIONS)}
        about = {"knobs": {"weight_decay": 0.1}, "knob_facts": {"weight_decay": described}}
    elif channel == "arguments":
        listed = {text: {"type": "int", "description": text} for text in texts}
        about = {"facts": {"actions": {"jump": {"description": " ".join(INJECTIONS), "arguments": listed}}}}
    elif channel == "facts":
        about = {"facts": {"optimizer": INJECTIONS[0], "schedule": INJECTIONS[1], "not_exact": list(INJECTIONS)}}
    elif channel == "run name":
        about = {"called": " ".join(INJECTIONS)}
    trainee = stage.trainee(case, **about)
    for text in INJECTIONS:
        if channel == "reasons":
            trainee.send({"kind": "set_learning_rate", "factor": 1.0}, reason=text)
        elif channel == "notes":
            trainee.send({"kind": "propose", "intent": {"kind": "evaluate"}}, reason=text)
            made = trainee.call(trainee.server.snapshot()).agent.proposals[-1].uuid
            trainee.send({"kind": "answer_proposal", "proposal": str(made), "approve": False, "note": text})
        elif channel == "checkpoints":
            trainee.send({"kind": "save_checkpoint", "label": text[:80], "note": text, "pin": True})
    if channel == "alerts":
        raised = tuple(
            Alert(kind="loss_spike", level="critical", step=1, onset_step=1, sentence=text, subject=text[:60])
            for text in INJECTIONS
        )
        trainee.call(trainee.server.report(Report(generation=1, health=(HealthChange(raised=raised),))))
        assert len(trainee.call(trainee.server.snapshot()).alerts) == len(INJECTIONS)
    if channel == "logs":
        (trainee.files.root / "logs").mkdir()
        for name in ("driver.log", "rank-0.log"):
            (trainee.files.root / "logs" / name).write_text("\n".join(INJECTIONS))
    if channel == "metrics":
        trainee.train(1, **{text[:64]: 1.0 for text in INJECTIONS})
    return trainee


@pytest.mark.parametrize("channel", CHANNELS)
def test_what_a_run_says_does_not_reach_the_model(stage: Arena, channel: str) -> None:
    case = Case(channel, grants={"actions": ["jump"], **cases.GRANTS})
    trainee = _inject(stage, case, channel)
    before = len(stage.chat.requests)
    stage.fly(case, trainee, decisions=2)
    asked = stage.chat.requests[before:]
    told = "\n".join(message["content"] for request in asked for message in request["messages"])
    assert asked
    assert [text for text in INJECTIONS if text in told] == []
    assert [word for word in ("canary", "ignore all", "DROP", "im_start") if word in told] == []
    assert channel != "alerts" or "open alert: loss_spike (critical)" in told
    check(stage, trainee, case)


class Dying(GatewayClient):
    """A client whose process dies at its n-th request; with `lost`, the answer of the n-th command is lost instead."""

    dies_at, lost_at = 0, 0

    def _request(self, method: str, path: str, **options: Any) -> Any:
        self.dies_at -= 1
        if self.dies_at == 0:
            raise Crash
        answer = super()._request(method, path, **options)
        if method == "POST":
            self.lost_at -= 1
            if self.lost_at == 0:
                raise Unavailable("the answer was lost")
        return answer


def _die(stage: Arena, case: Case, trainee: Trainee, **when: int) -> None:
    client = Dying(stage.gateway.url, "canary-agent-c04d")
    client.trainee = trainee
    for name, value in when.items():
        setattr(client, name, value)
    try:
        stage.fly(case, trainee, decisions=4, client=client)
    except Crash:
        stage.said.append("crashed")


@pytest.mark.parametrize("where", some(CRASHES), ids=str)
def test_crashes_and_restarts_keep_the_budget(stage: Arena, where: tuple[int, str]) -> None:
    dies_at, mode = where
    case = Case(f"crash at {where}", (says(action("halve")),), mode)
    trainee = stage.trainee(case)
    _die(stage, case, trainee, dies_at=dies_at)
    _die(stage, case, trainee, dies_at=2 * dies_at)
    stage.fly(case, trainee, decisions=6)
    check(stage, trainee, case)


@pytest.mark.parametrize("where", some(LOST), ids=str)
def test_lost_answers_change_nothing_twice(stage: Arena, where: tuple[int, str]) -> None:
    lost_at, mode = where
    case = Case(f"lost at {where}", (says(action("double")),), mode)
    trainee = stage.trainee(case)
    _die(stage, case, trainee, lost_at=lost_at)
    check(stage, trainee, case)


@pytest.mark.parametrize("which", some(TWINS), ids=str)
def test_twins_do_not_add_up(stage: Arena, which: tuple[str, str]) -> None:
    wants, mode = which
    case = Case(f"twins that {wants}", (says(action(wants)),), mode)
    trainee = stage.trainee(case)
    before = len(stage.said)

    def other() -> None:
        trainee.train(EVERY)
        if trainee.step == 4 * EVERY:  # the second one acts between two looks of the first
            stage.fly(case, trainee, decisions=3)

    stage.fly(case, trainee, decisions=8, on_wait=other)
    assert beyond_policy(trainee, mode, {}) == []
    # Where nothing is done at once the second one waits with the first one's open proposal, and neither has to end.
    at_once = mode != "suggest" and wants == "halve"
    assert not at_once or any("ended: another autopilot" in line for line in stage.said[before:])


# --- Planted faults ---


def test_a_gate_that_lets_everything_pass_is_found(stage: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_gate(proposal: Any, *rest: Any) -> Ruling:
        return Ruling(INTENT.validate_python({"kind": "set_learning_rate", "factor": 0.5}), "passed")

    monkeypatch.setattr(loop, "decide", open_gate)
    case = Case("an open gate", (says(action("halve")),))
    trainee = stage.trainee(case)
    stage.fly(case, trainee, decisions=8)
    found = "\n".join(beyond_policy(trainee, case.mode, {}))
    assert "after 10 steps" in found
    assert "below its floor" in found
    assert "changes" in found


def test_a_prompt_that_holds_a_runs_text_is_found(stage: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "told", lambda intent, grants, sources: INJECTIONS[0])
    with pytest.raises(AssertionError):
        test_what_a_run_says_does_not_reach_the_model(stage, "reasons")
