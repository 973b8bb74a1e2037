"""Format commands and runs as text for the terminal."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from control_plane.api import sentences
from control_plane.api.messages import CommandView, RecoveryView, Restarting, Snapshot
from control_plane.core.model.characters import in_one_line, one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.records import (
    NOT_EXACT,
    SHARED_NODES,
    SKIPPED_STEPS,
    STEP_WAS_SKIPPED,
    CheckpointCommitted,
    CommandAccepted,
    CommandSettled,
    Entry,
    Readback,
)

UNKNOWN = "-"
BESIDE = frozenset({SKIPPED_STEPS, STEP_WAS_SKIPPED})
"""Values that may be read back beside the result of any command."""

OF_THE_LEARNING_RATE = frozenset({"lr", "schedule", "groups"}) | BESIDE
"""Values that are read back after a change of the learning rate only."""


def number(value: float | None) -> str:
    """Format a measurement with 4 digits; NaN and infinity as they are."""
    if value is None:
        return UNKNOWN
    return f"{value:.4g}"


def span(seconds: float) -> str:
    """Format a duration with at most two units: `45 s`, `14 min 2 s`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(seconds)
    for name, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


@in_one_line
def exact(value: Any) -> str:
    """Format a value that was read back with 10 digits, enough to compare two of them."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


@in_one_line
def learning_rate(reading: Readback | None) -> str:
    """Format the learning rates of a readback: one number if all groups agree."""
    rates = (reading or {}).get("lr")
    if rates is None:
        return UNKNOWN
    if not isinstance(rates, list | tuple):
        return exact(rates)
    distinct = list(dict.fromkeys(exact(rate) for rate in rates))
    return distinct[0] if len(distinct) == 1 else "[" + ", ".join(exact(rate) for rate in rates) + "]"


@in_one_line
def outcome(view: CommandView) -> str:
    """Format the outcome of a command: `applied at step 412 on 2 of 2 ranks: lr 0.0005 -> 0.0001 (rank 0: ...)`."""
    settled = view.settled
    if settled is None:
        return f"accepted as record {view.accepted_seq}, no outcome yet: {view.what}"
    ending = sentences.describe_outcome(settled)
    return f"{ending}: {change(view.what, settled)}" if settled.status == "applied" else ending


@in_one_line
def change(what: str, settled: CommandSettled) -> str:
    """Format the change that an applied command made, as the ranks read it back."""
    after = settled.after or {}
    if "lr" not in after or not after.keys() <= OF_THE_LEARNING_RATE or _reshaped(settled):
        known = {"loss": "loss", "eval_loss": "eval loss", "checkpoint": "checkpoint", "step": "step"}
        parts = [f"{label} {exact(after[key])}" for key, label in known.items() if after.get(key) is not None]
        parts = [part for part in parts if part.split()[-1] not in what.split()]
        parts += [result] if (result := sentences.format_readback(_result(settled, known))) else []
        parts += [changed] if (changed := sentences.format_change(settled.before, after)) else []
        return what + (f" ({', '.join(parts)})" if parts else "")
    ranks = ", ".join(f"rank {rank}: {learning_rate(reading)}" for rank, reading in enumerate(settled.ranks))
    return f"lr {learning_rate(settled.before)} -> {learning_rate(after)}" + (f" ({ranks})" if ranks else "")


def _result(settled: CommandSettled, known: Iterable[str]) -> Readback:
    """Return the values that were only read back afterwards, such as the result of an action."""
    left_out = {*known, *(settled.before or {}), *BESIDE, "cancelled"}
    after = settled.after or {}
    return {name: value for name, value in after.items() if name not in left_out and not isinstance(value, bool)}


def _reshaped(settled: CommandSettled) -> bool:
    """Return whether only the schedule changed and the current learning rates did not."""
    before, after = settled.before or {}, settled.after or {}
    return before.get("lr") == after.get("lr") and before.get("schedule") != after.get("schedule")


@in_one_line
def settled_line(view: CommandView) -> str:
    """Format a settled command as one event line: author, command, reason, outcome."""
    reason = f" because {view.command.reason!r}" if view.command.reason else ""
    return f"{view.command.author}: {view.what}{reason}: {outcome(view)}"


@in_one_line
def loss_line(view: RecoveryView) -> str:
    """Format a failure of trainers: which failed, and how long they had not reported."""
    silent = f", no report for {sentences.format_seconds(view.silent_s)}" if view.silent_s >= 0.05 else ""
    return sentences.describe_failure(view.step, view.deaths) + silent


@in_one_line
def recovery_line(view: RecoveryView) -> str:
    """Format a recovery and its cost."""
    return (
        f"recovered: {sentences.describe_recovery(view)}"
        if view.over
        else f"recovering: {sentences.describe_recovery(view)}"
    )


def is_ending(snapshot: Snapshot) -> bool:
    """Return whether the training has ended but the run has not; a script may start another training."""
    return snapshot.status == "waiting" and snapshot.phase == "ended"


def restarting(restart: Restarting) -> list[tuple[str, str]]:
    """Return labelled lines on the pending restart, with a warning for a crash loop."""
    return [
        ("restart", sentences.describe_restart(restart)),
        *([("warning", sentences.FAILS_AGAIN)] if restart.alert else []),
    ]


def waiting_line(restart: Restarting) -> str:
    """Format a pending restart as one event line."""
    return "; ".join(words for _, words in restarting(restart))


def checkpoint_row(checkpoint: CheckpointCommitted) -> tuple[str, ...]:
    """Return the table row of a checkpoint: name, step, size, pinned, health, label, note."""
    held = sentences.format_size(checkpoint.size_bytes) if checkpoint.size_bytes else UNKNOWN
    label = sentences.clean(checkpoint.label) if checkpoint.label else UNKNOWN
    note = sentences.clean(checkpoint.note) if checkpoint.note else UNKNOWN
    return (
        one_line(checkpoint.checkpoint),
        str(checkpoint.step),
        held,
        "yes" if checkpoint.pinned else "no",
        checkpoint.health,
        label,
        note,
    )


LEFT_OUT, INEXACT, SHARED = "left out", "not exact", "placement"
ONCE = frozenset({LEFT_OUT, INEXACT, SHARED})
"""Labels that never change during a run; progress lines leave them out."""


def seconds_left(snapshot: Snapshot) -> float | None:
    """Return the seconds until the last step at the current speed; None if unknown."""
    if not snapshot.steps_per_s or snapshot.status != "running":
        return None
    return max(0, snapshot.total_steps - snapshot.step) / snapshot.steps_per_s


def progress(snapshot: Snapshot) -> dict[str, str]:
    """Return a run's progress by label, in display order."""
    left_s = seconds_left(snapshot)
    status = snapshot.status
    if snapshot.phase in ("evaluating", "saving", "starting") and status == "running":
        status = str(snapshot.phase)
    if is_ending(snapshot):
        status = "ending"
    elif status == "waiting" and snapshot.generation:
        status = "starting"  # it was resumed, and its new trainers have not started yet
    return {
        "status": status,
        "step": f"{snapshot.step}/{snapshot.total_steps or '?'}",
        "loss": number(snapshot.latest.get("loss")),
        "eval loss": number(snapshot.latest.get("eval_loss")),
        "lr": learning_rate(snapshot.knobs) if "lr" not in snapshot.latest else number(snapshot.latest["lr"]),
        "steps/s": number(snapshot.steps_per_s),
        "ranks": str(len(snapshot.ranks) or UNKNOWN),
        "generation": str(snapshot.generation or UNKNOWN),
        "time left": sentences.format_duration(left_s) if left_s is not None else UNKNOWN,
    } | _left_out(snapshot)


def _left_out(snapshot: Snapshot) -> dict[str, str]:
    """Return labelled notes: samples that fill no global batch (a script started by hand would train on them), what a
    restart does not restore exactly, and a spread that was not had."""
    count = snapshot.facts.get("samples_left_out")
    inexact = snapshot.facts.get(NOT_EXACT)
    notes = {LEFT_OUT: f"{count} samples per epoch that do not fill a global batch"} if count else {}
    shared = snapshot.facts.get(SHARED_NODES)
    notes |= {SHARED: f"spread was asked for: {shared}"} if shared else {}
    return notes | ({INEXACT: f"after a failure: {'; '.join(map(str, inexact))}"} if inexact else {})


@in_one_line
def progress_line(snapshot: Snapshot) -> str:
    """Format the progress as one line, without the labels of `ONCE`."""
    shown = {label: value for label, value in progress(snapshot).items() if value != UNKNOWN and label not in ONCE}
    return "  ".join(f"{label} {value}" for label, value in shown.items())


def summary(snapshot: Snapshot) -> list[str]:
    """Return the closing summary of a run: status, loss, counts."""
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
    """Format the evaluation loss beside the unigram entropy, the loss of a model that only knows word frequencies."""
    measured, unigram = snapshot.latest.get("eval_loss"), snapshot.facts.get("unigram_entropy_nats")
    if measured is None:
        return "eval loss not measured"
    if not isinstance(unigram, int | float):
        return f"eval loss {number(measured)}"
    verdict = "below" if measured < unigram else "not below"
    return f"eval loss {number(measured)} nats, {verdict} the unigram entropy of {number(float(unigram))} nats"


@in_one_line
def journal_line(entry: Entry, asked: Mapping[UUID, Command]) -> str:
    """Format a journal entry as one line. `asked`: the commands so far, for records that only name a uuid."""
    record = entry.record
    if isinstance(record, CommandAccepted):
        reason = f" ({record.command.reason})" if record.command.reason else ""
        text = f"{record.command.author}: {sentences.describe_command(record.command, asked)}{reason}"
    elif isinstance(record, CommandSettled):
        text = _settled(record)
    else:
        text = sentences.describe_record(record, asked)
    return f"{entry.seq:>6}  {entry.time}  {record.type:<19}  {text}"


def _settled(settled: CommandSettled) -> str:
    at = f" at step {settled.step}" if settled.step is not None else ""
    what = change("", settled).strip() if settled.status == "applied" else settled.reason or ""
    return f"{str(settled.uuid)[:8]} {settled.status}{at} {what}".rstrip()
