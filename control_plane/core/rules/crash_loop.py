"""Crash-loop detection and back-off: which failures are equal, when a run is given up, how long a restart waits.

    reason_to_give_up(state)       after each failure, and before each start
    wait_s(state)                  exponential backoff between the last failure and the next start

A dead machine is no reason to give up a run: its trainers are restarted without limit, with growing waits. A run fails
on the same failure again and again: it would fail in the same way for ever.
"""

import re
from collections.abc import Sequence

from pydantic import Field

from control_plane.core.model.intent_base import Message
from control_plane.core.model.records import MAIN, Death
from control_plane.core.model.state import GenerationFailure, RunState

SAME_FAILURES = 3
"""Equal failures in a row, without a new step, after which the machines are not to blame."""

SAME_FAILURES_BEFORE_A_START = 2
"""The same before the first start: nothing has ever worked, most likely the script is broken."""

LEAST_WAIT_S, MOST_WAIT_S = 1.0, 300.0
"""The backoff doubles from the first of these to the second."""

ALERT_AFTER = 3
"""Failures without a new step from which on a warning is shown: most runs never have one."""

MAX_ATTEMPTS_TOLD = 5
MAX_CAUSE_CHARS = 200

OUT_OF_MEMORY = "out of memory"
KILLED = "killed, or ended without a word"
NODE_DIED = "its node died"
NO_ANSWER = "it does not answer"
PEER_LOST = "the connection to another rank broke"

UNKNOWN = "no reason is known"

NEVER_THE_SAME = (NODE_DIED, UNKNOWN)
"""Causes that never count as equal once the trainers have worked: two dead nodes need not have one reason."""

SIGNAL = "signal "
"""Prefix of a cause, before a signal's name."""

BY_FORCE = (OUT_OF_MEMORY, KILLED, NODE_DIED, SIGNAL)
"""Causes from outside the process: if a rank died so, exceptions on other ranks are consequences."""

CONSEQUENCES = (PEER_LOST, NO_ANSWER, "gone", "silent", "stopped")
"""Causes reported by ranks that only noticed another rank's failure."""

_NOISE = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]*\d[0-9a-f]{6,}\b|\d+(?:\.\d+)*", re.IGNORECASE)


class Attempt(Message):
    """One start of the trainers that ended in a failure.

    `restored_step` is None if they failed before the first step. `cause` is equal for equal failures and holds no step.
    `said` is the rank's own error message.
    """

    number: int
    generation: int
    restored_step: int | None
    reached_step: int
    cause: str
    said: str = ""
    training: int = 1
    branch: str = MAIN
    failed_at: str = Field(default="", description="UTC, ISO 8601")

    def is_like(self, other: "Attempt") -> bool:
        """Return whether both failed with the same cause at the same step of the same training."""
        if self.restored_step is not None and self.cause in NEVER_THE_SAME:
            return self is other
        return self._place == other._place and self.cause == other.cause

    @property
    def _place(self) -> tuple[int, bool, int]:
        return self.training, self.restored_step is None, self.reached_step

    def describe(self) -> str:
        """`3 (generation 2) from step 40 to 47: ValueError at train.py:12 in main`."""
        if self.restored_step is None:
            return f"{self.number} failed before the first step: {self.cause}"
        return (
            f"{self.number} (generation {self.generation}) from step {self.restored_step} to {self.reached_step}: "
            f"{self.cause}"
        )


def failures_without_a_new_step(state: RunState) -> tuple[Attempt, ...]:
    """Return the failures since the run last reached a new step, oldest first.

    Failures before the run was resumed or taken to another branch do not count.
    """
    row: list[Attempt] = []
    furthest = (0, -1)
    for number, failure in enumerate(state.failures[state.failures_before_resume :], start=1):
        attempt = _attempt(state, number, failure)
        place = (attempt.training, attempt.reached_step)
        if place > furthest:
            row, furthest = [], place
        row.append(attempt)
    return tuple(row)


def _attempt(state: RunState, number: int, failure: GenerationFailure) -> Attempt:
    record, began = failure.record, failure.began
    cause, said = cause_of(record.deaths)
    return Attempt(
        number=number,
        generation=record.generation,
        restored_step=began.step if began else None,
        reached_step=record.step,
        cause=cause,
        said=said,
        training=state.training_of_generation.get(record.generation, 1),
        branch=state.tree.of_generation.get(record.generation, MAIN) if began else state.tree.head,
        failed_at=failure.failed_at,
    )


def cause_of(deaths: Sequence[Death]) -> tuple[str, str]:
    """Return the root cause of a failure and the message of the rank that reported it.

    A rank's own exception wins over reports of its peers, which only lost their connection to it.
    """
    if not deaths:
        return UNKNOWN, ""
    causes = [(_knows(death), death.signature or without_noise(death.reason), death.reason) for death in deaths]
    _, cause, message = min(causes)
    return cause, message


def _knows(death: Death) -> int:
    """Return a sort key: 0 for a root cause, 2 for a consequence."""
    if death.signature.startswith(CONSEQUENCES):
        return 2
    return 0 if death.signature.startswith(BY_FORCE) else 1


def without_noise(reason: str) -> str:
    """Return a reason without numbers, addresses and ids, so that equal failures compare equal."""
    return " ".join(_NOISE.sub("#", reason).split())[:MAX_CAUSE_CHARS]


def wait_s(state: RunState) -> float:
    """Return the backoff in seconds between the last failure and the next start; 0 for the first after new steps."""
    again = len(failures_without_a_new_step(state)) - 1
    return min(MOST_WAIT_S, LEAST_WAIT_S * 2.0 ** min(again - 1, 60)) if again > 0 else 0.0


def is_waiting(state: RunState, failed_s_ago: float) -> bool:
    """Return whether the trainers failed and the backoff before their restart is not over."""
    return state.closed is None and state.has_failed and failed_s_ago < wait_s(state)


def reason_to_give_up(state: RunState, failing_s: float = 0.0, give_up_after_s: float | None = None) -> str | None:
    """Return the reason to give up restarting the trainers (crash loop), or None.

    Args:
        failing_s: seconds for which the run has failed without a new step.
        give_up_after_s: the limit of that; None: no limit.
    """
    row = failures_without_a_new_step(state)
    if not row:
        return None
    started, last = state.generation is not None, row[-1]
    limit = SAME_FAILURES if started else SAME_FAILURES_BEFORE_A_START
    same = row[-limit:]
    if len(same) == limit and all(each.is_like(last) for each in same):
        return _told(f"the trainers failed {limit} times in a row in the same way", last, started, same)
    if give_up_after_s is not None and len(row) > 1 and failing_s > give_up_after_s:
        what = (
            f"the trainers failed {len(row)} times in {failing_s:.0f} s (recovery.give_up_after_s: {give_up_after_s:g})"
        )
        return _told(what, last, started, row)
    return None


def _told(what: str, last: Attempt, started: bool, row: Sequence[Attempt]) -> str:
    if not started:
        where = "before their first step"
    elif last.restored_step is None:
        where = "before their first step after a restart"
    else:
        where = f"at step {last.reached_step}, without a new step in between"
    said = f" ({last.said})" if last.said and last.said not in last.cause else ""
    left_out = f"{len(row) - MAX_ATTEMPTS_TOLD} earlier ones; " if len(row) > MAX_ATTEMPTS_TOLD else ""
    attempts = "; ".join(each.describe() for each in row[-MAX_ATTEMPTS_TOLD:])
    return f"{what}, {where}: {last.cause}{said}. Attempts: {left_out}{attempts}"
