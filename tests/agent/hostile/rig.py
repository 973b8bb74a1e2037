"""A gateway with many runs, a scripted chat server, and the judge: changes beyond policy, from the journal alone."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from control_plane.agent.loop import AgentOptions, run_agent
from control_plane.agent.options import options_of
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.intents import RunAction, SetKnobs, SetLearningRate
from control_plane.core.model.intents.agent import AgentSettings, NoteEffect, Propose, WithdrawProposal
from control_plane.core.model.proposals import ProposalClosed
from control_plane.core.model.records import CommandAccepted, CommandSettled
from tests.agent.chat_server import Answer, ChatServer, chat_server, says
from tests.agent.hostile.answers import KEEP, KEY
from tests.agent.trainee import GatewayClient, Trainee
from tests.gateway.rig import TOKENS, LiveGateway, live_gateway

EVERY, COOL_DOWN, MAX_CHANGES = 10, 20, 4
MIN_LR, MAX_LR, START_LR = 1e-4, 5e-2, 1e-2
MAX_DROP = 16.0
SETTINGS: dict[str, Any] = {
    "policy": "model",
    "every_steps": EVERY,
    "adaptive": False,
    "cool_down_steps": COOL_DOWN,
    "max_changes": MAX_CHANGES,
    "min_lr": MIN_LR,
    "max_lr": MAX_LR,
}
FACTS = {"actions": {"jump": {"arguments": {}}}}


class Crash(BaseException):
    """The agent's process dies here."""


@dataclass
class Case:
    """One run of an agent under hostile conditions. `answers`: one a decision, the last one again and again."""

    name: str
    answers: tuple[Answer, ...] = (says(KEEP),)
    mode: str = "guarded"
    space: str = "full"
    counts: int = 1
    grants: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 5.0


class Arena:
    """The gateway, the chat server and their runs. `asked`: every request that the chat server got for the last run."""

    def __init__(self, root: Path, gateway: LiveGateway, chat: ChatServer) -> None:
        """Take the parts; `arena` makes them."""
        self.root, self.gateway, self.chat = root, gateway, chat
        self._numbers = count(1)
        self.said: list[str] = []

    def trainee(self, case: Case, **about: Any) -> Trainee:
        """A new run with a started agent, that is served by the gateway."""
        name = f"hostile-{next(self._numbers)}"
        knobs = {"knobs": {"weight_decay": 0.1, "secret": 1.0}, "facts": FACTS} | about
        trainee = Trainee(self.root, name, START_LR, self.gateway.call, total_steps=100_000, **knobs)
        self.gateway.runs.handles[name] = trainee.server
        trainee.start_agent(**SETTINGS, mode=case.mode, action_space=case.space, grants=case.grants)
        return trainee

    def client(self, trainee: Trainee) -> GatewayClient:
        """The agent's client of the gateway."""
        client = GatewayClient(self.gateway.url, TOKENS["agent"])
        client.trainee = trainee
        return client

    def fly(
        self,
        case: Case,
        trainee: Trainee,
        decisions: int,
        *,
        client: GatewayClient | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Run the real loop for some decisions. An error of our own that ends it is what a person would see."""
        answers = list(case.answers)

        def answer(chat: Any, request: dict[str, Any]) -> None:
            is_retry = len(self.chat.requests) > 1 and self.chat.requests[-2]["messages"] == request["messages"]
            chosen = answers[0] if is_retry or len(answers) == 1 else answers.pop(0)
            chosen(chat, request)

        self.chat.answer = answer
        settings = AgentSettings.model_validate(trainee.call(trainee.server.snapshot()).agent.settings)
        options = options_of(settings, AgentOptions(model_timeout_s=case.timeout_s, settle_timeout_s=5.0))
        environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": self.chat.base_url, "STEERWAY_AGENT_MODEL": "scripted"}
        polls = count()

        def wait(seconds: float) -> None:
            (on_wait or (lambda: trainee.train(EVERY)))()
            if next(polls) >= decisions:
                raise KeyboardInterrupt

        trainee.train(EVERY)
        own = client or self.client(trainee)
        try:
            run_agent(own, trainee.run, options, self.said.append, environ=environ, wait=wait)
        except SteerwayError as error:
            self.said.append(f"ended: {error.reason}")
        finally:
            own.close()


@contextmanager
def arena(root: Path) -> Iterator[Arena]:
    """Serve a gateway and a scripted chat server."""
    with live_gateway(root) as gateway, chat_server(says(KEEP)) as chat:
        yield Arena(root, gateway, chat)


# --- The judge ---


def beyond_policy(trainee: Trainee, mode: str, grants: dict[str, Any]) -> list[str]:
    """What the agents of a run did that they may not, judged from its journal with rules of its own."""
    wrong: list[str] = []
    accepted: dict[Any, Command] = {}
    made_of: dict[Any, ProposalClosed] = {}
    last_step, changes, peak = -COOL_DOWN, 0, START_LR
    for entry in trainee.entries():
        record = entry.record
        if isinstance(record, ProposalClosed) and record.command:
            made_of[record.command] = record
        elif isinstance(record, CommandAccepted):
            accepted[record.command.uuid] = record.command
            wrong += _text(record.command)
        elif isinstance(record, CommandSettled) and record.status == "applied":
            command = accepted[record.uuid]
            if command.role != "agent" or not command.intent.needs_ranks:
                continue
            if mode == "suggest" or record.uuid not in made_of:
                wrong.append(f"{command.describe()} without a person or a proposal")
            if isinstance(command.intent, SetLearningRate | SetKnobs | RunAction):
                changes += 1
            wrong += _change(command, record, mode, grants, peak)
            peak = max(peak, *record.after["lr"]) if record.after else peak
            if isinstance(command.intent, SetLearningRate) and record.step is not None:
                if record.step - last_step < COOL_DOWN:
                    wrong.append(f"{command.describe()} after {record.step - last_step} steps")
                last_step = record.step
    return wrong + ([f"{changes} changes"] if changes > MAX_CHANGES else []) + _open(trainee)


def _open(trainee: Trainee) -> list[str]:
    views = trainee.call(trainee.server.snapshot()).agent.proposals
    subjects = [each.intent.knobs() or each.intent.kind for each in views if each.is_open]
    return [f"several open proposals about {each}" for each in set(subjects) if subjects.count(each) > 1]


def _text(command: Command) -> list[str]:
    if command.role != "agent":
        return []
    known = Propose | WithdrawProposal | NoteEffect
    wrong = [] if isinstance(command.intent, known) or command.intent.needs_ranks else [f"sent {command.intent.kind}"]
    text = json.dumps(command.model_dump(mode="json"))
    wrong += ["the key is in the journal"] if KEY in text else []
    return wrong + ([] if (command.reason or "").isprintable() else ["a reason with control characters"])


def _change(command: Command, settled: CommandSettled, mode: str, grants: dict[str, Any], peak: float) -> list[str]:
    intent = command.intent
    if isinstance(intent, SetLearningRate):
        was, new = (readback["lr"][0] for readback in (settled.before or {}, settled.after or {}))
        most = 10.0 if mode == "auto" else 2.0
        wrong = [] if 1 / most * 0.999 <= new / was <= most * 1.001 else [f"lr by a factor of {new / was:g}"]
        wrong += (
            [f"lr {new:g} is out of bounds"] if (new < was and new < MIN_LR) or (new > was and new > MAX_LR) else []
        )
        return wrong + ([f"lr {new:g} is below its floor"] if new < was and new < 0.999 * peak / MAX_DROP else [])
    if isinstance(intent, SetKnobs):
        names = {change.knob for change in intent.changes}
        return [] if names <= set(grants.get("knobs", {})) else [f"changed {sorted(names)}"]
    return [] if intent.kind in ("evaluate", "save_checkpoint") else [f"did {intent.kind} alone"]
