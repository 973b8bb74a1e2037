"""What the console says: statuses, lives of commands, journal lines and durations, in plain words."""

import html
import re
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Literal
from uuid import UUID

from pydantic import ValidationError

from control_plane.api.handle import CommandView
from control_plane.api.sentences import ending, reading, what
from control_plane.core.model.characters import in_one_line, one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.records import (
    CommandAccepted,
    CommandRepeated,
    CommandSettled,
    Entry,
    RunCreated,
    RunResumed,
)

WORD_JOINER = "\u2060"
LOOKS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=\S)|(?<=:)(?=[A-Za-z_+][\w+/-]*:)", re.IGNORECASE)
"""Places in the midst of what Markdown, as Streamlit reads it, takes for a link or an icon."""

MARKS = re.compile(r"[\\`*_{}\[\]<>()#+!|$~:&]")
CODE = re.compile(r"(`[^`]+`)")
BLOCKS = re.compile(r"^(\d*)([-=.])")
"""What makes a list or a heading of a line that begins with it."""

Colour = Literal["green", "orange", "yellow", "blue", "violet", "red", "gray"]

STATUS_LOOKS: Mapping[str, tuple[Colour, str]] = {
    "waiting": ("gray", ":material/hourglass_empty:"),
    "running": ("green", ":material/play_arrow:"),
    "paused": ("orange", ":material/pause:"),
    "recovering": ("yellow", ":material/restart_alt:"),
    "switching": ("violet", ":material/alt_route:"),
    "finished": ("blue", ":material/check:"),
    "stopped": ("violet", ":material/stop:"),
    "failed": ("red", ":material/error:"),
    "accepted": ("blue", ":material/schedule:"),
    "applied": ("green", ":material/check:"),
    "rejected": ("red", ":material/block:"),
    "expired": ("gray", ":material/timer_off:"),
    "cancelled": ("gray", ":material/close:"),
}
"""Colour and icon of every status: the icon and the word say it too, for whoever does not see the colour."""


def looks(status: str) -> tuple[Colour, str]:
    """The colour and the icon of a status of a run or of a command."""
    return STATUS_LOOKS.get(status, ("gray", ":material/help:"))


@in_one_line
def life(view: CommandView) -> str:
    """What has become of a command, as a sentence."""
    settled = view.settled
    if settled is None:
        until, at_last = view.command.not_before_step, view.command.not_after_step
        waits = f"waits for step {until}" if until else "waits for the next step boundary"
        expires = f", and expires after step {at_last}" if at_last is not None else ""
        return f"accepted as record {view.accepted_seq}; {waits}{expires}"
    return ending(settled)


def read_back(settled: CommandSettled) -> list[str]:
    """What the ranks read back from their live objects: one line if they agree, else one line a rank."""
    if settled.status != "applied" or not settled.after:
        return []
    before = f"{reading(settled.before)} before, " if settled.before else ""
    if all(rank == settled.after for rank in settled.ranks):
        return [f"{before}{reading(settled.after)} now, read back on every rank"]
    return [f"rank {number}: {reading(rank)}" for number, rank in enumerate(settled.ranks)]


@in_one_line
def line(entry: Entry, commands: Mapping[UUID, Command], zone: tzinfo | None = None) -> str:
    """One line of the log: time, seq, type, what, author, reason."""
    record = entry.record
    asked = record.command if isinstance(record, CommandAccepted) else None
    asked = commands.get(record.uuid) if isinstance(record, CommandSettled | CommandRepeated) else asked
    author = asked.author if asked else record.author if isinstance(record, RunCreated | RunResumed) else ""
    said = f"{clock(entry.time, zone)} {entry.seq:>5}  {record.type:<19} {what(record, commands)}"
    said += f"  by {author}" if author else ""
    why = asked.reason if asked and isinstance(record, CommandAccepted) else None
    return said + (f"  “{why}”" if why else "")


def clock(time: str, zone: tzinfo | None = None) -> str:
    """The time of day of an ISO 8601 time, in the reader's zone."""
    return datetime.fromisoformat(time).astimezone(zone).strftime("%H:%M:%S")


def day(time: str, zone: tzinfo | None = None) -> str:
    """Date and time of an ISO 8601 time, in the reader's zone."""
    return datetime.fromisoformat(time).astimezone(zone).strftime("%Y-%m-%d %H:%M") if time else ""


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`: as exact as an estimate deserves."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def complaint(error: ValidationError) -> str:
    """The core's first objection to a request, as a sentence."""
    first = error.errors()[0]
    said = first["msg"].removeprefix("Value error, ")
    names = [part for part in first["loc"] if isinstance(part, str) and part not in ("set_learning_rate", "changes")]
    if not names:
        return said
    return f"{names[0].capitalize()} {first['input']!r} is refused: {said[0].lower()}{said[1:]}."


def plain(text: str) -> str:
    """Text of other people for Markdown: in one line, as it was written, with no meaning there, and no link.

    What is a link by its mere looks (`www.`, `a@b.c`, `http://`), and what is an icon (`:material/x:`), is one for the
    page even if every character of it is escaped; an invisible word joiner inside takes the looks away.
    """
    return BLOCKS.sub(r"\g<1>\\\g<2>", _inert(" ".join(one_line(text).split())))


def sentence(reason: str) -> str:
    """A refusal for Markdown: what it has between backticks, such as a command to type, is code, and all else `plain`.

    Code has no other meaning in it, so it need not be our own.
    """
    parts = CODE.split(" ".join(one_line(reason).split()))
    said = "".join(part if at % 2 else _inert(part) for at, part in enumerate(parts))
    return BLOCKS.sub(r"\g<1>\\\g<2>", said)


def _inert(words: str) -> str:
    return MARKS.sub(r"\\\g<0>", LOOKS.sub(WORD_JOINER, words))


def escape(text: str) -> str:
    """Text of other people for HTML, without characters that change how others are shown."""
    return html.escape(one_line(text))
