"""A run that exists in numbers only: its loss depends on its learning rate; it has a journal, and a client."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from control_plane.agent.policy import Observation
from control_plane.api.messages import CommandView, Measurements, Point, Receipt, Snapshot
from control_plane.core.model.commands import Command, Intent, SetKnobs, SetLearningRate
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.intents import RunAction
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, GenerationStarted, Record
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules.admission import check_view
from tests.core import examples

NOON = "2026-01-01T12:00:00Z"


@dataclass
class NoisyModel:
    """Sixteen weights under sign descent with noisy gradients: like Adam, it hovers as high as its learning rate.

    Started at 2e-2 it hovers at a loss of about 4.2; below about 1e-3 it falls to 2.
    """

    seed: int = 0
    weights: list[float] = field(default_factory=lambda: [0.2] * 16)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def step(self, lr: float) -> float:
        """Take one step and return the loss before it."""
        loss = 2.0 + 20 * sum(abs(w) for w in self.weights) / 16 + self.random.gauss(0, 0.05)
        self.weights = [
            w
            - lr
            * math.copysign(1 if self.random.random() < 0.85 else -1, w)
            * (1 + 8 * self.random.random() * lr / 1e-2)
            for w in self.weights
        ]
        return loss


@dataclass
class Quadratic:
    """A bowl with a steep direction: above 2 / steepness gradient descent runs away until the loss is infinite."""

    steepness: float = 400.0
    steep: float = 0.5
    flat: float = 1.0

    def step(self, lr: float) -> float:
        """Take one step and return the loss before it."""
        try:
            loss = 1.0 + self.steepness * self.steep**2 / 2 + 2 * self.flat**2
        except OverflowError:
            loss = math.inf
        self.steep -= lr * self.steepness * self.steep
        self.flat -= lr * 4 * self.flat
        return loss


def observed(losses: list[float], lr: float = 1e-3, first_step: int = 1, **fields: object) -> Observation:
    """An observation of one group, with these losses at consecutive steps."""
    points = tuple((first_step + i, loss) for i, loss in enumerate(losses))
    values: dict[str, object] = {"step": first_step + len(losses) - 1, "total_steps": 1000, "lr": (lr,)}
    return Observation(losses=points, **(values | fields))  # type: ignore[arg-type]


class SimulatedRun:
    """A client of one run that trains while it is asked: every `snapshot` is `steps_per_poll` steps later."""

    def __init__(
        self,
        lr: float,
        model: Callable[[float], float] | None = None,
        total_steps: int = 600,
        steps_per_poll: int = 5,
        name: str = "simulated",
    ) -> None:
        self.lr = lr
        self.model = model or NoisyModel().step
        self.total_steps, self.steps_per_poll, self.name = total_steps, steps_per_poll, name
        self.step = 0
        self.generation = 1
        self.status = "running"
        self.points: list[Point] = []
        self.views: list[CommandView] = []
        self.faults: dict[int, SteerwayError] = {}
        self.polls = 0
        self.on_poll: Callable[[SimulatedRun], None] = lambda run: None
        self.settles = True
        self.entries: list[Entry] = []
        self.state = RunState()
        self.write(examples.created(name))
        self.write_generation()
        # What the script has added: knobs with their facts, actions, and further measurements.
        self.knobs: dict[str, Any] = {}
        self.knob_facts: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self.latest: dict[str, float] = {}
        self.calls: list[dict[str, Any]] = []

    def write(self, record: Record) -> None:
        """Append to the journal."""
        self.entries.append(Entry(seq=len(self.entries) + 1, time=NOON, record=record))
        evolve(self.state, self.entries[-1])

    def write_generation(self) -> None:
        """Journal that trainers began, if a test has put the run into another generation."""
        if self.state.generation_number < self.generation:
            started = GenerationStarted(
                uuid=uuid4(), generation=self.generation, ranks=(), step=self.step, total_steps=self.total_steps,
                knobs={"lr": [self.lr]},
            )  # fmt: skip
            self.write(started)

    def journal(self, run: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        self.write_generation()
        return self.entries[after : after + limit]

    @property
    def losses(self) -> list[float]:
        return [point.value for point in self.points if point.name == "loss"]

    @property
    def intents(self) -> list[Intent]:
        return [view.command.intent for view in self.views]

    def train(self, steps: int) -> None:
        for _ in range(min(steps, self.total_steps - self.step)):
            self.step += 1
            loss = self.model(self.lr)
            self.points.append(Point(step=self.step, name="loss", value=loss, time_s=float(self.step)))
            self.points.append(Point(step=self.step, name="lr", value=self.lr, time_s=float(self.step)))
        if self.step >= self.total_steps:
            self.status = "finished"

    def snapshot(self, run: str) -> Snapshot:
        self.polls += 1
        self.on_poll(self)
        if self.polls in self.faults:
            raise self.faults[self.polls]
        if self.status == "running":
            self.train(self.steps_per_poll)
        self.write_generation()
        return Snapshot(
            run=run, name=self.name, status=self.status, seq=len(self.entries), term=1,
            generation=self.generation, created_at=NOON, step=self.step, total_steps=self.total_steps,
            knobs={"lr": [self.lr]} | self.knobs, knob_facts=self.knob_facts, facts=self.facts,
            latest=self.latest, commands=tuple(self.views),
        )  # fmt: skip

    def metrics(self, run: str, after: int = 0, limit: int = 5000, names: tuple[str, ...] = ()) -> Measurements:
        page = self.points[after : after + limit]
        return Measurements(points=tuple(p for p in page if p.name in names), cursor=after + len(page))

    def submit(
        self,
        run: str,
        intent: Intent,
        *,
        reason: str | None = None,
        based_on_seq: int | None = None,
        uuid: UUID | None = None,
    ) -> Receipt:
        command = Command(
            uuid=uuid or uuid4(), author="autopilot", intent=intent, reason=reason, based_on_seq=based_on_seq
        )
        check_view(self.state, command)
        self.write(CommandAccepted(command=command))
        seq = len(self.entries)
        view = CommandView(
            command=command, what=command.describe(), status="accepted", accepted_seq=seq, accepted_at=NOON
        )
        self.views.append(view)
        if self.settles:
            self.settle()
        return Receipt(uuid=command.uuid, run=run, seq=seq, status="accepted")

    def settle(self) -> None:
        """Apply what is accepted, as the ranks would."""
        self.write_generation()
        for view in self.views:
            if view.settled is None:
                before = {"lr": [self.lr]}
                self.take(view.command.intent)
                self.settle_as(view, "applied", before=before, after={"lr": [self.lr]})

    def settle_as(self, view: CommandView, status: Any, **outcome: Any) -> None:
        """Settle one command, in the journal and in what a snapshot shows."""
        settled = CommandSettled(
            uuid=view.command.uuid, status=status, step=self.step, generation=self.generation, **outcome
        )
        self.write(settled)
        self.views[self.views.index(view)] = view.model_copy(update={"settled": settled, "status": status})

    def take(self, intent: Intent) -> None:
        """As the ranks would."""
        if isinstance(intent, SetLearningRate):
            self.lr = intent.value if intent.value is not None else self.lr * (intent.factor or 1)
        elif isinstance(intent, SetKnobs):
            for change in intent.changes:
                was = self.knobs[change.knob]
                self.knobs[change.knob] = change.value if change.factor is None else was * change.factor
        elif isinstance(intent, RunAction):
            self.calls.append({"name": intent.name} | intent.arguments)

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        view = next(view for view in self.views if view.command.uuid == uuid)
        if view.settled is None:
            raise Unavailable(f"not settled within {timeout_s:g} s")
        return view
