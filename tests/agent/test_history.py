"""The autopilot's bounds over a real control server: they hold over restarts, twins, floods and other people."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from control_plane.agent.grants import Proposal, Run, Scale
from control_plane.agent.history import SteeringHistory
from control_plane.agent.loop import AgentOptions, Autopilot
from control_plane.agent.policy import AgentAction, AgentBounds, Decision
from control_plane.api.messages import CommandView, Measurements, Point, Receipt, Report, Snapshot
from control_plane.client import SteerwayClient
from control_plane.core.model.commands import Command, Evaluate, Intent, SetLearningRate
from control_plane.core.model.errors import Conflict
from control_plane.core.model.intents import RunAction, SetKnobs, SetSchedule
from control_plane.core.model.intents.grants import Grants
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import (
    BranchStarted,
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationStarted,
    Record,
    TermStarted,
)
from control_plane.storage.layout import RunFiles
from tests.agent.simulated import SimulatedRun
from tests.core import examples
from tests.gateway.rig import RUN, TOKENS, live_gateway, open_server, settle, start_trainers

HALVE, DOUBLE = Decision(AgentAction.HALVE, "lower"), Decision(AgentAction.DOUBLE, "higher")


class Served:
    """A client straight over a control server, whose ranks apply at once. The learning rate is that of two groups."""

    def __init__(self, root: Path, lr: float) -> None:
        self.loop = asyncio.new_event_loop()
        self.lr, self.step, self.author = lr, 1000, "local-agent"
        self.before_submit: Callable[[], None] = lambda: None
        limits = {"action/jump": Limit(roles=("agent",))}
        self.server = open_server(RunFiles(root / RUN), limits)
        self.call(start_trainers(self.server))
        self.sent: list[Intent] = []
        self.measured = [lr]

    def call(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def snapshot(self, run: str) -> Snapshot:
        found: Snapshot = self.call(self.server.snapshot())
        facts: dict[str, Any] = {"actions": {"jump": {"arguments": {}}}}
        return found.model_copy(
            update={"step": self.step, "knobs": found.knobs | {"lr": [self.lr] * 2}, "facts": found.facts | facts}
        )

    def journal(self, run: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        entries: list[Entry] = self.call(self.server.tail(after, limit, 0.0))
        return entries

    def metrics(self, run: str, after: int = 0, limit: int = 5000, names: tuple[str, ...] = ()) -> Measurements:
        losses = [Point(step=self.step - 20 + i, name="loss", value=2.0, time_s=0.0) for i in range(20)]
        rates = [Point(step=self.step, name="lr", value=lr, time_s=0.0) for lr in (*self.measured, self.lr)]
        return Measurements(points=(*losses, *rates), cursor=after + 1)

    def submit(
        self, run: str, intent: Intent, *, reason: Any = None, based_on_seq: Any = None, uuid: Any = None
    ) -> Receipt:
        meanwhile, self.before_submit = self.before_submit, lambda: None
        meanwhile()
        return self.take(intent, "agent", reason, based_on_seq, uuid)

    def take(
        self, intent: Intent, role: str, reason: Any = None, based_on_seq: Any = None, uuid: UUID | None = None
    ) -> Receipt:
        command = Command(
            uuid=uuid or uuid4(),
            author=self.author if role == "agent" else "ann",
            role=role,
            intent=intent,
            reason=reason,
            based_on_seq=based_on_seq,
        )
        receipt: Receipt = self.call(self.server.submit(command))
        self.sent += [intent] if role == "agent" else []
        before = {"lr": [self.lr] * 2}
        if isinstance(intent, SetLearningRate):
            self.lr = intent.value if intent.value is not None else self.lr * (intent.factor or 1)
        outcome = CommandSettled(
            uuid=command.uuid,
            status="applied",
            step=self.step,
            generation=1,
            before=before,
            after={"lr": [self.lr] * 2},
            world_size=2,
        )
        self.call(self.server.report(Report(generation=1, outcomes=(outcome,))))
        return receipt

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        found: CommandView = self.call(self.server.command(uuid))
        return found


class Says:
    """A model that always proposes the same, or one thing after the other."""

    name = "says"

    def __init__(self, *proposals: Proposal) -> None:
        self.proposals = list(proposals)

    def propose(self, *about: object) -> Proposal:
        self.proposals = self.proposals[1:] + self.proposals[:1]
        return self.proposals[-1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[float], Served]]:
    built: list[Served] = []

    def build(lr: float) -> Served:
        built.append(Served(tmp_path / str(len(built)), lr))
        return built[-1]

    yield build
    for each in built:
        each.loop.close()


def pilot(
    run: Served,
    *proposals: Proposal,
    said: list[str] | None = None,
    bounds: AgentBounds = AgentBounds(),
    **options: Any,
) -> Autopilot:
    """An autopilot that looks at every step."""
    lines: list[str] = [] if said is None else said
    model: Any = Says(*proposals)
    return Autopilot(run, RUN, AgentOptions(every_steps=1, bounds=bounds, **options), lines.append, model)


def fly(autopilot: Autopilot, run: Served, polls: int, steps: int) -> None:
    for _ in range(polls):
        run.step += steps
        autopilot.poll()


def test_max_changes_holds_over_five_lives_of_the_autopilot(served: Callable[[float], Served]) -> None:
    run, said, applied = served(1e-3), list[str](), []
    for _ in range(5):
        life = pilot(run, DOUBLE, HALVE, said=said, bounds=AgentBounds(max_changes=3))
        fly(life, run, 10, 25)
        applied.append(life.applied)
    assert len(run.sent) == 3
    assert applied == [3, 0, 0, 0, 0]
    assert "earlier autopilots have used 3 of the 3 changes allowed on this run, the last at step 1075" in said[10]
    assert "all of its 3 changes" in said[-1]


def test_max_changes_counts_on_with_a_new_token_and_in_another_generation(served: Callable[[float], Served]) -> None:
    run = served(1e-3)
    fly(pilot(run, HALVE, bounds=AgentBounds(max_changes=2)), run, 1, 25)
    run.author = "rotated-agent"
    run.call(run.server.fail_generation(1, ()))
    run.call(run.server.start_generation(examples.start(number=901, knobs=examples.KNOBS, step=run.step)))
    history = SteeringHistory()
    assert history.read(run, RUN, run.snapshot(RUN).seq)
    assert history.changes == 1


def test_max_drop_holds_over_eight_lives_of_the_autopilot(served: Callable[[float], Served]) -> None:
    run = served(1e-3)
    for _ in range(8):
        fly(pilot(run, HALVE), run, 12, 25)
    assert run.lr == pytest.approx(1e-3 / 16)
    assert len(run.sent) == 4


def test_max_drop_counts_from_a_peak_that_was_only_measured(served: Callable[[float], Served]) -> None:
    """A warm-up, or a schedule, passed it before this life of the autopilot began."""
    run = served(1e-3)
    run.measured = [8e-3]
    fly(pilot(run, HALVE), run, 12, 25)
    assert run.lr == pytest.approx(8e-3 / 16)


def test_two_autopilots_in_the_same_moment_change_once_and_one_is_left(served: Callable[[float], Served]) -> None:
    run, said, bounds = served(6e-3), list[str](), AgentBounds(max_lr=1.3e-2)
    one, two = pilot(run, DOUBLE, said=said, bounds=bounds), pilot(run, DOUBLE, bounds=bounds)
    run.step += 30
    run.before_submit = two.poll  # type: ignore[assignment]
    one.poll()
    assert (run.lr, len(run.sent)) == (1.2e-2, 1)
    assert "-> not sent: the run has changed since it was observed" in said[-1]
    with pytest.raises(Conflict, match="another autopilot is active on run run-1: local-agent sent 'lr x 2"):
        fly(one, run, 1, 30)
    fly(two, run, 3, 30)
    assert run.lr == 1.2e-2


def test_a_twin_that_joins_later_ends_at_the_first_change_of_either(served: Callable[[float], Served]) -> None:
    run = served(1e-3)
    first = pilot(run, HALVE)
    fly(first, run, 1, 30)
    second = pilot(run, HALVE)
    second.poll()  # one life's change is in the journal already: a restart looks just so, and goes on
    fly(first, run, 1, 30)
    with pytest.raises(Conflict):
        second.poll()
    third = pilot(run, HALVE)
    fly(third, run, 1, 30)
    with pytest.raises(Conflict):
        first.poll()
    assert len(run.sent) == 3


def test_a_dry_run_beside_an_autopilot_goes_on(served: Callable[[float], Served]) -> None:
    run = served(1e-3)
    dry, wet = pilot(run, HALVE, dry_run=True), pilot(run, HALVE)
    dry.poll()
    fly(wet, run, 2, 30)
    dry.poll()
    assert (dry.applied, wet.applied) == (0, 2)


def test_a_person_between_gate_and_submit_is_not_overruled(served: Callable[[float], Served]) -> None:
    run, said = served(6e-3), list[str]()
    autopilot = pilot(run, DOUBLE, said=said, bounds=AgentBounds(max_lr=1.3e-2))
    run.before_submit = lambda: run.take(SetLearningRate(value=1e-2), "operator")  # type: ignore[assignment]
    fly(autopilot, run, 1, 30)
    assert (run.lr, autopilot.applied) == (1e-2, 0)
    assert "-> not sent: the run has changed since it was observed (the command is based on journal entry" in said[-1]


@pytest.mark.parametrize(
    "proposal", [DOUBLE, Scale("lr", 2.0), Scale("weight_decay", 1.1), Run("jump")], ids=lambda each: each.what
)
def test_fifty_evaluations_after_each_change_hide_none(served: Callable[[float], Served], proposal: Proposal) -> None:
    """A snapshot shows the newest fifty commands only."""
    run = served(1e-4)
    granted = {"knobs": {"lr": {}, "weight_decay": {}}, "actions": ["jump"]}
    autopilot = pilot(run, proposal, grants=Grants.model_validate(granted))
    for _ in range(6):
        fly(autopilot, run, 1, 1)
        for _ in range(50):
            run.take(Evaluate(), "operator")
    assert [type(each) for each in run.sent] in ([SetLearningRate], [SetKnobs], [RunAction])


def test_a_long_journal_is_read_in_several_polls_and_not_taken_for_read_before() -> None:
    run, history, term = SimulatedRun(1e-3), SteeringHistory(), TermStarted(term=1, recovered=1)
    while len(run.entries) < 30_000:
        run.write(term)
    assert not history.read(run, "r", 30_000)
    assert history.seq == 20_000
    assert history.read(run, "r", 30_000)


def test_over_the_gateway_a_command_says_what_it_is_based_on_and_a_change_meanwhile_refuses_it(tmp_path: Path) -> None:
    said: list[str] = []
    with live_gateway(tmp_path) as live, SteerwayClient(live.url, TOKENS["agent"]) as client:
        options = AgentOptions(every_steps=1, settle_timeout_s=0.1)
        autopilot = Autopilot(client, RUN, options, said.append, Says(HALVE))  # type: ignore[arg-type]
        submit = client.submit

        def submit_late(*args: Any, **options: Any) -> Receipt:
            meanwhile = Command(uuid=uuid4(), author="ann", intent=SetLearningRate(value=1e-4))
            live.call(live.server.submit(meanwhile))
            return submit(*args, **options)

        client.submit = submit_late  # type: ignore[method-assign]
        assert autopilot.poll() is None
        restarted = Autopilot(client, RUN, options, said.append, Says(HALVE))  # type: ignore[arg-type]
        live.call(settle(live.server, live.call(live.server.snapshot()).commands[0].command.uuid, 4))
        client.submit = submit  # type: ignore[method-assign]
        restarted.poll()
        (only,) = live.call(live.server.snapshot()).commands
    assert only.command.author == "ann"
    assert "not sent: the run has changed since it was observed (the command is based on journal entry 3" in said[0]
    assert "not sent: cool-down: the last change was 0 steps ago" in said[1]


# --- The fold, record by record ---


def folded(*records: Record) -> SteeringHistory:
    run = SimulatedRun(1e-3)
    for record in records:
        run.write(record)
    history = SteeringHistory()
    assert history.read(run, "r", len(run.entries))
    return history


def accepted(number: int, intent: Intent, reason: str | None = None) -> CommandAccepted:
    return CommandAccepted(command=examples.command(number).model_copy(update={"intent": intent, "reason": reason}))


def applied(number: int, step: int, generation: int = 1, **readings: Any) -> CommandSettled:
    return CommandSettled(uuid=examples.uuid(number), status="applied", step=step, generation=generation, **readings)


def began(generation: int, step: int, branch: str = "main", **knobs: Any) -> GenerationStarted:
    return GenerationStarted(
        uuid=uuid4(), generation=generation, ranks=(), step=step, total_steps=100, knobs=knobs, branch=branch
    )


LR, SCHEDULE = SetLearningRate(factor=0.5), SetSchedule(shape="cosine")
DECAY = SetKnobs.model_validate({"changes": [{"knob": "weight_decay", "factor": 0.5}]})
PATTERN = SetKnobs.model_validate({"changes": [{"knob": "*:p", "factor": 0.5}]})


def test_peak_is_the_highest_reading_of_any_group_before_or_after() -> None:
    history = folded(
        began(2, 0, lr=[1e-4, 3e-3]),
        accepted(1, LR),
        applied(1, 5, 2, before={"lr": [7e-3, float("nan")]}, after={"lr": [1e-4, True, "9"]}),
    )
    assert history.peak_lr == 7e-3
    assert folded(accepted(1, LR), applied(1, 5, after={"lr": [8e-3]})).peak_lr == 8e-3


@pytest.mark.parametrize(
    ("knob", "records", "told"),
    [
        ("lr", [accepted(1, LR)], (None, True)),
        ("lr", [accepted(1, LR), applied(1, 7)], (7, False)),
        ("lr", [accepted(1, SCHEDULE), applied(1, 7)], (7, False)),
        ("lr", [accepted(1, DECAY), applied(1, 7)], (None, False)),
        ("weight_decay", [accepted(1, DECAY), applied(1, 7)], (7, False)),
        ("weight_decay", [accepted(1, LR), applied(1, 7)], (None, False)),
        ("drop:p", [accepted(1, PATTERN)], (None, True)),
        ("drop:p", [accepted(1, PATTERN), applied(1, 7, after={"drop:p": 0.1})], (7, False)),
        ("action/jump", [accepted(1, RunAction(name="jump")), applied(1, 7)], (7, False)),
        # Restored from after the change, from before it, and from before it and repeated.
        ("lr", [accepted(1, LR), applied(1, 7), began(2, 10)], (7, False)),
        ("lr", [accepted(1, LR), applied(1, 7), began(2, 5)], (None, False)),
        (
            "lr",
            [
                accepted(1, LR),
                applied(1, 7),
                began(2, 5),
                CommandRepeated(uuid=examples.uuid(1), generation=2, step=7, status="applied"),
            ],
            (7, False),
        ),
        # A branch has the history of its parent up to where it began, and no more.
        (
            "lr",
            [
                accepted(1, LR),
                applied(1, 7),
                accepted(2, LR),
                applied(2, 20),
                BranchStarted(branch="b", parent="main", checkpoint="c", step=10, rollback=examples.uuid(3)),
                began(2, 10, "b"),
            ],
            (7, False),
        ),
    ],
)
def test_last_change_of_a_knob_is_the_last_that_is_in_what_is_trained(
    knob: str, records: list[Record], told: tuple[int | None, bool]
) -> None:
    assert folded(*records).last_change(knob) == told


def test_what_a_replay_does_again_is_no_twin() -> None:
    run, history = SimulatedRun(1e-3), SteeringHistory()
    assert history.read(run, "r", len(run.entries))
    run.write(accepted(1, LR, "autopilot (GreedyLR): lower"))
    run.write(CommandScheduled(uuid=examples.uuid(1), step=9))
    assert history.read(run, "r", len(run.entries))
    history.check_alone("r")
    assert (history.changes, history.applied) == (1, 0)


def test_what_was_rejected_is_no_change_and_what_a_person_did_is_not_counted() -> None:
    history = folded(
        accepted(1, LR, "autopilot (GreedyLR): lower"),
        CommandSettled(uuid=examples.uuid(1), status="rejected", step=3, generation=1, reason="no"),
        accepted(2, LR, "I switched the autopilot (GreedyLR) off"),
        applied(2, 4),
    )
    assert (history.changes, history.inherited) == (0, (0, None))
