"""A run over a real control server whose ranks are simulated, and its clients: in this process, or over a gateway."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from control_plane.api.messages import CommandView, Measurements, Point, Progress, Receipt, Report, Snapshot
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Command, Intent, SetKnobs, SetLearningRate
from control_plane.core.model.intents import INTENT
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.agent.simulated import NoisyModel
from tests.core import examples
from tests.gateway.rig import PointList

FACTS: dict[str, Any] = {"parameters": 1000, "optimizer": "AdamW", "schedule": "linear"}


class Trainee:
    """Simulated ranks of one run: they train in numbers, and settle the commands that the control server offers."""

    def __init__(
        self,
        root: Path,
        name: str,
        lr: float,
        call: Callable[[Coroutine[Any, Any, Any]], Any],
        model: Callable[[float], float] | None = None,
        total_steps: int = 600,
        **about: Any,
    ) -> None:
        """Open the run's control server and start its trainers. `about`: facts, knobs, knob_facts, limits, called."""
        self.run, self.lr, self.call, self.total_steps = name, lr, call, total_steps
        self.model = model or NoisyModel().step
        self.step, self.extra, self.calls = 0, dict(about.get("knobs", {})), 0
        self.files = RunFiles(root / name)
        self.server: ControlServer = call(self._open(about))
        facts = FACTS | about.get("facts", {}) | {"knobs": about.get("knob_facts", {})}
        start = examples.start(ranks=1, total_steps=total_steps, knobs=self.knobs, facts=facts)
        call(self.server.start_generation(start))

    async def _open(self, about: dict[str, Any]) -> ControlServer:
        self.files.root.mkdir(parents=True, exist_ok=True)
        called = {"name": about.get("called", "a run"), "limits": about.get("limits", {})}
        created = examples.created(self.run).model_copy(update=called)
        return ControlServer(created, Journal.open(self.files.journal), PointList())

    @property
    def knobs(self) -> dict[str, Any]:
        """Live values of the knobs."""
        return {"lr": [self.lr], "groups": ["all"]} | self.extra

    def train(self, steps: int, **further: float) -> None:
        """Settle what is offered, then make steps and report their measurements, with those of `further`."""
        self.settle()
        points = []
        for _ in range(min(steps, self.total_steps - self.step)):
            self.step += 1
            values = {"loss": self.model(self.lr), "lr": self.lr} | further
            points += [Point(step=self.step, name=name, value=each, time_s=0.0) for name, each in values.items()]
        progress = Progress(step=self.step, total_steps=self.total_steps)
        self.call(self.server.report(Report(generation=1, points=tuple(points), progress=progress)))

    def settle(self) -> None:
        """Carry out what is offered, as ranks would at a step boundary."""
        offered = self.call(self.server.offers(1, -1, 0.0))
        for command in offered.commands:
            before = self.knobs
            self._apply(command.intent)
            outcome = CommandSettled(
                uuid=command.uuid,
                status="applied",
                step=self.step,
                generation=1,
                before=before,
                after=self.knobs,
                world_size=1,
            )
            self.call(self.server.report(Report(generation=1, outcomes=(outcome,))))

    def _apply(self, intent: Intent) -> None:
        if isinstance(intent, SetLearningRate):
            self.lr = intent.value if intent.value is not None else self.lr * (intent.factor or 1)
        elif isinstance(intent, SetKnobs):
            for change in intent.changes:
                self.extra[change.knob] = (
                    change.value if change.factor is None else self.extra[change.knob] * change.factor
                )
        elif intent.kind == "run_action":
            self.calls += 1

    def send(
        self, body: dict[str, Any], role: str = "operator", author: str = "ann", uuid: UUID | None = None, **fields: Any
    ) -> Receipt:
        """Send a command as somebody. Raises as the control server does."""
        command = Command(uuid=uuid or uuid4(), author=author, role=role, intent=INTENT.validate_python(body), **fields)
        receipt: Receipt = self.call(self.server.submit(command))
        return receipt

    def start_agent(self, **settings: Any) -> None:
        """Start the run's agent, as a person."""
        self.send({"kind": "start_agent", "settings": settings})

    def entries(self) -> list[Entry]:
        """The whole journal."""
        found: list[Entry] = list(self.call(self.server.tail(0, 10**6, 0.0)))
        return found

    def sent_by_agents(self) -> list[Command]:
        """Commands of the role `agent` that were accepted, in order."""
        accepted = [e.record.command for e in self.entries() if isinstance(e.record, CommandAccepted)]
        return [command for command in accepted if command.role == "agent"]

    def changes_by_agents(self) -> list[Command]:
        """Those of them that ask the ranks for something."""
        return [command for command in self.sent_by_agents() if command.intent.needs_ranks]


class HereClient:
    """Client of a trainee in this process, with the role `agent`; every snapshot is some steps of training later."""

    def __init__(self, trainee: Trainee, steps_per_poll: int = 5, author: str = "pilot") -> None:
        """Take a trainee."""
        self.trainee, self.steps_per_poll, self.author = trainee, steps_per_poll, author
        self.on_poll: Callable[[], None] = lambda: None

    def snapshot(self, run: str) -> Snapshot:
        self.trainee.train(self.steps_per_poll)
        self.on_poll()
        found: Snapshot = self.trainee.call(self.trainee.server.snapshot())
        ended = self.trainee.step >= self.trainee.total_steps
        return found.model_copy(update={"status": "finished"}) if ended else found

    def metrics(self, run: str, after: int = 0, limit: int = 5000, names: tuple[str, ...] = ()) -> Measurements:
        page: Measurements = self.trainee.call(self.trainee.server.measurements(after, limit, names))
        return page

    def journal(self, run: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return list(self.trainee.call(self.trainee.server.tail(after, limit, 0.0)))

    def submit(
        self, run: str, intent: Intent, *, reason: Any = None, based_on_seq: Any = None, uuid: Any = None
    ) -> Receipt:
        body = intent.model_dump(mode="json")
        return self.trainee.send(body, "agent", self.author, uuid, reason=reason, based_on_seq=based_on_seq)

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        self.trainee.settle()
        found: CommandView = self.trainee.call(self.trainee.server.command(uuid))
        return found


class GatewayClient(SteerwayClient):
    """Client of a trainee over HTTP; it has the trainee settle what it waits for."""

    trainee: Trainee

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        self.trainee.settle()
        return super().wait_settled(run, uuid, timeout_s)


def own_loop() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """A caller of coroutines on an event loop of its own."""
    return asyncio.new_event_loop().run_until_complete


def diverging(above: float) -> Callable[[float], float]:
    """A loss that is not finite above a learning rate, and falls slowly below it."""
    steps = iter(range(10**9))
    return lambda lr: math.nan if lr > above else 3.0 - 1e-3 * next(steps)
