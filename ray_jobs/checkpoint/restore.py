"""Restore of a verified checkpoint into a new training, with a digest that proves the live state equals the saved one.

    load(model, optimizer, engine, plan)     the engine has been built: weights, optimizer, DeepSpeed's scheduler
    finish(training, plan, collectives)      the loop is about to begin: schedule, loss sums, groups; then the digest
    random_generators(seed, plan, rank)      the first batch has been fetched

The digest of the live state must be the one in the manifest. On another number of ranks it cannot be: there DeepSpeed's
universal format is loaded, and `elastic` compares the consolidated state instead.
"""

import hashlib
import io
import json
import logging
from typing import TYPE_CHECKING

import torch

from control_plane.core.model.errors import Damaged, Diverged, Refused
from control_plane.core.model.records import Readback
from control_plane.storage.checkpoint.store import Manifest, Shard, open_shard, read_shard
from control_plane.storage.layout import STATE
from ray_jobs.checkpoint import loop_state
from ray_jobs.checkpoint.capture import TRAINER_STATE, capture, model_shapes, progress_path, random_digest, state_digest
from ray_jobs.checkpoint.universal import load_universal
from ray_jobs.data.skipping import StreamPlace
from ray_jobs.process.collectives import Collectives
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.rank.plan import ResumePlan

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

CONFIGURED = ("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "train_batch_size")
"""Settings in Transformers' state that it takes from the config again at every start."""


def load(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, engine: "DeepSpeedEngine | None", plan: ResumePlan
) -> None:
    """Collective. Load the weights and the optimizer.

    Raises: `Refused` if it is of another model, `Damaged` if DeepSpeed finds nothing to load.
    """
    assert plan.root is not None
    assert plan.manifest is not None
    if reason := model_mismatch(model, plan.manifest):
        raise Refused(reason)
    if engine is None:
        with open_shard(plan.root, _shard(plan.manifest, f"{STATE}/model.pt")) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    elif plan.manifest.kind == "universal":
        load_universal(engine, plan.root)
    else:
        loaded, _ = engine.load_checkpoint(str(plan.root), tag=STATE)
        if loaded is None:
            raise Damaged(f"DeepSpeed found nothing to load in {plan.checkpoint}")


def model_mismatch(model: torch.nn.Module, manifest: Manifest) -> str | None:
    """Return the reason why the checkpoint is not of this model, or None.

    Checkpoints of the first release do not name their model.
    """
    shapes, parameters = model_shapes(model)
    if not manifest.model_sha256 or shapes == manifest.model_sha256:
        return None
    return (
        f"checkpoint {manifest.checkpoint} does not fit this model: it is of one with "
        f"{manifest.model_parameters:,} parameters, and this one has {parameters:,}"
        + (", of other names or shapes" if parameters == manifest.model_parameters else "")
    )


def finish(training: LiveTraining, plan: ResumePlan, collectives: Collectives) -> None:
    """Collective. Restore the loop state and compare digests. Raises `Diverged` on every rank if any differs."""
    assert plan.manifest is not None
    reason = None
    try:
        loop_state.restore(training, _progress(plan, collectives.rank))
    except Diverged as difference:
        reason = difference.reason
    states = capture(training)
    if TRAINER_STATE in states:
        states[TRAINER_STATE] = _as_configured_then(states[TRAINER_STATE], plan)
    if reason is None and plan.manifest.kind == "saved":
        saved = {state.rank: state.state_sha256 for state in plan.manifest.ranks}.get(collectives.rank)
        live = state_digest(states)
        if live != saved:
            reason = f"its state has the digest {live[:12]}, and {str(saved)[:12]} was saved"
    reasons = collectives.all_reasons(reason)
    if reasons:
        raise Diverged(f"what was restored from {plan.checkpoint} is not what was saved: {'; '.join(reasons)}")
    log.info("restored %s: step %d, digest compared", plan.checkpoint, plan.manifest.step)


def _as_configured_then(state: str, plan: ResumePlan) -> str:
    """Return the Trainer's state with the saved config's settings: a fork may have other ones, on purpose."""
    assert plan.root is not None
    assert plan.manifest is not None
    saved = json.loads(read_shard(plan.root, _shard(plan.manifest, TRAINER_STATE)))
    return json.dumps(json.loads(state) | {key: saved[key] for key in CONFIGURED if key in saved})


def script_state(plan: ResumePlan, rank: int) -> Readback:
    """Return the saved state of the script's own callbacks; empty if there is none."""
    assert plan.manifest is not None
    return dict(_read(plan, rank % plan.manifest.world_size).get(loop_state.CALLBACKS, {}))


def stream_place(plan: ResumePlan, rank: int) -> StreamPlace | None:
    """Return the position in a stream without a length; None in older checkpoints."""
    assert plan.manifest is not None
    place = _read(plan, rank % plan.manifest.world_size).get("stream")
    return StreamPlace.recalled(place) if place is not None else None


def had_ended(plan: ResumePlan, rank: int) -> bool:
    """Return whether the script had ended its training early at this checkpoint. A new branch from there continues."""
    assert plan.manifest is not None
    ended = script_state(plan, rank).get("ended")
    return plan.manifest.branch == plan.branch and bool(ended)


def random_generators(seed: int, plan: ResumePlan, rank: int) -> None:
    """Restore this rank's random generators; a rank that the checkpoint does not have is seeded.

    Raises `Diverged` if a digest differs.
    """
    assert plan.manifest is not None
    manifest = plan.manifest
    loop_state.restore_random(_read(plan, rank % manifest.world_size))
    if manifest.kind == "universal" and rank >= manifest.world_size:
        own = hashlib.sha256(f"{seed}:{manifest.step}:{rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(own[:8], "big"))
        return
    saved = {state.rank: state.random_sha256 for state in manifest.ranks}.get(rank)
    live = random_digest({progress_path(rank): {"random": loop_state.random_state()}})
    if manifest.kind == "saved" and live != saved:
        raise Diverged(f"the random generators of rank {rank} are not what {manifest.checkpoint} holds")


def _progress(plan: ResumePlan, rank: int) -> loop_state.Progress:
    """Return this rank's loop state; on another number of ranks, with the mean of the per-rank loss sums."""
    assert plan.root is not None
    assert plan.manifest is not None
    writers = plan.manifest.world_size
    saved = _read(plan, rank % writers)
    if plan.manifest.kind == "universal":
        everyone = [_read(plan, writer) for writer in range(writers)]
        saved["tr_loss"] = sum(one["tr_loss"] for one in everyone) / writers
    return saved


def _read(plan: ResumePlan, rank: int) -> loop_state.Progress:
    assert plan.root is not None
    assert plan.manifest is not None
    # Verified before the plan was made, by every rank's word; and compared once more, as the very bytes that are used.
    content = read_shard(plan.root, _shard(plan.manifest, progress_path(rank)))
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=False))


def _shard(manifest: Manifest, path: str) -> Shard:
    wanted = next((shard for shard in manifest.shards if shard.path == path), None)
    if wanted is None:
        raise Damaged(f"checkpoint {manifest.checkpoint} holds no {path}")
    return wanted
