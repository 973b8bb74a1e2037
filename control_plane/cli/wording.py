"""What the terminal says about commands and runs: data in, sentences out."""

import math
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from control_plane import telling
from control_plane.core.characters import in_one_line, one_line
from control_plane.core.commands import Command
from control_plane.core.records import (
    NOT_EXACT,
    SKIPPED_STEPS,
    STEP_WAS_SKIPPED,
    CheckpointCommitted,
    CommandAccepted,
    CommandSettled,
    Entry,
    Reading,
)
from control_plane.handle import CommandView, RecoveryView, Restarting, Snapshot

UNKNOWN = "-"
BESIDE = frozenset({SKIPPED_STEPS, STEP_WAS_SKIPPED})
"""What may be read beside the result of any command."""

OF_THE_LEARNING_RATE = frozenset({"lr", "schedule", "groups"}) | BESIDE
"""What is read after a change of the learning rate, and after no other."""


def number(value: float | None) -> str:
    """A measurement, short. A diverged one is said as it is."""
    if value is None:
        return UNKNOWN
    return f"{value:.4g}"


@in_one_line
def exact(value: Any) -> str:
    """A value that was read back: all of its digits that matter to a person comparing two of them."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """`47s`, `4m28s`, `2h05m`."""
    if not math.isfinite(seconds) or seconds < 0:
        return UNKNOWN
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


@in_one_line
def learning_rate(reading: Reading | None) -> str:
    """The learning rates of a reading: one number if all groups agree."""
    rates = (reading or {}).get("lr")
    if rates is None:
        return UNKNOWN
    if not isinstance(rates, list | tuple):
        return exact(rates)
    distinct = list(dict.fromkeys(exact(rate) for rate in rates))
    return distinct[0] if len(distinct) == 1 else "[" + ", ".join(exact(rate) for rate in rates) + "]"


@in_one_line
def outcome(view: CommandView) -> str:
    """What has become of a command: `applied at step 412 on 2 of 2 ranks: lr 0.0005 -> 0.0001 (rank 0: ...)`."""
    settled = view.settled
    if settled is None:
        return f"accepted as record {view.accepted_seq}, not settled yet: {view.what}"
    said = telling.ending(settled)
    return f"{said}: {change(view.what, settled)}" if settled.status == "applied" else said


@in_one_line
def change(what: str, settled: CommandSettled) -> str:
    """What an applied command changed, as the ranks read it."""
    after = settled.after or {}
    if "lr" not in after or not after.keys() <= OF_THE_LEARNING_RATE or _reshaped(settled):
        known = {"loss": "loss", "eval_loss": "eval loss", "checkpoint": "checkpoint", "step": "step"}
        told = [f"{label} {exact(after[key])}" for key, label in known.items() if after.get(key) is not None]
        told = [each for each in told if each.split()[-1] not in what.split()]
        told += [result] if (result := telling.reading(_result(settled, known))) else []
        told += [changed] if (changed := telling.change(settled.before, after)) else []
        return what + (f" ({', '.join(told)})" if told else "")
    ranks = ", ".join(f"rank {rank}: {learning_rate(reading)}" for rank, reading in enumerate(settled.ranks))
    return f"lr {learning_rate(settled.before)} -> {learning_rate(after)}" + (f" ({ranks})" if ranks else "")


def _result(settled: CommandSettled, known: Iterable[str]) -> Reading:
    """What came out that there was not before, such as the result of an action."""
    left_out = {*known, *(settled.before or {}), *BESIDE, "cancelled"}
    after = settled.after or {}
    return {name: value for name, value in after.items() if name not in left_out and not isinstance(value, bool)}


def _reshaped(settled: CommandSettled) -> bool:
    """Whether the learning rates are what they were: then it was their future that was changed."""
    before, after = settled.before or {}, settled.after or {}
    return before.get("lr") == after.get("lr") and before.get("schedule") != after.get("schedule")


@in_one_line
def settled_line(view: CommandView) -> str:
    """One settled command among the progress: who asked, what became of it, and why."""
    reason = f" because {view.command.reason!r}" if view.command.reason else ""
    return f"{view.command.author}: {view.what}{reason}: {outcome(view)}"


@in_one_line
def loss_line(view: RecoveryView) -> str:
    """The trainers were lost: who, and how long nothing had been heard of them."""
    silent = f", after {telling.seconds(view.silent_s)} without a word" if view.silent_s >= 0.05 else ""
    return telling.loss(view.step, view.deaths) + silent


@in_one_line
def recovery_line(view: RecoveryView) -> str:
    """The way back, and what it has cost."""
    return f"recovered: {telling.recovery(view)}" if view.over else f"recovering: {telling.recovery(view)}"


def is_ending(snapshot: Snapshot) -> bool:
    """Whether its training has ended, and the run has not. A script may have another training to come."""
    return snapshot.status == "waiting" and snapshot.phase == "ended"


def restarting(told: Restarting) -> list[tuple[str, str]]:
    """What is being done about trainers that failed, by label; a warning where they fail again and again."""
    return [("restart", telling.restarting(told)), *([("warning", telling.FAILS_AGAIN)] if told.alert else [])]


def waiting_line(told: Restarting) -> str:
    """The same as one event among the progress."""
    return "; ".join(words for _, words in restarting(told))


def checkpoint_row(found: CheckpointCommitted) -> tuple[str, ...]:
    """Name, step, size, whether it is pinned, label and note, as cells."""
    held = telling.size(found.size_bytes) if found.size_bytes else UNKNOWN
    label = telling.clean(found.label) if found.label else UNKNOWN
    note = telling.clean(found.note) if found.note else UNKNOWN
    return (one_line(found.checkpoint), str(found.step), held, "yes" if found.pinned else "no", label, note)


LEFT_OUT, INEXACT = "left out", "not exact"
ONCE = frozenset({LEFT_OUT, INEXACT})
"""What is the same in every line of a run's progress is not repeated there."""


def seconds_left(snapshot: Snapshot) -> float | None:
    """Until the last step at the present speed; None if nobody knows."""
    if not snapshot.steps_per_s or snapshot.status != "running":
        return None
    return max(0, snapshot.total_steps - snapshot.step) / snapshot.steps_per_s


def progress(snapshot: Snapshot) -> dict[str, str]:
    """A run's progress by label, in the order of reading."""
    left_s = seconds_left(snapshot)
    status = snapshot.status
    if snapshot.phase in ("evaluating", "saving", "starting") and status == "running":
        status = str(snapshot.phase)
    if is_ending(snapshot):
        status = "ending"
    elif status == "waiting" and snapshot.generation:
        status = "starting"  # it was resumed, and its new trainers have not begun
    return {
        "status": status,
        "step": f"{snapshot.step}/{snapshot.total_steps or '?'}",
        "loss": number(snapshot.latest.get("loss")),
        "eval loss": number(snapshot.latest.get("eval_loss")),
        "lr": learning_rate(snapshot.knobs) if "lr" not in snapshot.latest else number(snapshot.latest["lr"]),
        "steps/s": number(snapshot.steps_per_s),
        "ranks": str(len(snapshot.ranks) or UNKNOWN),
        "generation": str(snapshot.generation or UNKNOWN),
        "time left": duration(left_s) if left_s is not None else UNKNOWN,
    } | _left_out(snapshot)


def _left_out(snapshot: Snapshot) -> dict[str, str]:
    """Samples that fill no whole global batch, on which a script started by hand would train; and what no restart
    makes as it would have been."""
    count = snapshot.facts.get("samples_left_out")
    inexact = snapshot.facts.get(NOT_EXACT)
    told = {LEFT_OUT: f"{count} samples of each epoch, which fill no global batch"} if count else {}
    return told | ({INEXACT: f"after a failure: {'; '.join(map(str, inexact))}"} if inexact else {})


@in_one_line
def progress_line(snapshot: Snapshot) -> str:
    """The progress on one line. What is the same in every line is not repeated."""
    shown = {label: value for label, value in progress(snapshot).items() if value != UNKNOWN and label not in ONCE}
    return "  ".join(f"{label} {value}" for label, value in shown.items())


def summary(snapshot: Snapshot) -> list[str]:
    """How a run ended, for the person who started it."""
    applied = sum(1 for view in snapshot.commands if view.status == "applied")
    counts = (
        (applied, "applied command"),
        (len(snapshot.checkpoints), "checkpoint"),
        (snapshot.generation, "generation"),
    )
    return [
        f"run {snapshot.run} {snapshot.status} at step {snapshot.step} of {snapshot.total_steps or '?'}"
        + (f": {snapshot.reason}" if snapshot.reason else ""),
        f"loss {number(snapshot.latest.get('loss'))}, {compared_eval_loss(snapshot)}",
        ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts),
        *(f"{label}: {value}" for label, value in _left_out(snapshot).items()),
    ]


@in_one_line
def compared_eval_loss(snapshot: Snapshot) -> str:
    """The evaluation loss beside what counting words alone would reach."""
    measured, unigram = snapshot.latest.get("eval_loss"), snapshot.facts.get("unigram_entropy_nats")
    if measured is None:
        return "eval loss not measured"
    if not isinstance(unigram, int | float):
        return f"eval loss {number(measured)}"
    verdict = "below" if measured < unigram else "not below"
    return f"eval loss {number(measured)} nats, {verdict} the unigram entropy of {number(float(unigram))} nats"


@in_one_line
def journal_line(entry: Entry, asked: Mapping[UUID, Command]) -> str:
    """An entry on one line. `asked`: the commands known so far, for the records that only name a uuid."""
    record = entry.record
    if isinstance(record, CommandAccepted):
        reason = f" ({record.command.reason})" if record.command.reason else ""
        told = f"{record.command.author}: {telling.name(record.command, asked)}{reason}"
    elif isinstance(record, CommandSettled):
        told = _settled(record)
    else:
        told = telling.what(record, asked)
    return f"{entry.seq:>6}  {entry.time}  {record.type:<19}  {told}"


def _settled(settled: CommandSettled) -> str:
    at = f" at step {settled.step}" if settled.step is not None else ""
    what = change("", settled).strip() if settled.status == "applied" else settled.reason or ""
    return f"{str(settled.uuid)[:8]} {settled.status}{at} {what}".rstrip()
