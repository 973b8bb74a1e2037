"""Sanitizing of control and bidirectional characters: dropped from displayed text, rejected in input.

A control character moves a terminal's cursor or sets its title; a direction mark reverses the words after it; a new
line makes one record look like two.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")

OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (C0, DEL, C1), line ends, direction marks (bidi), and lone surrogates."""

MAY_HAVE_LINES = frozenset({"note"})
"""Fields that may hold several lines. They are shown on one line all the same."""

LINES = re.compile("[\t\n]")


def one_line(text: str) -> str:
    """Return the text with a blank in place of every unprintable character."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def last_line(text: str) -> str:
    """Return the last line that is not blank, or "". Of an error that has come through Ray it is the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def in_one_line(tell: Callable[P, str]) -> Callable[P, str]:
    """Decorate a function that returns untrusted text, so that its result is `one_line`."""

    @wraps(tell)
    def told(*args: P.args, **kwargs: P.kwargs) -> str:
        return one_line(tell(*args, **kwargs))

    return told


def reason_to_reject(words: Any) -> str | None:
    """Return the reason why a message is rejected, or None: one of its texts holds an `OBEYED` character."""
    for name, text in _texts(words, "text"):
        looked_at = LINES.sub("", text) if name in MAY_HAVE_LINES else text
        if match := OBEYED.search(looked_at):
            char = match[0]
            kind = "a new line or a tab" if LINES.match(char) else "a character that changes how others are shown"
            return f"the {name.replace('_', ' ')} holds U+{ord(char):04X}, {kind}; leave it out"
    return None


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield (field, text) for every text in a message; keys of a mapping are texts, too."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _texts(key, name)
            yield from _texts(member, name)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _texts(member, name)
    else:
        fields: Iterable[str] = getattr(type(value), "model_fields", ())
        for field in fields:
            yield from _texts(getattr(value, field), field)
