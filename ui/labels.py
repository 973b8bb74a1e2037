"""Texts of the console: statuses, command states, journal lines, and their escaping."""

import html
import re
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Literal
from uuid import UUID

from pydantic import ValidationError

from control_plane.api.messages import CommandView
from control_plane.api.sentences import describe_outcome, describe_record, format_readback
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
"""Places inside of texts that Streamlit's Markdown would render as a link or an icon."""

MARKS = re.compile(r"[\\`*_{}\[\]<>()#+!|$~:&]")
CODE = re.compile(r"(`[^`]+`)")
BLOCKS = re.compile(r"^(\d*)([-=.])")
"""Beginnings of lines that Markdown renders as a list or a heading."""

Colour = Literal["green", "orange", "yellow", "blue", "violet", "red", "gray"]

STATUS_LOOKS: Mapping[str, tuple[Colour, str]] = {
    "queued": ("gray", ":material/low_priority:"),
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
"""Colour and icon of every status: the icon and the word suffice for users who do not see the colour."""


def looks(status: str) -> tuple[Colour, str]:
    """Return the colour and the icon of the status of a run or of a command."""
    return STATUS_LOOKS.get(status, ("gray", ":material/help:"))


@in_one_line
def life(view: CommandView) -> str:
    """Return the state of a command, as a sentence."""
    settled = view.settled
    if settled is None:
        until, at_last = view.command.not_before_step, view.command.not_after_step
        waits = f"waits for step {until}" if until else "waits for the next step boundary"
        expires = f", and expires after step {at_last}" if at_last is not None else ""
        return f"accepted as record {view.accepted_seq}; {waits}{expires}"
    return describe_outcome(settled)


def read_back(settled: CommandSettled) -> list[str]:
    """Return the values that the ranks have read back: one line if they agree, else one line for each rank."""
    if settled.status != "applied" or not settled.after:
        return []
    before = f"{format_readback(settled.before)} before, " if settled.before else ""
    if all(rank == settled.after for rank in settled.ranks):
        return [f"{before}{format_readback(settled.after)} now, read back on every rank"]
    return [f"rank {number}: {format_readback(rank)}" for number, rank in enumerate(settled.ranks)]


@in_one_line
def line(entry: Entry, commands: Mapping[UUID, Command], zone: tzinfo | None = None) -> str:
    """Return one line of the log: time, seq, type, text, author, reason."""
    record = entry.record
    command = record.command if isinstance(record, CommandAccepted) else None
    command = commands.get(record.uuid) if isinstance(record, CommandSettled | CommandRepeated) else command
    author = command.author if command else record.author if isinstance(record, RunCreated | RunResumed) else ""
    text = f"{clock(entry.time, zone)} {entry.seq:>5}  {record.type:<19} {describe_record(record, commands)}"
    text += f"  by {author}" if author else ""
    reason = command.reason if command and isinstance(record, CommandAccepted) else None
    return text + (f"  “{reason}”" if reason else "")


def clock(time: str, zone: tzinfo | None = None) -> str:
    """Return the time of day of an ISO 8601 time, in the user's time zone."""
    return datetime.fromisoformat(time).astimezone(zone).strftime("%H:%M:%S")


def day(time: str, zone: tzinfo | None = None) -> str:
    """Return date and time of an ISO 8601 time, in the user's time zone."""
    return datetime.fromisoformat(time).astimezone(zone).strftime("%Y-%m-%d %H:%M") if time else ""


def complaint(error: ValidationError) -> str:
    """Return the first validation error of a request, as a sentence."""
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    names = [part for part in first["loc"] if isinstance(part, str) and part not in ("set_learning_rate", "changes")]
    if not names:
        return reason
    return f"{names[0].capitalize()} {first['input']!r} is refused: {reason[0].lower()}{reason[1:]}."


def plain(text: str) -> str:
    """Escape untrusted text for Markdown: it is shown in one line, literally and without links.

    Streamlit renders `www.`, `a@b.c` and `http://` as links, and `:material/x:` as an icon, even if every character is
    escaped; an invisible word joiner inside prevents that.
    """
    return BLOCKS.sub(r"\g<1>\\\g<2>", _inert(" ".join(one_line(text).split())))


def sentence(reason: str) -> str:
    """Escape a reason for Markdown as `plain` does, but keep text between backticks, such as a command, as code.

    Code needs no escaping, so that untrusted text may be in it.
    """
    parts = CODE.split(" ".join(one_line(reason).split()))
    text = "".join(part if at % 2 else _inert(part) for at, part in enumerate(parts))
    return BLOCKS.sub(r"\g<1>\\\g<2>", text)


def _inert(words: str) -> str:
    return MARKS.sub(r"\\\g<0>", LOOKS.sub(WORD_JOINER, words))


def escape(text: str) -> str:
    """Escape untrusted text for HTML, without characters that change how others are shown."""
    return html.escape(one_line(text))
