"""Who is called dead, and why: a pure function of what the ranks' monitors have told.

    stopped      the kernel says so (SIGSTOP), for `hang_after_s`
    gone         its process has ended before its training was over
    silent       nothing moves for `hang_after_s`, and its monitor is not heard either: its node is gone, or cut off
    deadlock     every rank is inside of a collective, and none comes out
    user code    one rank is anywhere else, for `user_code_s`

A rank that is busy is none of these, however long it holds Python's lock. Standard library only: the monitors, which
import nothing else, use this.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gone", "stopped", "silent", "deadlock", "user code"]
Waits = Literal["", "collective", "device"]
"""What a rank's training thread waits for: nothing (it is in user code), the other ranks, or its GPU."""

HANG_AFTER_S, USER_CODE_S = 5.0, 1800.0
"""The defaults of `recovery.hang_after_s` and `recovery.user_code_s`."""

LEAST_DEADLOCK_S = 120.0
"""Never less than this: the price of a false alarm is a restart."""

DEADLOCK_FACTOR = 20.0
"""So many times the slowest of the last steps may pass without progress while all ranks wait for each other."""

GONE_AFTER_S = 2.0
"""The others' collectives mostly fail by themselves, and Ray sees it: what they say is more than we know."""

LEAST_SILENCE_BESIDE_STEPS_S = 20.0
"""In which a monitor is not heard while a model is built or a state is copied: a machine may do nothing else then."""

MOST_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long what may last."""

    hang_after_s: float = HANG_AFTER_S
    user_code_s: float = USER_CODE_S
    deadlock_s: float = LEAST_DEADLOCK_S


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of one rank. `quiet_s` is the time without progress, `inside_s` that part of it, up to now, in
    which it was seen to wait inside of one and the same collective; `heard` says whether its monitor has ever told."""

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
        """As people are told of it."""
        return f"rank {self.rank}" + (f" (process {self.pid} on {self.node})" if self.pid else "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ranks cannot go on. `ranks` are those to which it is due, all of them in a deadlock."""

    kind: Kind
    ranks: tuple[int, ...]
    phase: str
    reason: str


def judge(accounts: Collection[Account], bounds: Bounds) -> Verdict | None:
    """The gravest that is true, or None. Ranks whose training is over have no part in it."""
    there = [each for each in accounts if not each.over]
    for find in (_gone, _stopped, _silent, _deadlock, _in_user_code):
        if found := find(there, bounds):
            return found
    return None


def _gone(there: Iterable[Account], bounds: Bounds) -> Verdict | None:
    gone = [each for each in there if each.gone_s >= min(GONE_AFTER_S, bounds.hang_after_s)]
    if not gone:
        return None
    return _verdict("gone", gone, f"{_all(gone)} ended while {gone[0].phase}: killed, or crashed")


def _stopped(there: Iterable[Account], bounds: Bounds) -> Verdict | None:
    stopped = [each for each in there if each.stopped_s >= bounds.hang_after_s]
    if not stopped:
        return None
    for_s = max(each.stopped_s for each in stopped)
    told = f"{_all(stopped)} was stopped (SIGSTOP) for {for_s:.1f} s while {stopped[0].phase}"
    return _verdict(
        "stopped", stopped, f"{told}; recovery.hang_after_s, {bounds.hang_after_s:g}, is what that may last"
    )


def _silent(there: Iterable[Account], bounds: Bounds) -> Verdict | None:
    """Both: one whose monitor is silent while steps are made has only lost its monitor."""
    found = list(there)

    def bound_s(each: Account) -> float:
        least_s = 0.0 if each.phase == "training" else LEAST_SILENCE_BESIDE_STEPS_S
        return max(bounds.hang_after_s, least_s)

    silent = [each for each in found if each.heard and each.unheard_s >= bound_s(each)]
    others = [each for each in found if each not in silent]
    if not silent or not others or any(each.quiet_s < bound_s(each) for each in others):
        return None
    quiet_s, unheard_s = min(each.quiet_s for each in others), min(each.unheard_s for each in silent)
    told = (
        f"no progress for {quiet_s:.1f} s while {others[0].phase}, and no sign of life of {_all(silent)} for "
        f"{unheard_s:.1f} s: the node is gone or cut off; that may last recovery.hang_after_s, {bounds.hang_after_s:g}"
    )
    return _verdict("silent", silent, told)


def _deadlock(there: Iterable[Account], bounds: Bounds) -> Verdict | None:
    found = list(there)
    slowest_s = max((each.slowest_step_s for each in found), default=0.0)
    bound_s = max(bounds.deadlock_s, DEADLOCK_FACTOR * slowest_s)
    if not found or any(not _waits(each) or each.inside_s < bound_s for each in found):
        return None
    inside_s = min(each.inside_s for each in found)
    frames = ", ".join(f"rank {each.rank} {each.at}" for each in found[:MOST_FRAMES] if each.at)
    what = "every rank waits" if len(found) > 1 else "the only rank waits"
    told = f"no progress for {inside_s:.0f} s while {found[0].phase}, and {what} inside of a collective"
    return _verdict("deadlock", found, f"{told}: a deadlock" + (f"; {frames}" if frames else ""))


def _waits(account: Account) -> bool:
    """A wait for the GPU counts once it is known how long a step takes: the first may compile for minutes."""
    return account.waits == "collective" or (account.waits == "device" and account.slowest_step_s > 0)


def _in_user_code(there: Iterable[Account], bounds: Bounds) -> Verdict | None:
    """Those that the others wait for. Where one is in a collective all the time, it is another that is slow."""
    slow = [each for each in there if each.quiet_s >= bounds.user_code_s and each.waits != "collective"]
    if not slow:
        return None
    first = slow[0]
    told = f"{first.named} made no progress for {first.quiet_s:.0f} s while {first.phase}, outside of any collective"
    told += f", {first.at}" if first.at else ""
    remedy = f"if that is as it should be, raise recovery.user_code_s, which is {bounds.user_code_s:g}"
    return _verdict("user code", slow, f"{told}; {remedy}")


def _verdict(kind: Kind, due: list[Account], reason: str) -> Verdict:
    return Verdict(kind, tuple(each.rank for each in due), due[0].phase, reason)


def _all(accounts: list[Account]) -> str:
    rest = len(accounts) - MOST_FRAMES
    return " and ".join(each.named for each in accounts[:MOST_FRAMES]) + (f" and {rest} more" if rest > 0 else "")
