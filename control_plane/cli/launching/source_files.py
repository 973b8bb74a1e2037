"""Files of a config's sources, as `steer submit` sends them: found by their globs here, placed in the code bundle.

    web: {path: "../crawl/*/part-*.jsonl"}       becomes  _sources/web/*/part-*.jsonl  in the bundle

A file keeps its path below the part of the glob that has no wildcard, so that the same glob finds it there, and the
same files are found in the same order.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path, PurePath
from typing import Any

from control_plane.api.bundles import MAX_BUNDLE_BYTES
from control_plane.core.model.errors import Invalid
from control_plane.storage.code.packing import mebibytes

SOURCES = "_sources"
"""Folder of the files of a config's sources in a bundle."""

INSTEAD = (
    "give a path on the cluster, which is absolute and matches nothing here, or make the source live and send its "
    "files with `steer data add` while the run trains"
)


@dataclass(slots=True)
class SourceFiles:
    """Files to send, by their path in the bundle, and what replaces the sources' paths in the config."""

    files: dict[str, Path] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


def source_files(sources: Any, folder: Path, sends: bool) -> SourceFiles:
    """Return the files of a config's section `sources`; malformed settings are the gateway's to refuse.

    Args:
        folder: of the config; relative paths begin there.
        sends: False if the cluster sees this machine's paths, which are then given as absolute ones.

    Raises: `Invalid` if a relative path matches no file here, or if the files are too large to be sent.
    """
    named = SourceFiles()
    sizes: dict[str, int] = {}
    for name, path in _paths(sources):
        whole = Path(path).expanduser()
        found = _found(folder / whole) if sends else []
        if sends and not found and not whole.is_absolute():
            raise Invalid(
                f"sources.{name}.path is {path}, but no file on this machine matches {folder / whole}, from where it "
                "would be sent; a path on the cluster is absolute"
            )
        place = str(folder / whole)
        if found:
            base, pattern = _split(folder / whole)
            place = f"{SOURCES}/{name}/{pattern}"
            named.files |= {f"{SOURCES}/{name}/{file.relative_to(base).as_posix()}": file for file in found}
            sizes[f"sources.{name}.path ({len(found)} file{'' if len(found) == 1 else 's'})"] = _bytes_of(found)
        named.overrides.append(f"sources.{name}.path={json.dumps(place)}")
    if sum(sizes.values()) > MAX_BUNDLE_BYTES:
        told = ", ".join(f"{name} {mebibytes(size)}" for name, size in sorted(sizes.items(), key=lambda one: -one[1]))
        raise Invalid(
            f"the files of the sources are too large to send: {told}; with the code they may have "
            f"{mebibytes(MAX_BUNDLE_BYTES)}. Instead, {INSTEAD}"
        )
    return named


def _paths(sources: Any) -> Iterator[tuple[str, str]]:
    for name, source in sources.items() if isinstance(sources, dict) else ():
        path = source.get("path") if isinstance(source, dict) else None
        if isinstance(name, str) and name and PurePath(name).name == name and isinstance(path, str) and path:
            yield name, path


def _found(pattern: Path) -> list[Path]:
    return [path for path in map(Path, sorted(glob(str(pattern), recursive=True))) if path.is_file()]


def _split(pattern: Path) -> tuple[Path, str]:
    """Return the folder above a glob's first wildcard, or above the file that it names, and the rest."""
    parts = pattern.parts
    wild = next((at for at, part in enumerate(parts[:-1]) if has_magic(part)), len(parts) - 1)
    return Path(*parts[:wild]), PurePath(*parts[wild:]).as_posix()


def _bytes_of(files: list[Path]) -> int:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise Invalid(f"{error.filename} cannot be read: {error.strerror}") from None
