"""Where a run goes on: by a command to its trainers, or, where there are none any more, by a new job.

@taking
def switch(words, yes) -> Asked:
    return run, Rollback(branch=...)
"""

import getpass
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import typer

from control_plane.cli.asking import Arrive, Asked, Manner, ask, intent_of, steering
from control_plane.cli.printing import say
from control_plane.cli.refusals import Misused
from control_plane.cli.resuming import Trust, needs_a_job, resumption, submit_job, when_it_has_ended
from control_plane.cli.target import connect
from control_plane.config import settings
from control_plane.core.commands import Command, Intent
from control_plane.core.errors import Conflict, RunEnded, SteerwayError
from control_plane.core.intents import AdoptCheckpoint
from control_plane.core.records import BranchResumed, BranchStarted, Entry, GenerationStarted, RunClosed
from control_plane.handle import CommandView

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

POLL_S = 20.0
MAX_SETTINGS_TOLD = 6
"""Of two configs; the journal has them all."""


@dataclass(frozen=True, slots=True)
class GoingManner(Manner):
    """How a run is taken to another branch, by a new job, too."""

    trust: Trust = False


def taking(wish: Callable[..., Asked]) -> Callable[..., None]:
    """A command of `steer` that takes a run to another branch: `wish` answers a rollback, or an adoption."""
    return steering(wish, arrive, go, GoingManner)


def go(run: str | None, intent: Intent, manner: Manner, arrived: Arrive | None) -> None:
    """Take a run to another branch, and wait until it trains there. Where nobody trains it, a new job does."""
    assert run is not None, "whoever goes back has looked at the run"
    with connect() as client:
        why = needs_a_job(when_it_has_ended(client, client.snapshot(run)), settings())
    if why is not None:
        _by_a_new_job(run, intent, manner, why)
        return
    if not isinstance(intent, AdoptCheckpoint):
        ask(run, intent, manner, arrived)
        return
    _adopt(run, intent, manner)
    try:
        ask(run, intent_of("rollback", branch=intent.branch), manner, arrived)
    except (SteerwayError, typer.Exit):
        say(f"branch {intent.branch} is there, and waits: steer switch {run} {intent.branch}")
        raise


def _adopt(run: str, intent: AdoptCheckpoint, manner: Manner) -> None:
    """It is done at once: no rank is needed. What then comes of the branch is another command's."""
    from control_plane.cli.wording import outcome

    with connect() as client:
        receipt = client.submit(run, intent, reason=manner.reason)
        view = client.wait_settled(run, receipt.uuid, manner.timeout)
    say(outcome(view))
    found = (view.settled.after or {}) if view.settled else {}
    told = [f"{name} = {own} (there {theirs})" for name, (theirs, own) in found.get("differing", {}).items()]
    if told:
        more = f" and {len(told) - MAX_SETTINGS_TOLD} more" if len(told) > MAX_SETTINGS_TOLD else ""
        say(f"the run keeps its own settings: {', '.join(told[:MAX_SETTINGS_TOLD])}{more}")


def _by_a_new_job(run: str, intent: Intent, manner: Manner, why: str) -> None:
    if not (manner.not_before is manner.not_after is manner.based_on is None):
        raise Misused(f"{why}, and a new job goes there at once: leave --not-before, --not-after and --based-on out")
    say(f"{why}; submitting a new job that goes on from there")
    command = Command(uuid=uuid4(), author=getpass.getuser(), intent=intent, reason=manner.reason)
    words = [
        *resumption(run, isinstance(manner, GoingManner) and manner.trust, manner.as_json),
        "--back",
        command.model_dump_json(),
    ]
    submit_job(run, words, settings())


def arrive(client: "SteerwayClient", run: str, view: CommandView, timeout_s: float) -> tuple[dict[str, Any], str]:
    """Wait until the trainers of the other branch have begun. Raises `NotSettledYet`, `RunEnded`, `Conflict`."""
    from control_plane.client import NotSettledYet

    until, after, branch = time.monotonic() + timeout_s, view.accepted_seq, ""
    while (left_s := until - time.monotonic()) > 0:
        for entry in client.journal(run, after=after, wait_s=min(left_s, POLL_S)):
            after, record = entry.seq, entry.record
            if isinstance(record, BranchStarted | BranchResumed):
                if branch:
                    raise Conflict(f"run {run} was taken to branch {record.branch} before {branch} had begun to train")
                branch = record.branch if record.rollback == view.command.uuid else ""
            elif isinstance(record, GenerationStarted) and branch and record.branch == branch:
                return _begun(view, entry, record)
            elif isinstance(record, RunClosed):
                raise RunEnded(f"run {run} {record.ending} before branch {branch or 'it went to'} had begun to train")
    raise NotSettledYet(
        f"the run was taken to branch {branch or 'asked for'}, but no trainers have begun there within {timeout_s:.0f} "
        f"s; look with: steer status {run}"
    )


def _begun(view: CommandView, entry: Entry, record: GenerationStarted) -> tuple[dict[str, Any], str]:
    left_at = datetime.fromisoformat(view.settled_at or entry.time)
    took_s = (datetime.fromisoformat(entry.time) - left_at).total_seconds()
    members = {"branch": record.branch, "step": record.step, "generation": record.generation, "took_s": took_s}
    return {"arrival": members}, f"on branch {record.branch} at step {record.step}, {took_s:.1f} s"
