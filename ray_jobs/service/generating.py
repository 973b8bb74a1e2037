"""Ray task that calls a generator's function, or only looks for examples: the run's code, as its ranks run it."""

import json
import logging
import os
import random
import runpy
import sys
from collections.abc import Iterable, Mapping
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.core.model.data import EXTENSIONS, SourceSettings, is_held_out
from control_plane.core.model.errors import Invalid, SteerwayError
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from ray_jobs.config.bundled_paths import located
from ray_jobs.config.environment import variables
from ray_jobs.config.own_config import own_config
from ray_jobs.config.run_config import RunConfig
from ray_jobs.data.mixture.held_out import slice_name
from ray_jobs.data.mixture.shards import Record, Shard, file_sha256, open_shard
from ray_jobs.driver.warm_spares import CODE
from ray_jobs.process.work_folder import enter_work_folder

MAX_TRIES = 2000
"""Records that are looked at for examples of a slice."""

MAX_SHARDS = 16
"""Shards that examples are taken from, at random."""

MAX_REASON_CHARS = 300

log = logging.getLogger(__name__)


def generated(root: str, request: str) -> str:
    """Return `{"records": [...], "examples": [...]}` or `{"error": ...}` as a line of JSON. To be run as a task.

    Args:
        root: folder of the run.
        request: JSON, as `control_plane.agent.generating.on_cluster` sends it.
    """
    files, wanted = RunFiles(Path(root)), json.loads(request)
    try:
        config = located(own_config(files), files)
        examples = examples_of(wanted, files, config)
        answer: dict[str, Any] = {"examples": [_plain(example) for example in examples]}
        if wanted["call"] is not None:
            answer["records"] = _written(wanted, files, config, examples)
        return json.dumps(answer)
    except SteerwayError as error:
        reason = error.reason
    except BaseException as error:  # whatever the user's code raises: it is no reason to unpickle its classes
        log.exception("the generator failed")
        reason = f"{type(error).__name__}: {error}"
    return json.dumps({"error": redaction_of(files).text(reason)[:MAX_REASON_CHARS]})


def _written(wanted: Mapping[str, Any], files: RunFiles, config: RunConfig, examples: list[Record]) -> list[Any]:
    path, name = wanted["call"]
    place = Path(path) if Path(path).is_absolute() else files.code / path
    os.environ.update(variables(config, files))
    sys.path[:0] = [str(place.parent), *filter(None, os.environ.get(CODE, "").split(os.pathsep))]
    enter_work_folder(files)
    asked = wanted["asked"]
    random.seed(asked["seed"])
    np.random.seed(asked["seed"])
    function = runpy.run_path(str(place), run_name="steerway_generator").get(name)
    if not callable(function):
        raise Invalid(f"{place.name} has no function {name}")
    records = function(asked | {"examples": examples})
    if not isinstance(records, Iterable):
        raise Invalid(f"{name} of {place.name} returned {type(records).__name__}, but must return mappings")
    return [_plain(record) for record in islice(records, asked["records"]) if isinstance(record, Mapping)]


def _plain(value: Any) -> Any:
    """Return a record as JSON has it; arrays and numbers of NumPy as lists and numbers."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def examples_of(wanted: Mapping[str, Any], files: RunFiles, config: RunConfig) -> list[Record]:
    """Return some records of the weak source, or of its slice, at random by the seed; never one that is held out.

    None of a source whose files cannot be read here.
    """
    asked = wanted["asked"]
    settings = SourceSettings.model_validate_json(json.dumps(wanted["sources"].get(asked["source"])))
    chance, found, tries = random.Random(asked["seed"]), list[Record](), 0
    shards = _paths(asked["source"], settings, files, config)
    chance.shuffle(shards)
    opened = [
        (shard, _sha256_of(path, files))
        for path in shards[:MAX_SHARDS]
        if (shard := _opened(path, settings)) is not None and len(shard)
    ]
    while opened and len(found) < wanted["examples"] and tries < MAX_TRIES:
        tries += 1
        shard, sha256 = chance.choice(opened)
        row = chance.randrange(len(shard))
        if settings.held_out and is_held_out(sha256, row, settings.held_out):
            continue
        record = shard[row]
        is_meant = not asked["slice"] or slice_name(record.get(settings.slices or "")) == asked["slice"]
        if is_meant and not any(_plain(record) == _plain(other) for other in found):
            found.append(record)
    return found


def _paths(name: str, settings: SourceSettings, files: RunFiles, config: RunConfig) -> list[Path]:
    path = config.sources[name].path if name in config.sources else None
    first = [Path(one) for one in sorted(glob(path, recursive=True))] if path is not None else []
    return first + sorted((files.data / name).glob(f"*.{EXTENSIONS[settings.format]}"))


def _sha256_of(path: Path, files: RunFiles) -> str:
    return path.stem if path.is_relative_to(files.data) else file_sha256(path)


def _opened(path: Path, settings: SourceSettings) -> Shard | None:
    try:
        return open_shard(path, settings.format)
    except (Invalid, OSError):
        return None
