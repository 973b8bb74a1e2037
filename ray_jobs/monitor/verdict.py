"""Failure detection: which ranks are dead or hung, and why, as a pure function of the monitors' reports.

    stopped      its process is stopped (SIGSTOP) for `hang_after_s`
    gone         its process has ended before its training was over
    silent       no rank makes progress for `hang_after_s`, and its monitor is silent: its node is down or unreachable
    deadlock     every rank is inside of a collective, and none leaves it
    user code    one rank is anywhere else, for `user_code_s`

A busy rank is none of these, however long it holds the GIL. Standard library only: the monitors, which import nothing
else, use this.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from ray_jobs.process.timeouts import HANG_AFTER_S, USER_CODE_S

Kind = Literal["gone", "stopped", "silent", "deadlock", "user code"]
Waits = Literal["", "collective", "device"]
"""State of a rank's training thread: '' in user code, or waiting for the other ranks or its GPU."""

LEAST_DEADLOCK_S = 120.0
"""Shortest deadlock timeout: the cost of a false alarm is a restart."""

DEADLOCK_FACTOR = 20.0
"""Deadlock timeout as a multiple of the slowest of the last steps."""

GONE_AFTER_S = 2.0
"""Delay before a dead rank is reported: the others' collectives mostly fail by themselves, with a better reason."""

LEAST_SILENCE_BESIDE_STEPS_S = 20.0
"""Shortest timeout for a silent monitor outside of steps: building a model or copying a state may use all cores."""

MOST_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of failure detection, in seconds."""

    hang_after_s: float = HANG_AFTER_S
    user_code_s: float = USER_CODE_S
    deadlock_s: float = LEAST_DEADLOCK_S


@dataclass(frozen=True, slots=True)
class RankStatus:
    """Observed state of one rank.

    `quiet_s` is the time without progress, `inside_s` the part of it, up to now, that it has waited inside of one
    collective; `heard` is whether its monitor has ever reported.
    """

    rank: int
    pid: int = 0
    node: str = ""
    phase: str = "starting"
    over: bool = False
    heard: bool = True
    quiet_s: float = 0.0
    stopped_s: float = 0.0
    gone_s: float = 0.0
    unheard_s: float = 0.0
    waits: Waits = ""
    inside_s: float = 0.0
    slowest_step_s: float = 0.0
    at: str = ""

    @property
    def named(self) -> str:
        """Name of the rank in messages."""
        return f"rank {self.rank}" + (f" (process {self.pid} on {self.node})" if self.pid else "")


@dataclass(frozen=True, slots=True)
class RankFailure:
    """Detected failure. `ranks` are those that caused it, all of them in a deadlock."""

    kind: Kind
    ranks: tuple[int, ...]
    phase: str
    reason: str


def judge(accounts: Collection[RankStatus], timeouts: Timeouts) -> RankFailure | None:
    """Return the most serious failure, or None. Ranks whose training is over do not count."""
    active = [account for account in accounts if not account.over]
    for detect in (_gone, _stopped, _silent, _deadlock, _in_user_code):
        if verdict := detect(active, timeouts):
            return verdict
    return None


def _gone(active: Iterable[RankStatus], timeouts: Timeouts) -> RankFailure | None:
    gone = [account for account in active if account.gone_s >= min(GONE_AFTER_S, timeouts.hang_after_s)]
    if not gone:
        return None
    return _verdict("gone", gone, f"{_all(gone)} died while {gone[0].phase}: killed, or crashed")


def _stopped(active: Iterable[RankStatus], timeouts: Timeouts) -> RankFailure | None:
    stopped = [account for account in active if account.stopped_s >= timeouts.hang_after_s]
    if not stopped:
        return None
    for_s = max(account.stopped_s for account in stopped)
    what = f"{_all(stopped)} was stopped (SIGSTOP) for {for_s:.1f} s while {stopped[0].phase}"
    return _verdict("stopped", stopped, f"{what}; the timeout is recovery.hang_after_s, {timeouts.hang_after_s:g} s")


def _silent(active: Iterable[RankStatus], timeouts: Timeouts) -> RankFailure | None:
    """Return a verdict on silent ranks if no other rank makes progress; else only their monitors are lost."""
    ranks = list(active)

    def bound_s(account: RankStatus) -> float:
        least_s = 0.0 if account.phase == "training" else LEAST_SILENCE_BESIDE_STEPS_S
        return max(timeouts.hang_after_s, least_s)

    silent = [account for account in ranks if account.heard and account.unheard_s >= bound_s(account)]
    others = [account for account in ranks if account not in silent]
    if not silent or not others or any(account.quiet_s < bound_s(account) for account in others):
        return None
    quiet_s, unheard_s = min(account.quiet_s for account in others), min(account.unheard_s for account in silent)
    what = (
        f"no progress for {quiet_s:.1f} s while {others[0].phase}, and no heartbeat of {_all(silent)} for "
        f"{unheard_s:.1f} s: the node is down or unreachable; the timeout is recovery.hang_after_s, "
        f"{timeouts.hang_after_s:g} s"
    )
    return _verdict("silent", silent, what)


def _deadlock(active: Iterable[RankStatus], timeouts: Timeouts) -> RankFailure | None:
    ranks = list(active)
    slowest_s = max((account.slowest_step_s for account in ranks), default=0.0)
    bound_s = max(timeouts.deadlock_s, DEADLOCK_FACTOR * slowest_s)
    if not ranks or any(not _waits(account) or account.inside_s < bound_s for account in ranks):
        return None
    inside_s = min(account.inside_s for account in ranks)
    frames = ", ".join(f"rank {account.rank} {account.at}" for account in ranks[:MOST_FRAMES] if account.at)
    who = "every rank waits" if len(ranks) > 1 else "the only rank waits"
    what = f"no progress for {inside_s:.0f} s while {ranks[0].phase}, and {who} inside of a collective"
    return _verdict("deadlock", ranks, f"{what}: a deadlock" + (f"; {frames}" if frames else ""))


def _waits(account: RankStatus) -> bool:
    """Return whether a rank waits for others. A wait for the GPU counts after the first step, which may compile."""
    return account.waits == "collective" or (account.waits == "device" and account.slowest_step_s > 0)


def _in_user_code(active: Iterable[RankStatus], timeouts: Timeouts) -> RankFailure | None:
    """Return a verdict on ranks that make no progress outside of collectives: those inside wait for them."""
    slow = [account for account in active if account.quiet_s >= timeouts.user_code_s and account.waits != "collective"]
    if not slow:
        return None
    first = slow[0]
    what = f"{first.named} made no progress for {first.quiet_s:.0f} s while {first.phase}, outside of any collective"
    what += f", {first.at}" if first.at else ""
    remedy = f"if this is expected, raise recovery.user_code_s, which is {timeouts.user_code_s:g} s"
    return _verdict("user code", slow, f"{what}; {remedy}")


def _verdict(kind: Kind, causes: list[RankStatus], reason: str) -> RankFailure:
    return RankFailure(kind, tuple(account.rank for account in causes), causes[0].phase, reason)


def _all(accounts: list[RankStatus]) -> str:
    rest = len(accounts) - MOST_FRAMES
    names = " and ".join(account.named for account in accounts[:MOST_FRAMES])
    return names + (f" and {rest} more" if rest > 0 else "")
