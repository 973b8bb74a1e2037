"""How simulated trainers begin, and what they save: the part of `resume_plan`, `session` and `policy`."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any
from uuid import UUID

from control_plane.core.model.records import CheckpointCommitted, RankPlace, RefusedCheckpoint
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint
from tests.simulation.world.faults import Faults
from tests.simulation.world.fleet import Fleet
from tests.simulation.world.link import Link
from tests.simulation.world.parts import Parts
from tests.simulation.world.saved import BEGINNING, Saved
from tests.simulation.world.server import LIMITS


def begun(
    point: ResumePoint,
    files: Mapping[str, Saved],
    parts: Parts,
    make_rank: Callable[..., Any],
    uuid: UUID,
    world_size: int,
    total_steps: int,
    keep_last: int,
) -> tuple[Fleet, Link]:
    """Trainers that have restored the first candidate that can be read, and their link."""
    refused = [each.checkpoint for each in point.candidates if files[each.checkpoint].is_damaged]
    name = next((each.checkpoint for each in point.candidates if each.checkpoint not in refused), None)
    saved = files[name] if name else BEGINNING
    replay = parts.replay(point.decided, saved.contained, point.scheduled)
    blank: tuple[dict[str, Any], ...] = ({},) * world_size
    ranks = [make_rank(rank, **deepcopy(values)) for rank, values in enumerate(saved.ranks or blank)]
    start = GenerationStart(
        uuid,
        tuple(RankPlace(rank=rank.rank, node="node", pid=rank.rank, device="cpu") for rank in ranks),
        saved.step,
        total_steps,
        ranks[0].knobs(),
        {},
        name,
        tuple(RefusedCheckpoint(checkpoint=each, reason="damaged") for each in refused),
        {"keep_last": keep_last} if keep_last else {},
        point.branch,
        point.branched_seq,
    )
    replicas = [
        parts.replica(0, replay.paused, replay.stopping, dict(replay.ledger), replay.repeats, point.replays)
        for _ in ranks
    ]
    scheduled = [each.command.uuid for each in point.scheduled]
    return Fleet(uuid, ranks, replicas, saved.step, parts.boundary, point.branch, scheduled), Link(start)


def rank_maker(parts: Parts, faults: Faults, find: Callable[[str], Saved | None]) -> Callable[..., Any]:
    """Makes ranks that vote by the run's limits, and find checkpoints where the world keeps them."""
    return lambda rank, **values: parts.rank(rank, faults, limits=LIMITS, find=find, **values)


def taken(name: str, fleet: Fleet, generation: int) -> tuple[Saved, CheckpointCommitted]:
    """What the ranks hold now, as a checkpoint of this name, and what will be told of it."""
    lead = fleet.replicas[0]
    contained = frozenset(str(uuid) for uuid in lead.ledger)
    committed = CheckpointCommitted(
        checkpoint=name,
        step=fleet.step,
        generation=generation,
        path=f"checkpoints/{name}",
        branch=fleet.branch,
        decided_here=lead.decided_at(fleet.step),
    )
    return Saved(fleet.step, tuple(rank.saved() for rank in fleet.ranks), contained, fleet.branch), committed
