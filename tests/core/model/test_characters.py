"""Text that changes how others are shown is refused where it comes in, and old journals that hold it are still read."""

from typing import Any
from uuid import UUID

import pytest

from control_plane.core.model.characters import OBEYED, in_one_line, one_line, reason_to_reject
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import (
    Freeze,
    Intent,
    Pause,
    ResetParameters,
    Rollback,
    RunAction,
    SaveCheckpoint,
    SetKnobs,
    SetLearningRate,
)
from control_plane.core.model.intents.server import AdoptCheckpoint, DeleteCheckpoint, PinCheckpoint
from control_plane.core.model.records import CommandAccepted, Entry
from control_plane.core.model.state import RunState, fold
from control_plane.core.model.values import Change
from control_plane.core.rules import decisions
from tests.core.examples import created

REFUSED = [
    *map(chr, [*range(0x20), 0x7F, 0x80, 0x85, 0x9B, 0x9F]),
    *map(chr, [0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]),
    *map(chr, [0xD800, 0xDBFF, 0xDC00, 0xDFFF]),
]
TAKEN = ["plain", "größer", "学習率", "لرنینگ ریت", "👩‍🔬", "a\u00a0b", "100 %", "C:\\x", "\u200b"]


def asking(intent: Intent = Pause(), **said: Any) -> Command:
    return Command(uuid=UUID(int=1), author="ada", intent=intent, **said)


@pytest.mark.parametrize("char", REFUSED, ids=lambda char: f"U+{ord(char):04X}")
def test_character_is_refused_in_a_reason_and_shown_as_a_blank(char: str) -> None:
    # Halves of surrogate pairs are refused by the type itself; here is what stands behind it.
    assert reason_to_reject(asking().model_copy(update={"reason": f"a{char}b"}))
    assert one_line(f"a{char}b") == "a b"
    assert OBEYED.search(char)


@pytest.mark.parametrize("text", TAKEN)
def test_text_of_any_language_is_taken(text: str) -> None:
    assert reason_to_reject(asking(reason=text)) is None
    assert one_line(text).isprintable()


BAD = "x\u202ey"
PLACES: dict[str, Command] = {
    "reason": asking(reason=BAD),
    "author": Command(uuid=UUID(int=1), author=BAD, intent=Pause()),
    "label": asking(SaveCheckpoint(label=BAD)),
    "note": asking(SaveCheckpoint(note=BAD)),
    "knob": asking(SetKnobs(changes=(Change(knob=BAD, value=1.0),))),
    "group": asking(SetLearningRate(value=1e-4, group=BAD)),
    "parameters": asking(Freeze(parameters=BAD)),
    "modules": asking(ResetParameters(modules=BAD)),
    "name": asking(RunAction(name=BAD)),
    "arguments": asking(RunAction(name="x", arguments={"a": BAD})),
    "arguments ": asking(RunAction(name="x", arguments={BAD: 1})),
    "checkpoint": asking(PinCheckpoint(checkpoint=BAD)),
    "checkpoint ": asking(DeleteCheckpoint(checkpoint=BAD)),
    "checkpoint  ": asking(Rollback(checkpoint=BAD)),
    "checkpoint   ": asking(AdoptCheckpoint(run="r", checkpoint=BAD)),
    "parameters ": asking(Rollback(checkpoint="x", first=(Freeze(parameters=BAD),))),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_text_of_a_command_is_looked_at(place: str) -> None:
    said = f"the {place.strip()} holds U\\+202E, a character that changes how others are shown; leave it out"
    with pytest.raises(Invalid, match=said):
        decisions.accept(RunState(), PLACES[place])
    if isinstance(PLACES[place].intent, AdoptCheckpoint):
        with pytest.raises(Invalid, match=said):
            decisions.to_be_adopted(RunState(), PLACES[place])


def test_a_note_may_have_lines_and_a_reason_may_not() -> None:
    assert reason_to_reject(asking(SaveCheckpoint(note="first\n\tsecond"))) is None
    assert reason_to_reject(asking(SaveCheckpoint(note="first\r"))) == (
        "the note holds U+000D, a character that changes how others are shown; leave it out"
    )
    assert (
        reason_to_reject(asking(reason="first\nsecond")) == "the reason holds U+000A, a new line or a tab; leave it out"
    )


def test_command_of_an_old_journal_is_read_and_may_be_sent_again() -> None:
    old = asking(reason="\x1b[2J\nforged")
    entries = [Entry(seq=1, time="", record=created()), Entry(seq=2, time="", record=CommandAccepted(command=old))]
    assert Entry.from_line(entries[1].line()).record == entries[1].record
    assert decisions.accept(fold(entries), old) == []


def test_what_tells_in_one_line_has_one() -> None:
    @in_one_line
    def said(word: str) -> str:
        """Its own."""
        return f"a\n{word}"

    assert said("b\x1b[0m") == "a b [0m"
    assert said.__doc__ == "Its own."
