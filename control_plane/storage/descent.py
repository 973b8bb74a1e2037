"""A checkpoint becomes another run's: its files are linked or copied, and its manifest is written anew.

Every byte is verified before; the manifest that the new run gets is signed with this installation's key, names the new
run, and is written last. Where both runs lie on one file system nothing is copied: files of a checkpoint are never
written again, and each run removes its own names of them.
"""

import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from control_plane.core.branching import Origin
from control_plane.core.errors import Conflict, Damaged, Unavailable
from control_plane.core.records import MAIN, CheckpointCommitted
from control_plane.storage.checkpoints import Manifest, SigningKey, commit, discard, verify
from control_plane.storage.layout import RunFiles
from control_plane.storage.shards import sync, sync_folder


def inherit(parent: RunFiles, checkpoint: str, child: RunFiles, branch: str = MAIN) -> CheckpointCommitted:
    """Give `child` a checkpoint of `parent`, as one of its own branch; answers the record for its journal.

    Raises: `Damaged` if it does not verify, `Conflict` if the child has one of that name, `Unavailable` if the disk
    fails; then the child has none.
    """
    source, target = parent.checkpoints / checkpoint, child.checkpoints / checkpoint
    manifest = verify(source, SigningKey.of_installation(parent.signing_key))
    if target.exists():
        raise Conflict(f"run {child.run} has a checkpoint {checkpoint} already")
    try:
        for shard in manifest.shards:
            (target / shard.path).parent.mkdir(parents=True, exist_ok=True)
            _link(source / shard.path, target / shard.path)
        sync_folder(child.checkpoints, "inherited.folder")
        own = _own(manifest, child.run, branch)
        digest = commit(target, own, SigningKey.of_installation(child.signing_key))
    except OSError as error:
        discard(target)
        raise Unavailable(f"checkpoint {checkpoint} could not be given to run {child.run}: {error}") from None
    return CheckpointCommitted(
        checkpoint=checkpoint,
        step=own.step,
        generation=0,
        path=str(target.relative_to(child.root)),
        label=own.label,
        pinned=True,
        size_bytes=own.size_bytes,
        world_size=own.world_size,
        metrics=own.metrics,
        manifest_sha256=digest,
        branch=branch,
    )


def write_origin(files: RunFiles, origin: Origin) -> None:
    """Say how a new run begins, before its control server first does. Raises `Unavailable` if the disk fails."""
    try:
        files.origin.write_text(origin.model_dump_json())
    except OSError as error:
        raise Unavailable(f"{files.origin} could not be written: {error.strerror or error}") from None


def read_origin(files: RunFiles) -> Origin | None:
    """How a run begins that has a parent; None if it has none. Raises `Damaged` if its file cannot be read."""
    if not files.origin.is_file():
        return None
    try:
        return Origin.model_validate_json(files.origin.read_bytes())
    except (OSError, ValidationError) as error:
        raise Damaged(f"{files.origin} cannot be read ({type(error).__name__})") from None


def _own(manifest: Manifest, run: str, branch: str) -> Manifest:
    return manifest.model_copy(
        update={"run": run, "branch": branch, "signature": "", "pinned": True, "decided_here": ()}
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync(descriptor, "inherited.file")
        finally:
            os.close(descriptor)
