"""Continue a run on another branch: by a command to its trainers, or by a new job if it has none.

@branch_command
def switch(words, yes) -> RunIntent:
    return run, Rollback(branch=...)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from control_plane.api.launching import ResumeRequest
from control_plane.api.messages import CommandView
from control_plane.api.versions import release
from control_plane.cli.commands.lifecycle import (
    CommandOptions,
    RunIntent,
    WaitFor,
    build_intent,
    steering_command,
    submit_and_wait,
)
from control_plane.cli.errors import UsageError
from control_plane.cli.launching.resume import Trust, reason_for_new_job, resume_by_new_job, wait_until_ended
from control_plane.cli.output.printing import say
from control_plane.cli.select_run import connect
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Conflict, RunEnded, SteerwayError
from control_plane.core.model.intents import Rollback
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import BranchResumed, BranchStarted, Entry, GenerationStarted, RunClosed

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

POLL_S = 20.0
MAX_SETTINGS_TOLD = 6
"""Most differing settings of two configs that are printed; the journal records all of them."""


@dataclass(frozen=True, slots=True)
class BranchCommandOptions(CommandOptions):
    """Options of a command that may submit a new job."""

    trust: Trust = False


def branch_command(build: Callable[..., RunIntent]) -> Callable[..., None]:
    """Return a `steer` command that moves a run to another branch; `build` builds a rollback or an adoption."""
    return steering_command(build, wait_for, switch_or_resubmit, BranchCommandOptions)


def switch_or_resubmit(run: str | None, intent: Intent, options: CommandOptions, wait_for: WaitFor | None) -> None:
    """Move a run to another branch and wait until it trains there. Submits a new job if the run has no trainers."""
    assert run is not None, "the command has already looked the run up"
    with connect() as client:
        reason = reason_for_new_job(client, wait_until_ended(client, client.snapshot(run)))
    if reason is not None:
        _submit_new_job(run, intent, options, reason)
        return
    if not isinstance(intent, AdoptCheckpoint):
        submit_and_wait(run, intent, options, wait_for)
        return
    _adopt(run, intent, options)
    try:
        submit_and_wait(run, build_intent("rollback", branch=intent.branch), options, wait_for)
    except (SteerwayError, typer.Exit):
        say(f"branch {intent.branch} exists but is not trained yet: run steer switch {run} {intent.branch}")
        raise


def _adopt(run: str, intent: AdoptCheckpoint, options: CommandOptions) -> None:
    """Create the branch; this needs no rank. Training it is a second command, a rollback to that branch."""
    from control_plane.cli.output.formatting import outcome

    with connect() as client:
        receipt = client.submit(run, intent, reason=options.reason)
        view = client.wait_settled(run, receipt.uuid, options.timeout)
    say(outcome(view))
    after = (view.settled.after or {}) if view.settled else {}
    kept = [f"{name} = {own} (fork: {theirs})" for name, (theirs, own) in after.get("differing", {}).items()]
    if kept:
        more = f" and {len(kept) - MAX_SETTINGS_TOLD} more" if len(kept) > MAX_SETTINGS_TOLD else ""
        say(f"settings of the run that differ from the fork's are kept: {', '.join(kept[:MAX_SETTINGS_TOLD])}{more}")


def _submit_new_job(run: str, intent: Intent, options: CommandOptions, reason: str) -> None:
    if not (options.not_before is options.not_after is options.based_on is None):
        raise UsageError(f"{reason}, so a new job switches at once: remove --not-before, --not-after and --based-on")
    say(f"{reason}; submitting a new job to continue from there")
    assert isinstance(intent, Rollback | AdoptCheckpoint)
    trust = isinstance(options, BranchCommandOptions) and options.trust
    request = ResumeRequest(back=intent, reason=options.reason, trust=trust, client=release(""))
    with connect() as client:
        resume_by_new_job(client, run, request, options.as_json)


def wait_for(client: "SteerwayClient", run: str, view: CommandView, timeout_s: float) -> tuple[dict[str, Any], str]:
    """Wait until the other branch is being trained. Raises `NotSettledYet`, `RunEnded`, `Conflict`."""
    from control_plane.client import NotSettledYet

    until, after, branch = time.monotonic() + timeout_s, view.accepted_seq, ""
    while (left_s := until - time.monotonic()) > 0:
        for entry in client.journal(run, after=after, wait_s=min(left_s, POLL_S)):
            after, record = entry.seq, entry.record
            if isinstance(record, BranchStarted | BranchResumed):
                if branch:
                    raise Conflict(f"run {run} moved on to branch {record.branch} before branch {branch} was trained")
                branch = record.branch if record.rollback == view.command.uuid else ""
            elif isinstance(record, GenerationStarted) and branch and record.branch == branch:
                return _begun(view, entry, record)
            elif isinstance(record, RunClosed):
                raise RunEnded(
                    f"run {run} {record.ending} before {f'branch {branch}' if branch else 'the new branch'} was trained"
                )
    raise NotSettledYet(
        f"run {run} moved to {f'branch {branch}' if branch else 'the new branch'}, but no trainer started there within "
        f"{timeout_s:.0f} s; check with: steer status {run}"
    )


def _begun(view: CommandView, entry: Entry, record: GenerationStarted) -> tuple[dict[str, Any], str]:
    left_at = datetime.fromisoformat(view.settled_at or entry.time)
    took_s = (datetime.fromisoformat(entry.time) - left_at).total_seconds()
    members = {"branch": record.branch, "step": record.step, "generation": record.generation, "took_s": took_s}
    return {"arrival": members}, f"on branch {record.branch} at step {record.step}, {took_s:.1f} s"
