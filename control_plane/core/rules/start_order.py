"""Order of starts: which of the waiting runs start now, and for each other one the reason why it waits.

The rule, in the order in which it is applied:

1. Runs come in the order of their submission; one level of priority counts as an hour of waiting.
2. A run over its owner's quota waits, and holds up no other owner; after `OVERTAKEN_FOR_S` it is no longer overtaken by
   later runs of its own owner.
3. A run with room starts: on free nodes, or on nodes that the autoscaler may start for it.
4. A run without room waits. A later run with room may overtake it, until it has waited for `OVERTAKEN_FOR_S`; from then
   on, what becomes free is kept for it. A run that does not fit on the living nodes at all holds up nobody.

No run starves: by 1, only runs submitted within a bounded time can come before it, and by 4 no later run takes its room
for ever.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field

from control_plane.core.model.intent_base import Message
from control_plane.core.rules.capacity import (
    Demand,
    Node,
    NodeGroup,
    Room,
    amount_of,
    can_place,
    free_rooms,
    living_rooms,
    number,
    reason_no_room,
    startable_rooms,
    without,
)

LEVEL_S = 3600.0
"""Seconds of waiting that one level of priority counts for."""

OVERTAKEN_FOR_S = 600.0
"""How long later runs may overtake one that waits for room."""


class Quota(Message):
    """Limits of one owner; None: no limit. `bytes`: of the files of all of the owner's runs."""

    runs: int | None = Field(default=None, ge=0)
    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    bytes: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """A run in the queue, since `since_s` (Unix time)."""

    run: str
    owner: str
    priority: int
    since_s: float
    demand: Demand


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run whose job is at Ray. `holds`: its ranks have their resources, so that these are no longer free."""

    run: str
    owner: str
    demand: Demand
    holds: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision on one waiting run; without a `reason` it starts."""

    run: str
    reason: str | None

    @property
    def starts(self) -> bool:
        """True if the run starts now."""
        return self.reason is None


Quotas = Callable[[str], Quota]
LIMITED = (("cpus", "CPU"), ("gpus", "GPU"))


def order_of(run: WaitingRun) -> tuple[float, str]:
    """Return the sort key of a waiting run."""
    return run.since_s - run.priority * LEVEL_S, run.run


def decide_starts(
    waiting: Iterable[WaitingRun],
    active: Iterable[ActiveRun],
    quotas: Quotas,
    nodes: Sequence[Node],
    groups: Sequence[NodeGroup],
    now_s: float,
) -> list[Decision]:
    """Return a decision for each waiting run, in the order of the queue."""
    held = list(active)
    rooms = free_rooms(nodes)
    for taker in held:
        if not taker.holds:
            rooms = without(taker.demand, rooms)
    decisions, starting = list[Decision](), list[str]()
    kept_for: WaitingRun | None = None
    held_up = dict[str, WaitingRun]()
    for run in sorted(waiting, key=order_of):
        reason = reason_over_quota(run.owner, run.demand, held, quotas(run.owner))
        if reason is not None:
            if now_s - run.since_s >= OVERTAKEN_FOR_S:
                held_up.setdefault(run.owner, run)
        elif run.owner in held_up:
            reason = f"behind run {held_up[run.owner].run} of the same owner, for which the quota is kept"
        elif kept_for is not None:
            reason = f"behind run {kept_for.run}, for which room is kept since it has waited {_waited(kept_for, now_s)}"
        else:
            reason = _reason_to_wait(run, rooms, nodes, groups, starting)
            if reason is not None and _is_overdue(run, nodes, now_s):
                kept_for = run
        if reason is None:
            rooms = without(run.demand, rooms)
            held.append(ActiveRun(run.run, run.owner, run.demand, holds=False))
            starting.append(run.run)
        decisions.append(Decision(run.run, reason))
    return decisions


def _reason_to_wait(
    run: WaitingRun, rooms: Sequence[Room], nodes: Sequence[Node], groups: Sequence[NodeGroup], starting: Sequence[str]
) -> str | None:
    reason = reason_no_room(run.demand, rooms)
    if reason is None:
        return None
    if can_place(run.demand, [*rooms, *startable_rooms(nodes, groups, run.demand)]):
        return None  # its placement group asks the autoscaler
    if starting and can_place(run.demand, free_rooms(nodes)):
        return f"{reason}, behind run {starting[-1]}"
    return reason


def _is_overdue(run: WaitingRun, nodes: Sequence[Node], now_s: float) -> bool:
    """Return whether room is kept for a run from now on: it has waited for long, and would fit once others end."""
    return now_s - run.since_s >= OVERTAKEN_FOR_S and can_place(run.demand, living_rooms(nodes))


def _waited(run: WaitingRun, now_s: float) -> str:
    return f"{(now_s - run.since_s) / 60:.0f} min"


def reason_over_quota(owner: str, demand: Demand, active: Iterable[ActiveRun], quota: Quota) -> str | None:
    """Return why an owner's quota does not allow one more run now, or None: "quota of ana: 2 of 2 runs"."""
    own = [run for run in active if run.owner == owner]
    if quota.runs is not None and len(own) >= quota.runs:
        return f"quota of {owner}: {len(own)} of {quota.runs} runs"
    for name, resource in LIMITED:
        limit = getattr(quota, name)
        used = sum(run.demand.may_hold(resource) for run in own)
        asked = demand.may_hold(resource)
        if limit is not None and asked and used + asked > limit + 1e-4:
            in_use = f"{number(used)} of {amount_of(resource, limit)} in use"
            return f"quota of {owner}: {in_use}, this run may take {number(asked)}"
    return None


def reason_never_allowed(owner: str, demand: Demand, quota: Quota, used_bytes: int) -> str | None:
    """Return why an owner's quota can never allow this run, or None. Too many bytes are in the way until some go."""
    if quota.bytes is not None and used_bytes >= quota.bytes:
        return (
            f"quota of {owner}: the files of this owner's runs take {used_bytes} of {quota.bytes} bytes; "
            "see `steer du`, and `steer delete` runs that nobody needs"
        )
    reason = reason_over_quota(owner, demand, (), quota)
    return None if reason is None else f"{reason}: it could never start; ask an admin, or take fewer ranks"
