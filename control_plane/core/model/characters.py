"""Characters that change how others are shown: left out where text is shown, and refused where it comes in.

A control character moves a terminal's cursor or sets its title; one of direction turns the words after it around; a new
line makes one record look like two.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")

OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls (C0, DEL, C1), ends of lines, marks of direction, and halves of surrogate pairs."""

MAY_HAVE_LINES = frozenset({"note"})
"""What people write that may be longer than a line. Where it is shown, it is one line all the same."""

LINES = re.compile("[\t\n]")


def one_line(text: str) -> str:
    """The text with a blank in the place of every character that is not shown as itself."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def in_one_line(tell: Callable[P, str]) -> Callable[P, str]:
    """For a function that answers a sentence with other people's words in it: what it answers is `one_line`."""

    @wraps(tell)
    def told(*args: P.args, **kwargs: P.kwargs) -> str:
        return one_line(tell(*args, **kwargs))

    return told


def objection(words: Any) -> str | None:
    """Why this message is not taken as its sender wrote it, or None: a text in it holds an `OBEYED` character."""
    for name, text in _texts(words, "text"):
        looked_at = LINES.sub("", text) if name in MAY_HAVE_LINES else text
        if found := OBEYED.search(looked_at):
            char = found[0]
            kind = "a new line or a tab" if LINES.match(char) else "a character that changes how others are shown"
            return f"the {name.replace('_', ' ')} holds U+{ord(char):04X}, {kind}; leave it out"
    return None


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every text in a message, and the field that it is in; the names of a mapping's members are texts, too."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key, name)
            yield from _texts(each, name)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each, name)
    else:
        fields: Iterable[str] = getattr(type(value), "model_fields", ())
        for field in fields:
            yield from _texts(getattr(value, field), field)
