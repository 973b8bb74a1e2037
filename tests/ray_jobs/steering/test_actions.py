"""Knobs and actions of a script's own: what is registered, what is checked at the vote, what a checkpoint keeps."""

from typing import Any
from uuid import uuid4

import pytest

from control_plane.core.model.commands import Change, Command, SetKnobs
from control_plane.core.model.errors import Conflict, Diverged, Invalid
from control_plane.core.model.intents import RunAction
from ray_jobs.steering.actions import MAX_READING_CHARS, ActionsApplier, ScriptActions, ScriptExtensions
from ray_jobs.steering.knobs import Knob, Knobs, KnobsApplier


def asking(name: str, **arguments: Any) -> Command:
    return Command(uuid=uuid4(), author="test", intent=RunAction(name=name, arguments=arguments))


class Shuffler:
    """Something with an action of every argument type, that can be undone."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answer: Any = None
        self.actions = ScriptActions()
        self.actions.register("shuffle", self.shuffle, "another order", undo=self.calls.clear)
        self.applier = ActionsApplier(self.actions)

    def shuffle(self, seed: int, share: float = 0.5, stable: bool = True, by: str = "length") -> Any:
        self.calls.append({"seed": seed, "share": share, "stable": stable, "by": by})
        if self.answer == "fail":
            raise OSError("no such file")
        return self.answer


def test_an_action_gets_the_arguments_that_were_asked_for_and_its_defaults() -> None:
    shuffler = Shuffler()
    command = asking("shuffle", seed=7, share=1, by="date")
    assert shuffler.applier.check(command) is None
    assert shuffler.calls == []
    shuffler.applier.apply(command, 3)
    assert shuffler.calls == [{"seed": 7, "share": 1.0, "stable": True, "by": "date"}]
    assert isinstance(shuffler.calls[0]["share"], float)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "needs the argument 'seed'"),
        ({"seed": 7, "sed": 1}, "has no argument 'sed'"),
        ({"seed": 7.0}, "is 7.0, but takes a whole number"),
        ({"seed": True}, "is True, but takes a whole number"),
        ({"seed": 7, "share": "half"}, "is 'half', but takes a finite number"),
        ({"seed": 7, "share": True}, "is True, but takes a finite number"),
        ({"seed": 7, "stable": 1}, "is 1, but takes true or false"),
        ({"seed": 7, "by": 3}, "is 3, but takes text"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_the_vote(arguments: dict[str, Any], reason: str) -> None:
    shuffler = Shuffler()
    assert reason in str(shuffler.applier.check(asking("shuffle", **arguments)))
    assert shuffler.calls == []


def test_an_unknown_action_is_refused_with_those_that_there_are() -> None:
    assert Shuffler().applier.check(asking("sort")) == "there is no action 'sort'; this run has shuffle"
    assert ActionsApplier(ScriptActions()).check(asking("sort")) == "there is no action 'sort'; this run has none"


@pytest.mark.parametrize(
    ("answer", "reading"),
    [
        (None, {}),
        ({"seed": 3, "files": ["a", "b"]}, {"seed": 3, "files": ["a", "b"]}),
        (0.25, {"result": 0.25}),
        ([1, None], {"result": [1, None]}),
        (object(), {}),
        ({1: 2}, {}),
        ("x" * MAX_READING_CHARS, {}),
    ],
)
def test_the_reading_is_what_the_action_answers_if_that_is_plain(answer: Any, reading: dict[str, Any]) -> None:
    shuffler = Shuffler()
    shuffler.answer = answer
    assert shuffler.applier.apply(asking("shuffle", seed=1), 1).after == reading


def test_the_reading_does_not_change_with_what_the_script_goes_on_to_use() -> None:
    shuffler = Shuffler()
    shuffler.answer = {"order": [1, 2]}
    applied = shuffler.applier.apply(asking("shuffle", seed=1), 1)
    shuffler.answer["order"].append(3)
    assert applied.after == {"order": [1, 2]}


def test_an_action_that_raises_is_undone_by_its_own_undo() -> None:
    shuffler = Shuffler()
    shuffler.answer = "fail"
    with pytest.raises(OSError, match="no such file"):
        shuffler.applier.apply(asking("shuffle", seed=1), 1)
    shuffler.applier.undo(asking("shuffle", seed=1))
    assert shuffler.calls == []


def test_an_action_without_an_undo_cannot_be_undone() -> None:
    actions = ScriptActions()
    actions.register("wipe", lambda: None)
    with pytest.raises(RuntimeError, match="'wipe' has no undo"):
        ActionsApplier(actions).undo(asking("wipe"))


def unannotated(seed): ...  # type: ignore[no-untyped-def]


def listed(seeds: list[int]) -> None: ...


def open_ended(**rest: int) -> None: ...


def by_place(seed: int, /) -> None: ...


def wrong_default(seed: int = "one") -> None: ...  # type: ignore[assignment]


async def awaited(seed: int) -> None: ...


@pytest.mark.parametrize("call", [unannotated, listed, open_ended, by_place, wrong_default, awaited])
def test_a_signature_that_cannot_be_checked_is_refused_when_it_is_registered(call: Any) -> None:
    with pytest.raises(Invalid, match=r"'act'|of act"):
        ScriptActions().register("act", call)


def test_the_same_name_twice_is_refused() -> None:
    shuffler = Shuffler()
    with pytest.raises(Conflict, match="shuffle"):
        shuffler.actions.register("shuffle", lambda: None)


def test_facts_say_how_an_action_is_called() -> None:
    facts = Shuffler().actions.facts()["shuffle"]
    assert facts["description"] == "another order"
    assert facts["can_be_undone"] is True
    assert facts["arguments"]["seed"] == {"type": "int"}
    assert facts["arguments"]["share"] == {"type": "float", "default": 0.5}


class Dial:
    """A value that can be set, and got stuck."""

    def __init__(self, value: float, is_stuck: bool = False) -> None:
        self.value, self.is_stuck = value, is_stuck

    def set(self, value: float) -> None:
        self.value = self.value if self.is_stuck else value


def vocabulary(dial: Dial) -> ScriptExtensions:
    own = ScriptExtensions()
    own.add(Knob("dial", get=lambda: dial.value, set=dial.set))
    return own


def test_values_and_state_come_back_from_what_a_checkpoint_keeps() -> None:
    saved_dial, dial = Dial(4.0), Dial(1.0)
    saved, restored = vocabulary(saved_dial), vocabulary(dial)
    saved.state["epoch"] = 3
    restored.state["left over"] = True
    restored.recall(saved.memory())
    assert dial.value == 4.0
    assert restored.state == {"epoch": 3}


def attached(dial: Dial) -> tuple[ScriptExtensions, Knobs]:
    own, knobs = vocabulary(dial), Knobs()
    own.register_knobs(knobs)
    return own, knobs


def test_a_checkpoint_keeps_a_knob_of_the_script_once_whether_it_was_set_or_not() -> None:
    dial = Dial(1.0)
    own, knobs = attached(dial)
    change = SetKnobs(changes=(Change(knob="dial", value=4.0),))
    KnobsApplier(knobs).apply(Command(uuid=uuid4(), author="test", intent=change), 1)
    dial.value = 5.0  # and the script goes on with it
    assert own.memory() == {"knobs": {"dial": 5.0}}
    assert knobs.memory() == {}


def test_an_older_checkpoint_that_keeps_it_twice_is_restored_and_reads_as_it_was_saved() -> None:
    dial = Dial(1.0)
    own, knobs = attached(dial)
    own.recall({"knobs": {"dial": 4.0}})
    knobs.recall({"dial": 4.0})
    assert dial.value == 4.0
    assert (own.memory(), knobs.memory()) == ({"knobs": {"dial": 4.0}}, {"dial": 4.0})


def test_a_value_that_does_not_come_back_stops_the_start() -> None:
    with pytest.raises(Diverged, match=r"dial was 4\.0 and reads 1\.0"):
        vocabulary(Dial(1.0, is_stuck=True)).recall(vocabulary(Dial(4.0)).memory())


def test_a_script_that_adds_nothing_adds_nothing_to_a_checkpoint() -> None:
    assert ScriptExtensions().memory() == {}
