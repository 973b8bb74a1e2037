"""Capacity of a cluster: whether the ranks of a run fit on its nodes, now or ever, and the reason why not."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from control_plane.core.model.intent_base import Message

Resources = Mapping[str, float]
Placement = Literal["pack", "spread"]
Describe = Callable[[str], str]

RESOLUTION = 1e-4
"""Ray counts resources in ten-thousandths."""

MAX_NODES_NAMED = 6
"""Most nodes that a message lists."""

ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray knows a node's type of accelerator; a rank asks for 0.001 of it."""

ORDER = ("GPU", "CPU")
"""Resources that a reason names first."""


class Demand(Message):
    """Resources that a run needs for its start: `count` ranks with `per_rank` each, and up to `most` ranks later.

    strict: with `pack`, all ranks on one node; with `spread`, each on a node of its own.
    labels: label selectors, as Ray has them, that the node of each rank has to match.
    """

    count: int = Field(ge=1)
    most: int = Field(ge=1)
    per_rank: dict[str, float]
    placement: Placement = "pack"
    strict: bool = False
    labels: dict[str, str] = {}

    def needed(self, resource: str) -> float:
        """Return how much of a resource the smallest number of ranks needs."""
        return self.count * self.per_rank.get(resource, 0.0)

    def may_hold(self, resource: str) -> float:
        """Return how much of a resource the largest number of ranks holds."""
        return self.most * self.per_rank.get(resource, 0.0)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster. A node that is down is still declared: it may come back. `free` is for living ones."""

    name: str
    total: Resources
    free: Resources
    labels: Mapping[str, str]
    alive: bool = True


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that the autoscaler may start: `max_nodes` at most, those that run included; -1 is any number.

    labels: None if they are not known; then every selector may match.
    """

    name: str
    resources: Resources
    max_nodes: int
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Nodes and groups of the cluster at one moment.

    placed_jobs: submission ids of the jobs whose ranks have a placement group with all its resources.
    """

    nodes: tuple[Node, ...]
    groups: tuple[NodeGroup, ...]
    placed_jobs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Room:
    """Resources that one node, or each of `copies` equal ones, offers to ranks."""

    name: str
    resources: Resources
    labels: Mapping[str, str] | None
    copies: int = 1


def free_rooms(nodes: Iterable[Node]) -> list[Room]:
    """Return what is free on the living nodes."""
    return [Room(node.name, node.free, node.labels) for node in nodes if node.alive]


def living_rooms(nodes: Iterable[Node]) -> list[Room]:
    """Return what the living nodes offer in all, free or not."""
    return [Room(node.name, node.total, node.labels) for node in nodes if node.alive]


def possible_rooms(nodes: Iterable[Node], groups: Iterable[NodeGroup], demand: Demand) -> list[Room]:
    """Return what the cluster can have: its nodes, alive or down, and the nodes that its autoscaler may start."""
    nodes = list(nodes)
    return [Room(node.name, node.total, node.labels) for node in nodes] + startable_rooms(nodes, groups, demand)


def startable_rooms(nodes: Iterable[Node], groups: Iterable[NodeGroup], demand: Demand) -> list[Room]:
    """Return the nodes that the autoscaler may still start: a node that runs counts for the first group it fits."""
    running = [node for node in nodes if node.alive]
    rooms = []
    for group in groups:
        own = [node for node in running if _is_of(node, group)]
        running = [node for node in running if node not in own]
        left = demand.most if group.max_nodes < 0 else group.max_nodes - len(own)
        if left > 0:
            rooms.append(Room(f"{group.name} (autoscaler)", group.resources, group.labels, left))
    return rooms


def _is_of(node: Node, group: NodeGroup) -> bool:
    declared = {name: amount for name, amount in group.resources.items() if amount > 0 and name != "memory"}
    return bool(declared) and all(abs(node.total.get(name, 0.0) - have) < 1e-3 for name, have in declared.items())


def reason_never_fits(demand: Demand, nodes: Sequence[Node], groups: Sequence[NodeGroup]) -> str | None:
    """Return why the cluster can never have room for these ranks, or None.

    Nodes that are down and nodes that the autoscaler may start count as there.
    """
    grows = bool(groups) or any(not node.alive for node in nodes)
    verb = "can have" if grows else "has"
    return shortage(demand, possible_rooms(nodes, groups, demand), lambda amount: f"the cluster {verb} {amount}")


def reason_no_room(demand: Demand, rooms: Sequence[Room]) -> str | None:
    """Return why these ranks cannot start on what is free, or None: "needs 2 CPUs, 1 free"."""
    return shortage(demand, rooms, lambda amount: f"{amount} free")


def shortage(demand: Demand, rooms: Sequence[Room], describe: Describe) -> str | None:
    """Return what these ranks lack in these rooms, or None if all of them have a place."""
    if can_place(demand, rooms):
        return None
    fitting = [room for room in rooms if matches(demand.labels, room.labels)]
    where = f" on nodes with {_selectors(demand.labels)}" if demand.labels else ""
    if demand.labels and not fitting:
        have = _listed(f"{room.name}: {_labels(demand.labels, room.labels)}" for room in rooms)
        return f"needs nodes with {_selectors(demand.labels)}, and no node matches" + (f" ({have})" if have else "")
    for resource in sorted(demand.per_rank, key=_by_kind):
        if reason := _lacks(demand, resource, fitting, where, describe):
            return reason
    return _ill_shaped(demand, fitting, where)


def _lacks(demand: Demand, resource: str, rooms: Sequence[Room], where: str, describe: Describe) -> str | None:
    """Return the shortage of one resource: in all, or on the largest node for a single rank."""
    amount, needed = demand.per_rank[resource], demand.needed(resource)
    if resource.startswith(ACCELERATOR):
        if any(room.resources.get(resource, 0.0) > 0 for room in rooms):
            return None
        kinds = {name for room in rooms for name in room.resources if name.startswith(ACCELERATOR)}
        there = ", ".join(sorted(kind.removeprefix(ACCELERATOR) for kind in kinds)) or "none"
        return f"needs accelerators of type {resource.removeprefix(ACCELERATOR)}; the cluster's types: {there}"
    have = sum(room.resources.get(resource, 0.0) * room.copies for room in rooms)
    if have + RESOLUTION < needed:
        each = _each(resource, rooms)
        asked = f"needs {amount_of(resource, needed)}{where}"
        if demand.count > 1:
            asked += f" ({demand.count} ranks with {amount_of(resource, amount)} each)"
        return f"{asked}, {describe(number(have))}" + (f" ({each})" if each else "")
    largest = max(rooms, key=lambda room: room.resources.get(resource, 0.0))
    most = largest.resources.get(resource, 0.0)
    if most + RESOLUTION < amount:
        return (
            f"a rank needs {amount_of(resource, amount)}{where}, and no node has as many; "
            f"the largest, {largest.name}, has {number(most)}"
        )
    return None


def _ill_shaped(demand: Demand, rooms: Sequence[Room], where: str) -> str:
    """Return how ranks do not fit on single nodes, though the sums would do."""
    shape = " and ".join(amount_of(name, demand.per_rank[name]) for name in sorted(demand.per_rank, key=_by_kind))
    counts = [(room.name, ranks_on(demand, room), room.copies) for room in rooms]
    each = _listed(f"{name}: {count}" + (f" x {copies}" if copies > 1 else "") for name, count, copies in counts)
    if demand.strict and demand.placement == "spread":
        there = sum(copies for _, count, copies in counts if count)
        return f"needs {demand.count} nodes{where} with {shape} each (placement: spread, strict), and {there} have that"
    if demand.strict:
        return (
            f"needs one node{where} for {demand.count} ranks with {shape} each (placement: pack, strict); room: {each}"
        )
    there = sum(count * copies for _, count, copies in counts)
    return f"needs room{where} for {demand.count} ranks with {shape} each, and there is room for {there} ({each})"


def ranks_on(demand: Demand, room: Room) -> int:
    """Return how many ranks fit in a room, up to `most`."""
    if not matches(demand.labels, room.labels):
        return 0
    counts = [
        math.floor((room.resources.get(name, 0.0) + RESOLUTION) / amount)
        for name, amount in demand.per_rank.items()
        if amount > 0
    ]
    return max(0, min([demand.most, *counts]))


def can_place(demand: Demand, rooms: Sequence[Room]) -> bool:
    """Return whether all ranks have a place, by the placement if it is strict."""
    return sum(place(demand, rooms)) == demand.count


def place(demand: Demand, rooms: Sequence[Room]) -> list[int]:
    """Return how many ranks each room takes, `copies` together; all or fewer of `count`."""
    counts = [ranks_on(demand, room) for room in rooms]
    left = demand.count
    if demand.strict and demand.placement == "pack":
        at = next((index for index, count in enumerate(counts) if count >= left), None)
        return [left if index == at else 0 for index in range(len(rooms))]
    most = [1 if demand.strict else count for count in counts]
    placed = [0] * len(rooms)
    # The fullest first: the room that is left stays in one piece.
    for index in sorted(range(len(rooms)), key=lambda at: counts[at]):
        placed[index] = min(left, min(most[index], counts[index]) * rooms[index].copies)
        left -= placed[index]
    return placed


def without(demand: Demand, rooms: Sequence[Room]) -> list[Room]:
    """Return what these ranks leave of the rooms, as far as they have a place."""
    return [
        room if not count else _reduced(demand, room, count)
        for room, count in zip(rooms, place(demand, rooms), strict=True)
    ]


def _reduced(demand: Demand, room: Room, count: int) -> Room:
    if room.copies > 1:
        each = max(1, 1 if demand.strict and demand.placement == "spread" else ranks_on(demand, room))
        return replace(room, copies=max(0, room.copies - math.ceil(count / each)))
    taken = {name: room.resources.get(name, 0.0) - count * amount for name, amount in demand.per_rank.items()}
    return replace(room, resources={**room.resources, **taken})


def spread_that_is_not_had(demand: Demand, nodes: Sequence[Node], groups: Sequence[NodeGroup]) -> str | None:
    """Return a sentence if `placement: spread` cannot put every rank on a node of its own, as the cluster is; or None.

    Not an error: without `strict`, a spread is as wide as there is room for.
    """
    if demand.placement != "spread" or demand.strict or demand.count == 1:
        return None
    alone = demand.model_copy(update={"strict": True})
    rooms = [*living_rooms(nodes), *startable_rooms(nodes, groups, demand)]
    if can_place(alone, rooms):
        return None
    there = sum(room.copies for room in rooms if ranks_on(demand, room))
    return (
        f"placement: spread cannot be had: {demand.count} ranks on {there} {'node' if there == 1 else 'nodes'}; "
        "some share a node, and fail with it (scaling.strict: true refuses that)"
    )


def matches(selectors: Mapping[str, str], labels: Mapping[str, str] | None) -> bool:
    """Return whether labels match all selectors: `a`, `!a`, `in(a,b)` or `!in(a,b)`, as in Ray."""
    return labels is None or all(_matches(selector, labels.get(name)) for name, selector in selectors.items())


def _matches(selector: str, value: str | None) -> bool:
    wanted = selector.removeprefix("!")
    listed = wanted[3:-1].split(",") if wanted.startswith("in(") and wanted.endswith(")") else [wanted]
    is_in = value is not None and value in [each.strip() for each in listed]
    return not is_in if selector.startswith("!") else is_in


def describe_demand(demand: Demand) -> str:
    """Return a demand in words: `2 ranks with 1 GPU and 4 CPUs each`."""
    kinds = [name for name in sorted(demand.per_rank, key=_by_kind) if not name.startswith(ACCELERATOR)]
    shape = " and ".join(amount_of(name, demand.per_rank[name]) for name in kinds)
    return f"{demand.count} ranks with {shape} each" if demand.count > 1 else f"1 rank with {shape}"


def amount_of(resource: str, amount: float) -> str:
    """Return an amount with its resource: `2 GPUs`, `1 CPU`, `4 of the resource 'tape'`."""
    if resource in ORDER:
        return f"{number(amount)} {resource}{'' if amount == 1 else 's'}"
    return f"{number(amount)} of the resource {resource!r}"


def number(amount: float) -> str:
    """Return an amount without the trailing digits of its arithmetic."""
    return f"{round(amount, 4):g}" if amount < 1e6 else f"{amount:.0f}"


def _by_kind(resource: str) -> tuple[int, str]:
    return (ORDER.index(resource) if resource in ORDER else len(ORDER), resource)


def _each(resource: str, rooms: Sequence[Room]) -> str:
    """Return the amount on each node, for more than one."""
    if len(rooms) < 2:
        return ""
    return _listed(
        f"{room.name}: {number(room.resources.get(resource, 0.0))}" + (f" x {room.copies}" if room.copies > 1 else "")
        for room in rooms
    )


def _listed(lines: Iterable[str]) -> str:
    listed = list(lines)
    more = f", and {len(listed) - MAX_NODES_NAMED} more" if len(listed) > MAX_NODES_NAMED else ""
    return ", ".join(listed[:MAX_NODES_NAMED]) + more


def _selectors(selectors: Mapping[str, str]) -> str:
    return " and ".join(f"{name}={selector}" for name, selector in sorted(selectors.items()))


def _labels(selectors: Mapping[str, str], labels: Mapping[str, str] | None) -> str:
    return " ".join(f"{name}={(labels or {}).get(name, '(not set)')}" for name in sorted(selectors))
