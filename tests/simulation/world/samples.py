"""The samples of a simulated rank: the real order of a mixture, of the changes that the rank carries."""

import json
from functools import lru_cache
from typing import Any

from control_plane.core.model.data import SourceSettings
from control_plane.core.model.intents import INTENT
from control_plane.core.model.intents.data import DataIntent
from ray_jobs.data.mixture.course import SourceShard
from ray_jobs.data.mixture.order import MixtureOrder, Source
from tests.ray_jobs.data.mixture import reference

SEED, BATCH = 3, 8
SHARDS = {name: [(f"{number:064x}", 20)] for number, name in enumerate(("web", "notes"))}


def shard(number: int, source: str) -> dict[str, Any]:
    """A shard that comes while training."""
    return {"source": source, "sha256": f"{number:064x}", "records": 7, "bytes": 1}


LIVE = {"format": "text", "live": True}
DATA_KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("set_mixture", {"weights": {"web": 0.2}}),
    ("set_mixture", {"weights": {"web": 0.0, "notes": 2.0}}),
    ("set_mixture", {"weights": {"web": 0.0, "notes": 0.0}}),
    ("set_mixture", {"weights": {"fresh": 3.0}}),
    ("add_source", {"source": "fresh", "settings": LIVE, "shards": [shard(100, "fresh")]}),
    ("add_shards", {"source": "notes", "shards": [shard(200, "notes")]}),
    ("add_shards", {"source": "fresh", "shards": [shard(300, "fresh")]}),
    ("withdraw_samples", {"source": "notes", "shard": f"{1:064x}", "rows": [0, 3, 4]}),
    ("split_source", {"source": "notes", "into": "late", "shards": [f"{200:064x}"]}),
    ("remove_source", {"source": "fresh"}),
)


def position(step: int) -> int:
    """The first sample of the step after this one."""
    return step * BATCH


def change(step: int, body: dict[str, Any]) -> str:
    """A change as a rank carries it."""
    return json.dumps([position(step), body], sort_keys=True)


def order(changes: list[str]) -> MixtureOrder:
    """The order after these changes; what a faulty rank has put among them is none."""
    return _order(tuple(each for each in changes if is_change(each)))


def is_change(mark: str) -> bool:
    """Whether a mark is a change, and no oddity of a rank."""
    return mark.startswith("[")


@lru_cache(maxsize=64)
def _order(changes: tuple[str, ...]) -> MixtureOrder:
    sources = {
        name: Source(SourceSettings(format="text", live=True), tuple(SourceShard(*each) for each in shards))
        for name, shards in SHARDS.items()
    }
    made = MixtureOrder(sources, SEED)
    for at, body in map(json.loads, changes):
        intent = INTENT.validate_python(body)
        assert isinstance(intent, DataIntent)
        made.change(at, intent)
    return made


def drawn(changes: list[str], steps: int) -> list[str]:
    """Names of the samples of so many steps, by the real order."""
    return [each.id for each in order(changes).span(0, position(steps))]


def due(changes: list[str], steps: int) -> list[str]:
    """Names of the samples of so many steps, by the second implementation."""
    sources = {name: {"weight": 1.0, "repeats": True, "shards": shards} for name, shards in SHARDS.items()}
    return list(reference.drawn(sources, SEED, [tuple(json.loads(each)) for each in changes], position(steps)))
