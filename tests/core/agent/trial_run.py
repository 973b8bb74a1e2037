"""A run whose ranks are simulated, for tests of trials."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from control_plane.core.model.commands import Command, Evaluate, SaveCheckpoint
from control_plane.core.model.intents import Cancel, Rollback
from control_plane.core.model.proposals import ProposalClosed
from control_plane.core.model.records import CommandSettled, Entry, Record
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import decisions
from control_plane.core.rules.agent import trials
from control_plane.core.rules.agent.trials import AUTHOR
from tests.core.agent.test_proposals import HALVE, PROPOSAL, proposal, sent
from tests.core.examples import committed, created, start, state_after, uuid

STEPS, SAVED, LAST = 10, 20, 30
"""Steps of a trial, the step at which it begins here, and the one at which both evaluations are."""

ACCEPT = decisions.Settling().accept


@dataclass
class Run:
    """A run whose ranks are simulated: what is due at a step is settled, and a rollback begins another generation.

    losses: of the evaluations without and with the change. on_step: called before the boundary of each step.
    """

    losses: tuple[Any, Any] = (3.0, 2.0)
    settings: dict[str, Any] = field(default_factory=dict)
    step: int = SAVED
    total_steps: int = 1000
    refuses: Callable[[Command, int], str | None] = lambda command, step: None
    on_step: Callable[["Run"], None] = lambda run: None

    def __post_init__(self) -> None:
        self.state: RunState = state_after(created())
        self.entries: list[Entry] = []
        self.lr = 1.0
        self.begin(0)
        self.send(sent(1, "start_agent", settings={"mode": "guarded", "trial_steps": STEPS} | self.settings))

    def write(self, records: list[Record]) -> list[Record]:
        """Fold records, then what the trial adds to them, as the control server does."""
        for record in records:
            self.entries.append(Entry(seq=self.state.seq + 1, time="t", record=record))
            evolve(self.state, self.entries[-1])
        return records

    def go_on(self) -> None:
        """Write what comes next in the trial."""
        while records := trials.next_records(self.state, ACCEPT):
            self.write(records)

    def send(self, command: Command) -> list[Record]:
        """Send a command as somebody."""
        records = self.write(decisions.accept(self.state, command))
        self.go_on()
        return records

    def propose(self, intent: dict[str, Any] = HALVE, number: int = PROPOSAL) -> list[Record]:
        """Propose as the agent."""
        return self.send(proposal(intent, number))

    def begin(self, step: int, checkpoint: str | None = None) -> None:
        """Begin a generation of trainers on the head."""
        about = start(total_steps=self.total_steps, step=step, branch=self.state.tree.head, checkpoint=checkpoint)
        self.write(decisions.start_generation(self.state, decisions.GenerationStart(**_fields(about))))

    def boundary(self) -> None:
        """Settle what is due after this step."""
        self.on_step(self)
        state, saved = self.state, []
        for command in state.pending_commands():
            if (command.not_before_step or 0) > self.step or command.uuid not in state.pending:
                continue
            reason = self.refuses(command, self.step)
            outcome = CommandSettled(
                uuid=command.uuid, status="rejected" if reason else "applied", reason=reason, step=self.step,
                generation=state.generation_number, after=None if reason else self.reading(command),
            )  # fmt: skip
            self.write(decisions.settle(state, outcome))
            if isinstance(command.intent, SaveCheckpoint) and not reason:
                saved.append(committed(self.step, state.generation_number, branch=state.tree.head))
            if isinstance(command.intent, Cancel) and not reason:
                taken_back = CommandSettled(uuid=command.intent.command, status="cancelled", step=self.step)
                self.write(decisions.settle(state, taken_back))
            if isinstance(command.intent, Rollback) and not reason:
                self.take_branch()
                break
        self.write(list(saved))
        self.go_on()

    def reading(self, command: Command) -> dict[str, Any]:
        """What the ranks read back."""
        match command.intent:
            case Evaluate():
                return {"eval_loss": self.losses[self.state.tree.head.startswith("trial")]}
            case SaveCheckpoint():
                return {"checkpoint": f"step-{self.step}-g{self.state.generation_number}"}
            case Rollback(checkpoint=None):
                return {"branch": command.intent.branch}
            case Rollback():
                base = self.state.checkpoints.find(command.intent.checkpoint)
                assert base is not None
                return {"checkpoint": base.checkpoint, "step": base.step, "from_branch": base.branch}
        return {"lr": [self.lr]}

    def take_branch(self) -> None:
        """Begin on the branch that the run was taken to, with its first commands."""
        head = self.state.tree.branches[self.state.tree.head]
        own = [each for each in self.state.checkpoints.usable() if each.branch == head.name]
        newest = max(own, key=lambda each: each.step).checkpoint if own else head.checkpoint
        base = self.state.checkpoints.find(newest)
        assert base is not None
        self.step = base.step
        self.begin(self.step, base.checkpoint)
        for uuid_, at in list(self.state.scheduled.items()):
            outcome = CommandSettled(
                uuid=uuid_, status="applied", step=at, generation=self.state.generation_number, after={"lr": [0.5]}
            )
            self.write(decisions.settle(self.state, outcome))

    def train(self, until: Callable[["Run"], object] | None = None) -> None:
        """Train until something is so, by default until the trial and its way back are done."""
        for _ in range(200):
            if until(self) if until else self.is_done():
                return
            self.boundary()
            self.step += 1
        raise AssertionError(f"not done: {self.shown()}")

    def is_done(self) -> bool:
        """Whether nothing of a trial waits."""
        of_trial = [uuid for uuid in self.state.pending if self.state.commands[uuid].command.author.startswith(AUTHOR)]
        return not list(self.state.agent.open_proposals()) and not of_trial

    def verdict(self) -> ProposalClosed:
        """How the proposal was closed."""
        closed = self.state.agent.proposals[uuid(PROPOSAL)].closed
        assert closed is not None
        return closed

    def shown(self) -> list[str]:
        """The commands of the trial, in order, with their ends."""
        lives = [life for life in self.state.commands.values() if life.command.author.startswith(AUTHOR)]
        return [f"{life.command.describe()}: {life.status}" for life in lives]


def _fields(about: decisions.GenerationStart) -> dict[str, Any]:
    names = about.__dataclass_fields__
    return {name: getattr(about, name) for name in names} | {"uuid": uuid4()}


def on_trial_branch(run: Run) -> bool:
    """Whether the run trains with the change."""
    return run.state.tree.head == "trial-6"
