"""A pause that moves the states away: a real session and its boundary, with a stand-in for DeepSpeed's engine."""

import logging
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from control_plane.core.boundary import AllGather, AllReduceMin, Applied, Broadcast
from control_plane.core.model.commands import Command
from ray_jobs.rank.session import RankSession
from ray_jobs.steering.appliers import FlagApplier
from ray_jobs.steering.pause_offload import PauseOffload, reason_not_offloadable


class FusedAdam:
    """DeepSpeed's own has this name."""


class Engine:
    """Moves its states as DeepSpeed's engine does, or fails to."""

    def __init__(self, stage: int = 3, device: str = "cuda:0", optimizer: Any = None, parameters: Any = None) -> None:
        self.device, self._stage, self._parameters = device, stage, parameters
        self.optimizer = SimpleNamespace(optimizer=optimizer or FusedAdam())
        self.moves: list[str] = []
        self.fails: set[str] = set()

    def zero_optimization_stage(self) -> int:
        return self._stage

    def zero_offload_param(self) -> Any:
        return self._parameters

    def offload_states(self) -> None:
        self._move("away")

    def reload_states(self) -> None:
        self._move("back")

    def _move(self, where: str) -> None:
        self.moves.append(where)
        if where in self.fails:
            raise RuntimeError("out of host memory")


class Alone:
    """The collectives of a world of one rank."""

    rank, world_size = 0, 1

    def start_broadcast(self, effect: Broadcast) -> Callable[[], tuple[Command, ...]]:
        return lambda: effect.commands

    def perform(self, effect: Any) -> Any:
        match effect:
            case Broadcast(commands):
                return commands
            case AllReduceMin(value):
                return value
            case AllGather(value):
                return [value]


class Offers:
    """A link that offers, at each look, the next commands."""

    def __init__(self, looks: Iterable[tuple[Command, ...]]) -> None:
        self._looks = iter(looks)

    def offers(self) -> tuple[Command, ...]:
        return next(self._looks, ())

    def report(self, outcomes: Any) -> None: ...

    def phase(self, phase: str) -> None: ...

    def progress(self, *where: Any) -> None: ...


class Look:
    """Carries out an evaluation, and notes where the states are then."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.found = engine, ""

    def check(self, command: Command) -> None:
        self.found = self._engine.moves[-1]

    def apply(self, command: Command, step: int) -> Applied:
        return Applied({}, {})

    def undo(self, command: Command) -> None: ...


def asked(kind: str) -> tuple[Command, ...]:
    return (Command.model_validate({"uuid": str(uuid4()), "author": "test", "intent": {"kind": kind}}),)


def session(engine: Engine, *looks: tuple[Command, ...]) -> RankSession:
    made = RankSession(Alone(), Offers(looks), rest=PauseOffload(engine).rest)  # type: ignore[arg-type]
    made.register("pause", FlagApplier("paused", True))
    made.register("resume", FlagApplier("paused", False))
    return made


def test_states_are_away_while_the_run_is_held_and_back_before_the_next_step() -> None:
    engine = Engine()
    session(engine, asked("pause"), (), (), asked("resume")).end_step(1)
    assert engine.moves == ["away", "back"]


def test_a_command_of_a_paused_run_finds_the_states_where_it_needs_them() -> None:
    engine = Engine()
    looking = Look(engine)
    held = session(engine, asked("pause"), (), asked("evaluate"), (), asked("resume"))
    held.register("evaluate", looking)
    held.end_step(1)
    assert looking.found == "back"
    assert engine.moves == ["away", "back", "away", "back"]


def test_a_boundary_without_a_pause_moves_nothing() -> None:
    engine = Engine()
    session(engine, ()).end_step(1)
    assert engine.moves == []


def test_states_that_cannot_be_moved_away_are_brought_back_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.fails = {"away"}
    session(engine, asked("pause"), (), (), asked("resume")).end_step(1)
    assert engine.moves == ["away", "back"]
    assert "pause.offload has no effect: RuntimeError: out of host memory" in caplog.text


def test_states_that_cannot_be_brought_back_end_this_rank() -> None:
    engine = Engine()
    engine.fails = {"back"}
    with pytest.raises(RuntimeError, match="out of host memory"):
        session(engine, asked("pause"), (), asked("resume")).end_step(1)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (None, "without DeepSpeed"),
        (Engine(device="cpu"), "on CPUs"),
        (Engine(stage=2), "with ZeRO 2; states are moved with ZeRO 3 only"),
        (Engine(optimizer=object()), "optimizer is object; DeepSpeed moves the state of its own FusedAdam only"),
        (Engine(parameters=SimpleNamespace(device="cpu")), "offloads its parameters all the time"),
    ],
)
def test_where_states_cannot_be_moved_the_log_says_why_and_nothing_is_tried(
    engine: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        memory = PauseOffload(engine)
    memory.rest(True)
    memory.rest(False)
    assert reason in caplog.text
    assert engine is None or engine.moves == []


def test_parameters_that_are_not_offloaded_are_no_obstacle() -> None:
    assert reason_not_offloadable(Engine(parameters=SimpleNamespace(device=SimpleNamespace(value="none")))) is None
