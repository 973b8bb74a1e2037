"""Parts of every state digest of a rank: one line per digest, in a file per rank and generation.

    line = RankDigest(100, {"weights/head": "..."}).line()       written by the rank, without fsync
    named(divergence, our_files, their_files)                    which parts differ, of each rank that does

The journal has the root of every line, which detects a torn or changed line.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from control_plane.core.model.errors import Damaged, NotFound, SteerwayError
from control_plane.core.model.records import StateDigested
from control_plane.core.rules.digests import Divergence
from control_plane.storage.layout import RunFiles
from control_plane.storage.regular import open_regular

ALGORITHM = "xxh3_128"
"""Not cryptographic: whoever can write into a rank's memory can also write its digest."""

CAUSES_FIRST = ("samples", "random", "knobs", "schedule", "script", "weights", "optimizer")
"""Kinds of parts in causal order: a difference in an earlier one may have caused a later one."""

Parts = Mapping[str, str]
"""Digests by name, in the order in which they were taken: `weights/transformer.wte.weight`."""


@dataclass(frozen=True, slots=True)
class RankDigest:
    """Digests of one rank's live state after a step."""

    step: int
    parts: Parts

    @property
    def root(self) -> str:
        """Return the digest of all parts, independent of their order."""
        return root_of(self.parts)

    def line(self) -> str:
        """Return the line for the file. The step comes first, so that a reader finds it without parsing other lines."""
        return f'{{"step": {self.step}, "root": "{self.root}", "parts": {json.dumps(self.parts)}}}\n'


def root_of(parts: Parts) -> str:
    """Return one digest over names and digests."""
    text = "".join(f"{name}\0{parts[name]}\n" for name in sorted(parts))
    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def digest_file(files: RunFiles, generation: int, rank: int) -> Path:
    """Return the file of one rank in a generation."""
    return files.digests / f"g{generation}-rank-{rank}.jsonl"


def read_parts(files: RunFiles, digested: StateDigested, rank: int) -> Parts:
    """Return the parts of one rank's digest that the journal has recorded.

    Raises `NotFound` if the rank has written no line for that step, `Damaged` if its line has another root.
    """
    path = digest_file(files, digested.generation, rank)
    which = f"rank {rank}'s digest of step {digested.step} in generation {digested.generation}"
    lines = list(_lines_of(path, digested.step, which))
    if not lines:
        raise NotFound(f"the parts of {which} are unknown: {path.name} has no line for it")
    for line in lines:
        parts = _parts_of(line)
        if parts is not None and root_of(parts) == digested.ranks[rank]:
            return parts
    raise Damaged(f"{path.name} does not match {which}: its line has another root")


def _lines_of(path: Path, step: int, which: str) -> Iterator[bytes]:
    begin = f'{{"step": {step}, '.encode()
    try:
        with open_regular(path) as file:
            yield from (line for line in file if line.startswith(begin))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Damaged(f"the parts of {which} cannot be read: {error}") from None


def _parts_of(line: bytes) -> Parts | None:
    try:
        parts = json.loads(line)["parts"]
    except (ValueError, KeyError, TypeError, RecursionError):  # torn: the rank died while it wrote
        return None
    whole = isinstance(parts, dict) and all(isinstance(digest, str) for digest in parts.values())
    return parts if whole else None


def differing(ours: Parts, theirs: Parts) -> tuple[str, ...]:
    """Return the names of parts that differ or are missing on one side: causes first, else in training order."""
    names = dict.fromkeys([*ours, *theirs])
    return tuple(sorted((name for name in names if ours.get(name) != theirs.get(name)), key=_kind))


def _kind(name: str) -> int:
    kind = name.partition("/")[0]
    return CAUSES_FIRST.index(kind) if kind in CAUSES_FIRST else len(CAUSES_FIRST)


@dataclass(frozen=True, slots=True)
class RankDifference:
    """Parts that differ on one rank, the likely cause first; without names, `reason` says why they are unknown."""

    rank: int
    names: tuple[str, ...]
    reason: str | None = None


def named(divergence: Divergence, our_files: RunFiles, their_files: RunFiles) -> tuple[RankDifference, ...]:
    """Return the parts that differ, for each rank that diverged."""
    return tuple(_difference(divergence, rank, our_files, their_files) for rank in divergence.ranks)


def _difference(divergence: Divergence, rank: int, our_files: RunFiles, their_files: RunFiles) -> RankDifference:
    try:
        ours = read_parts(our_files, divergence.ours, rank)
        theirs = read_parts(their_files, divergence.theirs, rank)
    except SteerwayError as error:
        return RankDifference(rank, (), error.reason)
    return RankDifference(rank, differing(ours, theirs))
