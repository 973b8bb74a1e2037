"""Transfer of a checkpoint to another run (fork, adopt): its files are linked or copied, its manifest rewritten.

Every byte is verified first; the new run's manifest is signed with this installation's key, names the new run, and is
written last. On one file system nothing is copied but hard-linked: files of a checkpoint are never modified, and each
run removes only its own links.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from control_plane.config_text import from_yaml
from control_plane.core.model.branch_tree import candidates
from control_plane.core.model.data import EXTENSIONS
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound, Unavailable
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import MAIN, CheckpointCommitted, Parent
from control_plane.core.model.redaction import Redaction, conceals, names_secret
from control_plane.core.model.state import RunState, fold
from control_plane.core.model.values import MAX_NAME_CHARS, MAX_NAMES_TOLD
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin
from control_plane.storage.checkpoint.shards import sync, sync_folder
from control_plane.storage.checkpoint.store import (
    Manifest,
    SigningKey,
    commit,
    discard,
    read_manifest,
    verify,
)
from control_plane.storage.in_use import reading
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles, find_run
from control_plane.storage.private import make_folder, private, write_file
from control_plane.storage.regular import read_regular

MAX_ANCESTORS = 16
"""Most ancestors that are searched for a common one of two runs."""

SHARD = re.compile(rf"[0-9a-f]{{64}}\.({'|'.join(EXTENSIONS.values())})")
"""Name of a shard's file."""

NOT_SHOWN = "(not shown)"
"""Replaces values that may be secrets: of a key that names one, long text, and lists."""

SAVED_SO = (
    "deepspeed.zero_optimization.stage",
    "deepspeed.optimizer.type",
    "deepspeed.bf16.enabled",
    "deepspeed.fp16.enabled",
    "training.optim",
)
"""Settings that determine the format of a checkpoint's files; both runs must agree on them."""


def transfer_checkpoint(
    parent: RunFiles, recorded: CheckpointCommitted, child: RunFiles, branch: str = MAIN, name: str | None = None
) -> CheckpointCommitted:
    """Give `child` a checkpoint of `parent`, as one of its branch `branch`; return the record for its journal.

    `recorded` is the parent's own record, which detects another checkpoint in its place. `name` is the new name, and
    leftovers of a crash under it are removed; by default the name stays the same.

    Raises `Damaged` if it does not verify, `Conflict` if the child has another one of that name, `Unavailable` if the
    disk fails; then the child is unchanged.
    """
    with reading(parent):
        transfer_shards(parent, child)
        return _transfer(parent, recorded, child, branch, name)


def _transfer(
    parent: RunFiles, recorded: CheckpointCommitted, child: RunFiles, branch: str, name: str | None
) -> CheckpointCommitted:
    checkpoint = recorded.checkpoint
    source, target = parent.checkpoints / checkpoint, child.checkpoints / (name or checkpoint)
    key = SigningKey.of_installation(child.signing_key)
    parent_key = SigningKey.of_installation(parent.signing_key)
    manifest = verify(source, parent_key, recorded_sha256=recorded.manifest_sha256)
    own = _own(manifest, child.run, branch, target.name)
    is_here = _is_here(target, own, key)
    if target.exists() and not is_here:
        if name is None:
            raise Conflict(f"run {child.run} already has a checkpoint {target.name}")
        discard(target.parent, target.name)
    try:
        for shard in () if is_here else manifest.shards:
            make_folder((target / shard.path).parent)
            _link(source / shard.path, target / shard.path)
        sync_folder(child.checkpoints, "inherited.folder")
        digest = commit(target, own, key)
    except OSError as error:
        if not is_here:
            discard(target.parent, target.name)
        reason = error.strerror or error
        raise Unavailable(f"checkpoint {checkpoint} could not be transferred to run {child.run}: {reason}") from None
    return CheckpointCommitted(
        checkpoint=own.checkpoint,
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
        training=own.training,
    )


def transfer_shards(parent: RunFiles, child: RunFiles) -> None:
    """Give `child` the shards of `parent`'s live sources, which are named by their content; those that it has stay.

    Nothing else in their folders is shared: each run has its own index of what it has taken in. Raises `Unavailable` if
    the disk fails.
    """
    try:
        for path in sorted(parent.data.glob("*/*")):
            target = child.data / path.parent.name / path.name
            if SHARD.fullmatch(path.name) and not target.exists():
                make_folder(target.parent)
                _link(path, target)
                sync_folder(target.parent, "inherited.folder")
    except OSError as error:
        reason = error.strerror or error
        raise Unavailable(f"data of run {parent.run} could not be transferred to run {child.run}: {reason}") from None


def adopt(files: RunFiles, intent: AdoptCheckpoint, branch: str, known: Collection[str]) -> AdoptedCheckpoint:
    """Adopt a checkpoint of another run as the start of `branch`. `known`: checkpoints in this run's journal.

    Raises like `adoptable`; also `Conflict` if it was adopted before, `Damaged`, `Unavailable`.
    """
    source, record, differing = adoptable(files, intent)
    name = f"{record.checkpoint}-of-{source.run}"
    if len(name) > MAX_NAME_CHARS:
        raise Conflict(f"the checkpoint name {name} would exceed {MAX_NAME_CHARS} characters")
    if name in known:
        raise Conflict(f"{record.checkpoint} of run {source.run} was already adopted as checkpoint {name}")
    origin = Parent(
        kind="adopted", run=source.run, branch=record.branch, checkpoint=record.checkpoint, step=record.step
    )
    return AdoptedCheckpoint(
        origin=origin, checkpoint=transfer_checkpoint(source, record, files, branch, name), differing=differing
    )


def adoptable(files: RunFiles, intent: AdoptCheckpoint) -> tuple[RunFiles, CheckpointCommitted, dict[str, Any]]:
    """Return what a run would adopt: source run, checkpoint, and the settings that differ. Changes nothing.

    Raises `NotFound` for an unknown run or checkpoint; `Conflict` if the runs have no common ancestor or incompatible
    checkpoint formats; `Damaged` for a file that cannot be read.
    """
    source = find_run(files.root.parent, intent.run)
    record = _chosen(fold(writer.read(source.journal)), source.run, intent.checkpoint)
    _check_kinship(files, source)
    differing = _differing(source, files)
    if unlike := next((key for key in SAVED_SO if key in differing), None):
        theirs, own = differing[unlike]
        raise Conflict(f"incompatible checkpoint: {unlike} is {theirs} in run {source.run}, but {own} in {files.run}")
    return source, record, differing


def _chosen(state: RunState, run: str, checkpoint: str | None) -> CheckpointCommitted:
    best_first = candidates(state.tree, state.checkpoints, state.tree.head)
    known = best_first if checkpoint is None else state.checkpoints.existing
    chosen = next((record for record in known if checkpoint in (None, record.checkpoint)), None)
    if chosen is None:
        listed = ", ".join(record.checkpoint for record in state.checkpoints.existing[-MAX_NAMES_TOLD:]) or "none"
        raise NotFound(f"run {run} has no checkpoint {checkpoint or 'to adopt'}; the latest are {listed}")
    return chosen


def _check_kinship(files: RunFiles, source: RunFiles) -> None:
    if not set(_ancestors(files)) & set(_ancestors(source)):
        raise Conflict(
            f"runs {files.run} and {source.run} have no common ancestor: only a fork of a run, or the run that it was "
            "forked from, can be adopted"
        )


def _ancestors(files: RunFiles) -> Iterator[str]:
    """Yield the run, its parent (which it was forked from, or replays), and so on."""
    for _ in range(MAX_ANCESTORS):
        yield files.run
        origin = read_origin(files)
        if origin is None:
            return
        try:
            files = find_run(files.root.parent, origin.parent.run)
        except NotFound:
            yield origin.parent.run
            return


def _differing(one: RunFiles, other: RunFiles) -> dict[str, Any]:
    """Return the settings that differ between two runs, except their names; None for a missing one.

    Possible secrets are replaced by `NOT_SHOWN`, since the result goes into the journal.
    """
    ones, others = (dict(_flat(_settings(files))) for files in (one, other))
    keys = [key for key in dict.fromkeys([*ones, *others]) if ones.get(key) != others.get(key) and key != "name"]
    return {key: [_shown(key, ones.get(key)), _shown(key, others.get(key))] for key in keys}


def _shown(key: str, value: Any) -> Any:
    is_harmless = value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 40)
    # The outermost key that names a secret counts for everything below it.
    named = next((part for part in key.split(".") if names_secret(part)), key)
    return NOT_SHOWN if not is_harmless or conceals(named, value) or Redaction().value(value) != value else value


def _settings(files: RunFiles) -> Any:
    try:
        return from_yaml(read_regular(files.config).decode(), str(files.config))
    except (Invalid, Damaged) as error:
        raise Damaged(f"{files.config} cannot be read: {error.reason}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{files.config} cannot be read: {error}") from None


def _flat(settings: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _flat(value, f"{within}.{key}" if within else str(key))
    else:
        yield within, settings


def write_origin(files: RunFiles, origin: Origin) -> None:
    """Write the origin of a new run, before its control server starts. Raises `Unavailable` if the disk fails."""
    try:
        write_file(files.origin, origin.model_dump_json())
    except OSError as error:
        raise Unavailable(f"{files.origin} could not be written: {error.strerror or error}") from None


def read_origin(files: RunFiles) -> Origin | None:
    """Return the origin of a run that has a parent, else None. Raises `Damaged` if its file cannot be read."""
    if not files.origin.is_file():
        return None
    try:
        return Origin.model_validate_json(read_regular(files.origin))
    except (OSError, ValidationError) as error:
        raise Damaged(f"{files.origin} cannot be read ({type(error).__name__})") from None


def _own(manifest: Manifest, run: str, branch: str, name: str) -> Manifest:
    named = {"checkpoint": name, "run": run, "branch": branch}
    return manifest.model_copy(
        update={**named, "signature": "", "resigned_from": "", "pinned": True, "decided_here": ()}
    )


def _is_here(target: Path, own: Manifest, key: SigningKey) -> bool:
    try:
        return read_manifest(target, key).model_copy(update={"signature": ""}) == own
    except Damaged:
        return False


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with open(source, "rb") as saved, open(target, "wb", opener=private) as copied:
            shutil.copyfileobj(saved, copied)
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync(descriptor, "inherited.file")
        finally:
            os.close(descriptor)
