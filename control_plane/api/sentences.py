"""Sentences about records and views of a run, shared by the terminal and the console.

Pure: each function returns one line of plain text without control characters.
"""

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from control_plane.api.messages import RecoveryView, Restarting
from control_plane.core.model.characters import in_one_line, one_line
from control_plane.core.model.commands import Command
from control_plane.core.model.data import shortened
from control_plane.core.model.health import AlertCleared, AlertRaised
from control_plane.core.model.intents import AnswerProposal, Cancel, NoteEffect, WithdrawProposal
from control_plane.core.model.proposals import ProposalClosed, TrialStarted
from control_plane.core.model.records import (
    STEP_WAS_SKIPPED,
    BranchAdopted,
    BranchResumed,
    BranchStarted,
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CheckpointPinned,
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Death,
    GenerationEnded,
    GenerationLost,
    GenerationRecovered,
    GenerationStarted,
    Parent,
    Readback,
    Record,
    RunClosed,
    RunCreated,
    RunResumed,
    StateDigested,
    TermStarted,
)
from control_plane.core.rules.recovery import PHASES

MAX_REASON_CHARS, MAX_ARGUMENTS = 240, 40
"""Characters of a reason, which may hold a whole traceback; script arguments listed before a job is started."""

A_BRANCH_NAME = "1 to 40 small letters, digits, '.', '_' or '-', and begins with a letter or a digit"
"""Rule for branch names, for error messages."""


@in_one_line
def describe_record(record: Record, asked: Mapping[UUID, Command]) -> str:
    """Describe a journal record. `asked`: the commands known so far, for records that only hold a uuid."""
    match record:
        case RunCreated():
            return f"run {record.name} created{_parentage(record)}"
        case RunResumed():
            return "run resumed"
        case RunClosed():
            return f"run {record.ending}{_because(record.reason)}"
        case TermStarted():
            return f"control server started, term {record.term}"
        case CommandAccepted():
            return describe_command(record.command, asked)
        case CommandSettled():
            return f"{_name(record.uuid, asked)}: {describe_outcome(record)}"
        case CommandScheduled():
            return f"{_name(record.uuid, asked)}: planned for step {record.step}"
        case CommandRepeated():
            return describe_repetition(record, _name(record.uuid, asked))
        case BranchStarted():
            return f"branch {record.branch} began at step {record.step} of {record.parent} ({record.checkpoint})"
        case BranchResumed():
            return f"switched to branch {record.branch}"
        case BranchAdopted():
            return f"branch {record.branch} adopted from {describe_origin(record.origin)}"
        case CheckpointCommitted() | CheckpointPinned() | CheckpointFailed() | CheckpointDiscarded():
            return describe_checkpoint(record)
        case StateDigested():
            return f"state at step {record.step} digested on {_count(len(record.ranks), 'rank')}"
        case AlertRaised() | AlertCleared():
            return describe_alert(record)
        case TrialStarted() | ProposalClosed():
            return describe_verdict(record, asked)
        case GenerationStarted() | GenerationLost() | GenerationRecovered() | GenerationEnded():
            return describe_generation(record)


@in_one_line
def describe_alert(record: AlertRaised | AlertCleared) -> str:
    """Describe an alert that was raised, with the reflex that answers it, or that has cleared."""
    if isinstance(record, AlertCleared):
        cleared = record.cleared
        subject = f" of {cleared.subject}" if cleared.subject else ""
        return f"alert {record.alert} ({cleared.kind.replace('_', ' ')}{subject}) cleared at step {cleared.step}"
    alert = record.alert
    said = f"{alert.level} at step {alert.step}: {clean(alert.sentence)}"
    acts = f"did nothing: {clean(record.declined)}" if record.declined else "acts"
    return f"{said}; reflex {record.reflex} {acts}" if record.reflex else said


@in_one_line
def describe_verdict(record: ProposalClosed | TrialStarted, asked: Mapping[UUID, Command]) -> str:
    """Describe how a proposal was closed, by whom, and why; or that it is tried."""
    if isinstance(record, TrialStarted):
        return f"{_name(record.proposal, asked)}: on trial, {record.steps} steps without it and {record.steps} with it"
    verdict: str = "made at once" if record.verdict == "automatic" else record.verdict
    verdict += f" by {clean(record.by)}" if record.by else ""
    return f"{_name(record.proposal, asked)}: {verdict}{_because(record.reason)}"


def _parentage(record: RunCreated) -> str:
    parent = record.parent
    if parent is None:
        return ""
    if parent.kind == "replay":
        return f", a replay of {parent.run}{describe_left_out(parent)}"
    return f", a fork of {parent.run} at step {parent.step} ({parent.checkpoint})"


@in_one_line
def describe_left_out(parent: Parent) -> str:
    """Describe what a replay leaves out, to follow its run's name: ` without command 1f0c9a7e of step 40`; or ``."""
    without = parent.without
    if without is None:
        return ""
    placebo = f", with lr x {1 + without.placebo:.12g} in its place" if without.placebo is not None else ""
    return f" without command {str(without.command)[:8]} of step {without.step}{placebo}"


@in_one_line
def describe_origin(origin: Parent) -> str:
    """Describe the origin of a branch in another run: `gpt2-2, branch main, at step 40`."""
    return f"{origin.run}, branch {origin.branch}, at step {origin.step}"


@in_one_line
def describe_generation(record: GenerationStarted | GenerationLost | GenerationRecovered | GenerationEnded) -> str:
    """Describe the start, failure, recovery or end of a generation."""
    match record:
        case GenerationStarted():
            began = describe_start(
                record.checkpoint, generation=record.generation, step=record.step, world_size=record.world_size
            )
            began += f", training {record.training} of the script" if record.training > 1 else ""
            refused = [f"{each.checkpoint} was refused: {clean(each.reason)}" for each in record.refused]
            return "; ".join([began, *refused])
        case GenerationLost():
            return describe_failure(record.step, record.deaths)
        case GenerationRecovered():
            return f"training again at step {record.step}: {recovery_cost(record.lost_steps, record.phases_s)}"
        case GenerationEnded():
            ended = f"training {record.ending} at step {record.step}{_because(record.reason)}"
            return f"left at step {record.step} for another branch" if record.ending == "left" else ended


@in_one_line
def describe_checkpoint(record: CheckpointCommitted | CheckpointPinned | CheckpointFailed | CheckpointDiscarded) -> str:
    """Describe a checkpoint record."""
    match record:
        case CheckpointCommitted():
            label = f" ({record.label})" if record.label else ""
            notes = [format_size(record.size_bytes)] if record.size_bytes else []
            notes += ["pinned"] if record.pinned else []
            parts = [f"checkpoint {record.checkpoint}{label} at step {record.step}", *notes]
            return ", ".join(parts) + _because(record.note)
        case CheckpointPinned():
            return f"checkpoint {record.checkpoint} {'pinned' if record.pinned else 'no longer pinned'}"
        case CheckpointFailed():
            return f"saving a checkpoint at step {record.step} failed: {clean(record.reason)}"
        case CheckpointDiscarded():
            return f"checkpoint {record.checkpoint} discarded: {clean(record.reason)}"


@in_one_line
def describe_outcome(settled: CommandSettled) -> str:
    """Describe a command's final status."""
    at = f" at step {settled.step}" if settled.step is not None else ""
    if settled.status == "applied":
        # A command without ranks is applied by the control server on acceptance, at no step.
        ranks = f" on {settled.world_size} of {settled.world_size} ranks" if settled.world_size else ""
        skipped = " (a step that was skipped)" if (settled.after or {}).get(STEP_WAS_SKIPPED) else ""
        return f"applied{at or ' at once'}{skipped}{ranks}"
    reason = settled.reason or "no reason was given"
    by = reason.removeprefix(f"{settled.status} by ")
    return f"{settled.status}{at}: {reason}" if by == reason else f"{settled.status}{at} by {by}"


@in_one_line
def describe_repetition(record: CommandRepeated, name: str) -> str:
    """Describe the repetition of a command after a failure."""
    if record.status == "applied":
        return f"{name} applied again at step {record.step}"
    return f"{name} could not be applied again at step {record.step}: {record.status}{_because(record.reason)}"


@in_one_line
def describe_start(checkpoint: str | None, *, generation: int, step: int, world_size: int) -> str:
    """Describe the start of a generation: its checkpoint, step and number of ranks."""
    ranks = _count(world_size, "rank")
    if checkpoint is not None:
        return f"generation {generation} restored {checkpoint} (step {step}) on {ranks}"
    if generation > 1:
        return f"generation {generation} started on {ranks} from step {step}, without a checkpoint"
    return f"training started on {ranks} from step {step}"


@in_one_line
def describe_failure(step: int, deaths: Iterable[Death]) -> str:
    """Describe a failure: `trainers failed at step 137: rank 1 on node-3 died (its process ended)`."""
    died = failed_ranks(deaths)
    return f"trainers failed at step {step}" + (f": {died}" if died else "")


@in_one_line
def failed_ranks(deaths: Iterable[Death]) -> str:
    """List the failed ranks, grouped by reason and node."""
    together: dict[str, dict[str, list[int]]] = {}
    for death in deaths:
        ranks = together.setdefault(clean(death.reason), {}).setdefault(death.node, [])
        ranks += [] if death.rank is None else [death.rank]
    return "; ".join(f"{_places(places)} died ({reason})" for reason, places in together.items())


def _places(places: Mapping[str, list[int]]) -> str:
    return _and([_ranks(sorted(ranks)) + (f" on {node}" if node else "") for node, ranks in places.items()])


def _ranks(ranks: list[int]) -> str:
    if not ranks:
        return "a worker without a rank"
    return f"rank{'s' if len(ranks) > 1 else ''} {_and([str(rank) for rank in ranks])}"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


@in_one_line
def describe_restart(told: Restarting) -> str:
    """Describe a pending restart: `starting again in 4 s after 4 failures without a new step: killed`."""
    count = f"{told.failures} failures without a new step" if told.failures > 1 else "a failure"
    when = f"starting again in {told.left_s:.0f} s" if told.left_s > 0 else "starting again"
    return f"{when} after {count}: {clean(told.reason)}"


FAILS_AGAIN = "the run fails again and again: see its logs, or stop it"
"""Warning beside `describe_restart`, from `crash_loop.ALERT_AFTER` failures on."""


@in_one_line
def describe_recovery(view: RecoveryView) -> str:
    """Describe a recovery, as far as it is known: `generation 2 restored ...; 17 steps lost; detect 0.4 s`."""
    if view.resumed_step is None:
        return "new trainers have not started yet"
    begun = describe_start(
        view.checkpoint, generation=view.generation + 1, step=view.resumed_step, world_size=view.world_size or 0
    )
    return f"{begun}; {recovery_cost(view.lost_steps, view.phases_s)}" if view.lost_steps is not None else begun


@in_one_line
def recovery_cost(lost_steps: int, phases_s: Mapping[str, float]) -> str:
    """Describe the cost of a recovery: `17 steps lost; detect 0.4 s, re-form 3.1 s, load 1.0 s, first step 0.6 s`."""
    spent = ", ".join(f"{name} {format_seconds(value)}" for name, value in phases(phases_s))
    return f"{_count(lost_steps, 'step') if lost_steps else 'no step'} lost" + (f"; {spent}" if spent else "")


def phases(phases_s: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the phases of a recovery with their seconds, in order."""
    known = [name for name in PHASES if name in phases_s]
    return [(name, phases_s[name]) for name in (*known, *(name for name in phases_s if name not in known))]


@in_one_line
def format_readback(values: Readback | None) -> str:
    """Format a readback, e.g. `lr 0.0001, 0.0005`. Equal values of several groups are shown once."""
    return "; ".join(
        f"{name} {format_value(value)}" for name, value in shortened(values or {}).items() if name != "groups"
    )


@in_one_line
def format_change(before: Readback | None, after: Readback | None) -> str:
    """Format a change: `weight_decay 0.01 -> 0.1; betas (0.9, 0.999) -> (0.9, 0.95)`, without unchanged values."""
    was, now = before or {}, after or {}
    changed = [key for key, value in now.items() if key in was and was[key] != value]
    return "; ".join(f"{key} {format_value(was[key])} -> {format_value(now[key])}" for key in changed)


@in_one_line
def format_value(value: Any) -> str:
    """Format a knob's value; a list holds one value per parameter group, and equal ones are shown once."""
    if isinstance(value, list | tuple):
        values = [_single(item) for item in value]
        return values[0] if values and len(set(values)) == 1 else ", ".join(values) or "none"
    return _single(value)


def _single(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(_single(item) for item in value)})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_single(item)}" for key, item in value.items())
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else clean(str(value))


def format_seconds(value_s: float) -> str:
    """Format seconds: `0.4 s`, `12.3 s`, `140 s`. One unit keeps phases comparable."""
    return f"{value_s:.1f} s" if value_s < 100 else f"{value_s:.0f} s"


def format_duration(seconds: float) -> str:
    """Format a duration with the precision of an estimate: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def format_size(size_bytes: int) -> str:
    """Format a size: `512 B`, `1.3 MB`, `2.4 TB`, in powers of 1000."""
    amount, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"


def clean(reason: str) -> str:
    """Return a reason as one line of at most `MAX_REASON_CHARS`."""
    words = " ".join(one_line(reason).split())
    return words if len(words) <= MAX_REASON_CHARS else words[: MAX_REASON_CHARS - 1] + "…"


@in_one_line
def describe_job(config: Any) -> str:
    """Describe what a job with this config, parsed from YAML, would execute, with every word quoted and `clean`."""
    section = config.get("workload") if isinstance(config, dict) else None
    workload = section if isinstance(section, dict) else {}
    if not workload:
        return "nothing: its config names no workload"
    if workload.get("kind") != "script":
        return f"Steerway's own workload {clean(str(workload.get('kind')))!r}, no script"
    given = workload.get("args")
    words = [shlex.quote(clean(str(word))) for word in (given if isinstance(given, list) else [])]
    more = f" and {len(words) - MAX_ARGUMENTS} more" if len(words) > MAX_ARGUMENTS else ""
    arguments = f"the arguments {' '.join(words[:MAX_ARGUMENTS])}{more}" if words else "no arguments"
    bundle = clean(str(config.get("bundle") or ""))[:16]
    code = f" of the code bundle {bundle}..." if bundle else ""
    return f"the script {shlex.quote(clean(str(workload.get('path'))))}{code} with {arguments}{_packages(config)}"


def _packages(config: Mapping[str, Any]) -> str:
    """Return the end of a sentence that names the packages which a job installs: installing runs their code."""
    section = config.get("runtime_env")
    runtime_env = section if isinstance(section, dict) else {}
    given = [runtime_env.get(key) for key in ("pip", "py_modules")]
    packages = [shlex.quote(clean(str(one))) for listed in given if isinstance(listed, list) for one in listed]
    more = f" and {len(packages) - MAX_ARGUMENTS} more" if len(packages) > MAX_ARGUMENTS else ""
    return f", and would install {' '.join(packages[:MAX_ARGUMENTS])}{more}" if packages else ""


def _because(reason: str | None) -> str:
    return f": {clean(reason)}" if reason else ""


@in_one_line
def describe_command(command: Command, asked: Mapping[UUID, Command]) -> str:
    """Describe a command; one about another command or a proposal names it in words."""
    match intent := command.intent:
        case Cancel() | NoteEffect():
            uuid, name = intent.command, _name(intent.command, asked)
        case AnswerProposal() | WithdrawProposal():
            uuid, name = intent.proposal, _name(intent.proposal, asked).removeprefix("propose: ")
        case _:
            return command.describe()
    return command.describe().replace(str(uuid), f"'{name}'", 1)


def _name(uuid: UUID, asked: Mapping[UUID, Command]) -> str:
    command = asked.get(uuid)
    return describe_command(command, asked) if command else f"command {str(uuid)[:8]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
