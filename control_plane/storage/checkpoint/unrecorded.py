"""Checkpoints on the disk that the journal may not know, with what their manifests say. Hashes no shard."""

import hashlib
from collections.abc import Collection
from uuid import UUID

from control_plane.core.model.errors import Damaged, SteerwayError
from control_plane.core.model.records import UNIVERSAL, CheckpointCommitted
from control_plane.core.rules.unrecorded import UnrecordedCheckpoint
from control_plane.storage.checkpoint.cleanup import folders
from control_plane.storage.checkpoint.manifest import MANIFEST, Manifest
from control_plane.storage.checkpoint.signing import SigningKey
from control_plane.storage.checkpoint.store import read_manifest
from control_plane.storage.layout import RunFiles


def committed(manifest: Manifest, manifest_sha256: str) -> CheckpointCommitted:
    """Return the record of a checkpoint from its manifest and the SHA-256 of that file."""
    return CheckpointCommitted(
        checkpoint=manifest.checkpoint,
        step=manifest.step,
        generation=manifest.generation,
        path=f"checkpoints/{manifest.checkpoint}",
        label=manifest.label,
        pinned=manifest.pinned,
        size_bytes=manifest.size_bytes,
        world_size=manifest.world_size,
        metrics=manifest.metrics,
        manifest_sha256=manifest_sha256,
        branch=manifest.branch,
        training=manifest.training,
        decided_here=tuple(UUID(uuid) for uuid in manifest.decided_here),
    )


def find_unrecorded(files: RunFiles, known: Collection[str]) -> list[UnrecordedCheckpoint]:
    """Return the checkpoints with a manifest that are not `known`, without conversions.

    One whose signature or sizes do not verify has a `reason`. Every byte is hashed by the ranks before a restore. A
    folder whose manifest cannot be read at all, or that belongs to another installation, is left alone.
    """
    key = SigningKey.of_installation(files.signing_key)
    found: list[UnrecordedCheckpoint] = []
    for root in folders(files.checkpoints):
        if root.name in known or root.name.endswith(UNIVERSAL) or not (root / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(root, key)
            digest = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
            record = committed(manifest, digest)
        except (SteerwayError, OSError, ValueError):
            continue
        if manifest.kind != "saved":
            continue
        reason = ""
        try:
            for shard in manifest.shards:
                if (root / shard.path).stat().st_size != shard.size_bytes:
                    raise Damaged(f"{shard.path} has another size than its manifest says")
        except Damaged as damage:
            reason = damage.reason
        except OSError as error:
            reason = f"{error.filename} cannot be read: {error.strerror}"
        found.append(UnrecordedCheckpoint(record, manifest.run, frozenset(manifest.settled), reason))
    return found
