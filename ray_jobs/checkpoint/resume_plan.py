"""Resume plan of a start: the newest checkpoint that all ranks have verified, and the commands to replay.

The ranks share the work: rank r hashes the shards that rank r wrote (and those of ranks that no longer exist). Nothing
of a checkpoint is unpickled before every rank has agreed that all of it verifies.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from control_plane.core.model.errors import Damaged, Refused, SteerwayError, Unavailable
from control_plane.core.model.records import CheckpointCommitted, RefusedCheckpoint
from control_plane.core.rules.recovery import ResumePoint, replay_after
from control_plane.storage.checkpoint.store import Manifest, SigningKey, discard, leftovers, read_manifest, verify
from ray_jobs.checkpoint.convert import ensure_universal
from ray_jobs.process.collectives import Collectives
from ray_jobs.process.context import RunContext
from ray_jobs.rank.link import Link
from ray_jobs.rank.plan import ResumePlan

log = logging.getLogger(__name__)

MAX_TOLD = 3
"""Refused checkpoints named in a message; the journal and the log have the others."""

LEFTOVER_AFTER_S = 300.0
"""Age at which a checkpoint folder without a manifest counts as abandoned."""

CONVERT_WITHIN_S = 3600.0
"""Timeout of a conversion, which reads and writes the checkpoint about three times; the other ranks wait for rank 0."""


def make_plan(
    collectives: Collectives, link: Link | None, context: RunContext, fingerprint: Callable[[], str] = str
) -> ResumePlan:
    """Collective. Get the run's history from the control server, and choose the newest checkpoint that verifies.

    Only those of this training of the script: the next one of `context.trainings`, unless its `fingerprint`, which is
    asked for on rank 0, is a later one's.

    Raises, on every rank: `SteerwayError` with the control server's reason if the trainers may not start.
    """
    point, reason, kind, known_by = None, None, None, ""
    call = context.trainings.next()
    if link is not None:
        _clear_leftovers(context)
        try:
            known_by = fingerprint()
            point = link.resume_point(call, known_by).model_dump(mode="json")
        except SteerwayError as error:
            reason, kind = error.reason, type(error)
    point, reason, known_by = collectives.broadcast_json([point, reason, known_by])
    if reason is not None:
        raise (kind or Unavailable)(reason)
    resume = ResumePoint.model_validate(point)
    context.trainings.begun = resume.training
    if resume.note:
        log.warning("%s", resume.note)
    plan = _choose(collectives, resume, context)
    replay = replace(plan.replay, stopping=plan.replay.stopping or resume.stopped)
    return replace(plan, replay=replay, training=resume.training, fingerprint=known_by, alerts=resume.alerts)


def _clear_leftovers(context: RunContext) -> None:
    """Discard leftovers of unfinished saves: the trainers that wrote them are dead or superseded."""
    for root in leftovers(context.files.checkpoints, LEFTOVER_AFTER_S):
        try:
            discard(root.parent, root.name)
        except SteerwayError as error:
            log.warning("%s", error.reason)


def _choose(collectives: Collectives, point: ResumePoint, context: RunContext) -> ResumePlan:
    refused: list[RefusedCheckpoint] = []
    for candidate in point.candidates:
        chosen = _try(collectives, candidate, context, point.training)
        if isinstance(chosen, Manifest):
            replay = replay_after(point.decided, set(chosen.settled), point.scheduled)
            root = context.files.checkpoints / chosen.checkpoint
            why = tuple(refused)
            return ResumePlan(
                replay, chosen.checkpoint, root, chosen, why, point.branch, point.branched_seq, point.replays
            )
        log.error("checkpoint %s is not restored: %s", candidate.checkpoint, chosen)
        refused.append(RefusedCheckpoint(checkpoint=candidate.checkpoint, reason=chosen))
    if refused:
        # To begin at the beginning would throw away what somebody may still be able to save.
        named = "; ".join(f"{one.checkpoint}: {one.reason}" for one in refused[:MAX_TOLD])
        raise Refused(f"none of the {len(refused)} checkpoints of run {context.files.run} can be restored: {named}")
    replay = replay_after(point.decided, (), point.scheduled)
    return ResumePlan(replay, branch=point.branch, branched_seq=point.branched_seq, replays=point.replays)


def _try(
    collectives: Collectives, candidate: CheckpointCommitted, context: RunContext, training: int
) -> Manifest | str:
    """Collective. Return the manifest to restore from, or, on every rank alike, the reason why not."""
    root, key, recorded = context.files.checkpoints / candidate.checkpoint, context.key, candidate.manifest_sha256
    if reason := collectives.first_reason(_reason_against(root, key, collectives, context.files.run, recorded)):
        return reason
    manifest = read_manifest(root, key, recorded)
    if manifest.training != training:
        return f"{root.name} is of training {manifest.training} of the script, and this is training {training}"
    if manifest.world_size == collectives.world_size:
        return manifest
    converted, reason, unavailable = None, None, None
    if collectives.rank == 0:
        try:
            converted = ensure_universal(
                context.files, candidate.checkpoint, context.key_path, log.info, CONVERT_WITHIN_S, recorded
            )
        except Unavailable as error:
            unavailable = error.reason
        except SteerwayError as error:
            reason = error.reason
    converted, reason, unavailable = collectives.broadcast_json([converted, reason, unavailable])
    if unavailable is not None:
        raise Unavailable(unavailable)  # nothing is wrong with the checkpoint: another start may convert it
    if reason is None:
        root = context.files.checkpoints / str(converted)
        reason = collectives.first_reason(_reason_against(root, key, collectives, context.files.run))
    return reason or read_manifest(root, key)


def examine(root: Path, key: SigningKey, collectives: Collectives, run: str, recorded: str) -> Manifest | str:
    """Return a checkpoint's manifest, or the reason why this rank's part of it does not verify.

    `recorded` is the SHA-256 of the manifest that the journal knows, where this rank knows it.
    """
    return _reason_against(root, key, collectives, run, recorded) or read_manifest(root, key, recorded)


def _reason_against(root: Path, key: SigningKey, collectives: Collectives, run: str, recorded: str = "") -> str | None:
    try:
        manifest = read_manifest(root, key, recorded)
        if manifest.run != run:
            return f"{root.name} belongs to run {manifest.run}"
        writers = manifest.world_size
        own = {rank for rank in range(writers) if rank % collectives.world_size == collectives.rank}
        verify(root, key, own, recorded)
    except Damaged as damage:
        return damage.reason
    except OSError as error:
        return f"{root.name} cannot be read: {error.strerror or error}"
    return None
