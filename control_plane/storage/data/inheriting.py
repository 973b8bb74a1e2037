"""Index of a fork's live sources: the records that its checkpoint contains are known to it, with who sent them.

So what was sent to the parent before the fork is not taken in twice, and is shown with its provenance. What the parent
has taken in later is no part of the fork, and may be sent to it.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from control_plane.core.model.data import SourceSettings, shard_name
from control_plane.core.model.errors import SteerwayError
from control_plane.storage.data.bodies import ACCEPTED, read_body
from control_plane.storage.data.checking import BadRecord
from control_plane.storage.data.encoding import content_hash
from control_plane.storage.data.index import INDEX, InheritedShard, SourceIndex
from control_plane.storage.layout import RunFiles

log = logging.getLogger(__name__)

INHERITED = "inherited from run"


def inherit_indexes(
    parent: RunFiles, child: RunFiles, sources: Mapping[str, SourceSettings], contained: Collection[str]
) -> None:
    """Enter into the indexes of a fork the shards that it was given, and that its checkpoint contains.

    A source whose index cannot be read begins without: then records that it has may be taken in once more.

    Args:
        sources: settings of the parent's sources, by name.
        contained: uuids of the commands that the checkpoint contains.
    """
    for path in sorted(parent.data.glob(f"*/{INDEX}")):
        name = path.parent.name
        if name not in sources:
            continue
        try:
            shards = [
                shard
                for shard in SourceIndex(path.parent, name).taken_in()
                if shard.command in contained or (shard.reason or "").startswith(INHERITED)
            ]
            _enter(child.data / name, name, sources[name], shards, parent.run)
        except (SteerwayError, OSError, BadRecord) as error:
            log.warning(
                "what source %s of run %s had taken in is not known to %s: %s", name, parent.run, child.run, error
            )


def _enter(folder: Path, name: str, settings: SourceSettings, shards: Iterable[InheritedShard], parent: str) -> None:
    index: SourceIndex | None = None
    for shard in shards:
        path = folder / shard_name(shard.record.sha256, settings.format)
        if not path.is_file():
            continue
        hashes = []
        for _, record in read_body(path, ACCEPTED[settings.format][0], settings):
            if isinstance(record, BadRecord):
                raise record
            hashes.append(content_hash(record))
        index = index or SourceIndex(folder, name)
        before = shard.reason or ""
        reason = before if before.startswith(INHERITED) else f"{INHERITED} {parent}"
        with index.transaction() as database:
            index.add_inherited(database, shard, hashes, reason)
