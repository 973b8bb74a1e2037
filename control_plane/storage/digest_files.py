"""What a rank's digests were made of: one line for each, in a file per rank and generation.

    line = RankDigest(100, {"weights/head": "..."}).line()       written by the rank, without fsync
    named(divergence, our_files, their_files)                    which parts differ, of each rank that does

The journal holds the root of every line, so that a line which is torn, or was changed, is not believed.
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
"""For accidents, not for adversaries: whoever can write into a rank's memory can also write its digest."""

CAUSES_FIRST = ("samples", "random", "knobs", "schedule", "script", "weights", "optimizer")
"""Of several parts that differ, the earlier kind may have caused the later one."""

Parts = Mapping[str, str]
"""Digests by name, in the order in which they were taken: `weights/transformer.wte.weight`."""


@dataclass(frozen=True, slots=True)
class RankDigest:
    """What one rank had live after a step."""

    step: int
    parts: Parts

    @property
    def root(self) -> str:
        """The digest of all parts, whatever their order."""
        return root_of(self.parts)

    def line(self) -> str:
        """As the file holds it. The step stands first: a reader finds its line without parsing the others."""
        return f'{{"step": {self.step}, "root": "{self.root}", "parts": {json.dumps(self.parts)}}}\n'


def root_of(parts: Parts) -> str:
    """One digest over names and digests."""
    text = "".join(f"{name}\0{parts[name]}\n" for name in sorted(parts))
    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def digest_file(files: RunFiles, generation: int, rank: int) -> Path:
    """Where one rank of a generation writes its lines."""
    return files.digests / f"g{generation}-rank-{rank}.jsonl"


def read_parts(files: RunFiles, digested: StateDigested, rank: int) -> Parts:
    """The parts of one rank's digest that the journal knows.

    Raises: `NotFound` if the rank has written no line of that step, `Damaged` if what it wrote is not what it told.
    """
    path = digest_file(files, digested.generation, rank)
    which = f"rank {rank}'s digest of step {digested.step} in generation {digested.generation}"
    lines = list(_lines_of(path, digested.step, which))
    if not lines:
        raise NotFound(f"nothing says what {which} was made of: {path.name} has no such line")
    for line in lines:
        parts = _parts_of(line)
        if parts is not None and root_of(parts) == digested.ranks[rank]:
            return parts
    raise Damaged(f"{path.name} does not hold what {which} was made of: its line is not what was told")


def _lines_of(path: Path, step: int, which: str) -> Iterator[bytes]:
    begin = f'{{"step": {step}, '.encode()
    try:
        with open_regular(path) as file:
            yield from (line for line in file if line.startswith(begin))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Damaged(f"what {which} was made of cannot be read: {error}") from None


def _parts_of(line: bytes) -> Parts | None:
    try:
        parts = json.loads(line)["parts"]
    except (ValueError, KeyError, TypeError, RecursionError):  # torn: the rank died while it wrote
        return None
    whole = isinstance(parts, dict) and all(isinstance(each, str) for each in parts.values())
    return parts if whole else None


def differing(ours: Parts, theirs: Parts) -> tuple[str, ...]:
    """The names of what differs, or is on one side only: causes before effects, otherwise in the order of training."""
    names = dict.fromkeys([*ours, *theirs])
    found = [name for name in names if ours.get(name) != theirs.get(name)]
    return tuple(sorted(found, key=lambda name: _kind(name)))


def _kind(name: str) -> int:
    kind = name.partition("/")[0]
    return CAUSES_FIRST.index(kind) if kind in CAUSES_FIRST else len(CAUSES_FIRST)


@dataclass(frozen=True, slots=True)
class RankDifference:
    """What differs on one rank, the likely cause first; or, without names, why that is not known: a sentence."""

    rank: int
    names: tuple[str, ...]
    problem: str | None = None


def named(divergence: Divergence, our_files: RunFiles, their_files: RunFiles) -> tuple[RankDifference, ...]:
    """What differs on each rank that does."""
    return tuple(_difference(divergence, rank, our_files, their_files) for rank in divergence.ranks)


def _difference(divergence: Divergence, rank: int, our_files: RunFiles, their_files: RunFiles) -> RankDifference:
    try:
        ours = read_parts(our_files, divergence.ours, rank)
        theirs = read_parts(their_files, divergence.theirs, rank)
    except SteerwayError as problem:
        return RankDifference(rank, (), problem.reason)
    return RankDifference(rank, differing(ours, theirs))
