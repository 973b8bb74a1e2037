"""Checkpoint save at a step boundary: agree on a name, copy the state to host memory, hand it to the async writer.

Training waits for the copy alone, or, if it is made beside the next forward and backward pass, for what is left of it
at the next update. Every collective is here, and none in the writer's threads. A problem on any rank,
up to the moment when all begin to write, is everyone's: then nothing was begun.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CheckpointCommitted
from control_plane.storage.checkpoint.store import discard, space_shortage
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FOLDER_MODE, make_folder
from ray_jobs.checkpoint import overlap
from ray_jobs.checkpoint.capture import FileStates, capture, copy_of
from ray_jobs.checkpoint.host_memory import make_copies
from ray_jobs.checkpoint.writer import CheckpointWriter
from ray_jobs.process.collectives import Collectives
from ray_jobs.process.deepspeed_internals import elements
from ray_jobs.process.error_text import error_text
from ray_jobs.rank.live_training import LiveTraining

log = logging.getLogger(__name__)

FREE_SPACE_FACTOR = 1.2
"""A save is refused unless this many times its estimated size is free."""

BYTES_PER_PARAMETER = 16
"""fp32 weights, their master copy and Adam's two moments."""

ROUND_S = 1.0
"""Interval at which ranks synchronize while they wait for a save: far within a collective's timeout."""


def begin_save(
    training: LiveTraining,
    files: RunFiles,
    collectives: Collectives,
    writer: CheckpointWriter,
    about: dict[str, Any],
    wanted: str | None = None,
    overlaps: bool = False,
) -> str:
    """Collective, at a step boundary. Begin an async save; return the checkpoint's name. See `writer.finished`.

    If it `overlaps`, the caller calls `writer.wait_for_copy` before anything changes the live state, an update first.

    `about` holds the manifest's generation, step and all else that it says about this save; rank 0's counts. Without a
    `wanted` name it is called by its step and generation.
    Raises `RuntimeError` on every rank alike if it could not be begun; then its folder is removed.
    """
    began_s = time.monotonic()
    name, reason = _agreed_name(files, collectives, about, writer, wanted)
    _raise_together(collectives, files, name, reason)
    states: FileStates = {}
    background: overlap.BackgroundCopy | None = None

    def take() -> None:
        nonlocal background
        laid_out, to_make = copy_of(capture(training), writer.buffers)
        states.update(laid_out)
        if overlaps:
            background = overlap.begin(training, to_make)
        else:
            make_copies(to_make)

    try:
        _raise_together(collectives, files, name, _guarded(take))
    except RuntimeError:
        if background is not None:
            background.wait()
        raise
    writer.start(name, states, about, background)
    log.info("checkpoint %s: training waited %.3f s", name, time.monotonic() - began_s)
    return name


def save_now(
    training: LiveTraining,
    files: RunFiles,
    collectives: Collectives,
    writer: CheckpointWriter,
    about: dict[str, Any],
    wanted: str | None = None,
) -> CheckpointCommitted | str:
    """Collective. Save and wait for the end, also of a save that is still being written.

    Returns the committed checkpoint, or, on every rank alike, the reason why there is none.
    """
    _drain_together(collectives, writer)
    try:
        name = begin_save(training, files, collectives, writer, about, wanted)
    except RuntimeError as error:
        return str(error)
    _drain_together(collectives, writer)
    ended = writer.take(name)
    unknown = f"{name} was begun, and its end was reported elsewhere"
    answer = (ended.committed or ended.reason or unknown) if ended else unknown
    return collectives.all_gather(answer)[0]


def busy_anywhere(collectives: Collectives, writer: CheckpointWriter) -> bool:
    """Collective. Return whether any rank is still writing a checkpoint."""
    return collectives.all_reduce_min(0 if writer.busy else 1) == 0


def reason_no_space(model: torch.nn.Module, files: RunFiles) -> str | None:
    """Return the reason why the disk has no room for a checkpoint, or None."""
    parameters = sum(map(elements, model.parameters()))
    return space_shortage(files.checkpoints, int(parameters * BYTES_PER_PARAMETER * FREE_SPACE_FACTOR))


def _agreed_name(
    files: RunFiles, collectives: Collectives, about: dict[str, Any], writer: CheckpointWriter, wanted: str | None
) -> tuple[str, str | None]:
    """Collective. Return the checkpoint's name, whose folder rank 0 has made, and this rank's problem or None."""
    wanted = wanted or f"step-{about['step']:08d}-g{about['generation']}"
    name, reason = "", f"checkpoint {writer.busy} is still being written" if writer.busy else None
    if collectives.rank == 0 and reason is None:
        try:
            name = _new_folder(files, wanted)
        except OSError as error:
            reason = f"its folder could not be made: {error}"
    return str(collectives.broadcast_json(name)), reason


def _new_folder(files: RunFiles, wanted: str) -> str:
    make_folder(files.checkpoints)
    number = 1
    while True:
        name = wanted if number == 1 else f"{wanted}-{number}"
        try:
            (files.checkpoints / name).mkdir(mode=FOLDER_MODE)
        except FileExistsError:
            number += 1
        else:
            return name


def _raise_together(collectives: Collectives, files: RunFiles, name: str, reason: str | None) -> None:
    """Collective. If any rank has a problem, rank 0 removes the folder, and all raise `RuntimeError`."""
    reasons = collectives.all_reasons(reason)
    if not reasons:
        return
    if collectives.rank == 0 and name:
        try:
            discard(files.checkpoints, name)
        except SteerwayError as error:
            log.warning("a failed save could not be removed: %s", error.reason)
    raise RuntimeError("; ".join(reasons))


def _drain_together(collectives: Collectives, writer: CheckpointWriter) -> None:
    """Collective. Wait until no rank is writing; bounded by the writer's own timeouts."""
    while True:
        idle = writer.drain(ROUND_S)
        if collectives.all_reduce_min(int(idle)):
            return


def _guarded(take: Callable[[], None]) -> str | None:
    try:
        take()
    except Exception as error:
        log.exception("the state could not be copied")
        return error_text(error)
    return None
