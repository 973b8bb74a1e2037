"""Streams of digests that trainings of `crashes` have left, and what must be true of two of them."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.records import StateDigested
from control_plane.core.rules.digests import compare
from control_plane.storage.digest_files import named
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles

SHARED = "transformer.h.0.mlp.c_proj.weight"
"""A parameter whose master weights and moments rank 1 has a share of, under ZeRO 1 to 3."""


def files_of(root: Path) -> RunFiles:
    return RunFiles(root / "runs" / "crashed")


def stream(root: Path) -> list[StateDigested]:
    records = (entry.record for entry in writer.read(files_of(root).journal))
    return [record for record in records if isinstance(record, StateDigested)]


def flips(*steps: int) -> list[dict[str, Any]]:
    """A bit of a weight, of a moment and of a master weight of rank 1, at these steps in turn."""
    names = (f"weights/{SHARED}", f"optimizer/{SHARED}/exp_avg_sq", f"optimizer/{SHARED}/master")
    return [
        {"rank": 1, "step": step, "name": names[at % 3], "byte": 3 * at + 1, "bit": at % 8}
        for at, step in enumerate(steps)
    ]


def assert_same_but_for(planted: list[dict[str, Any]], undisturbed: Path, other: Path, steps: range) -> None:
    """All these steps are in both streams and equal, but for the flips: each is found with its step, rank and name."""
    ours, theirs = stream(undisturbed), stream(other)
    found = compare(ours, theirs)
    assert found.steps == tuple(steps)
    assert found.unlike == found.our_contradictions == found.their_contradictions == ()
    for flip in planted:
        first = compare(ours, theirs).first
        assert first is not None, flip
        differences = named(first, files_of(undisturbed), files_of(other))
        assert (first.step, first.ranks) == (flip["step"], (flip["rank"],)), differences
        assert differences[0].names == (flip["name"],)
        theirs = [each for each in theirs if each.step > first.step]
    rest = compare(ours, theirs)
    if rest.first is not None:
        pytest.fail(f"step {rest.first.step}: {named(rest.first, files_of(undisturbed), files_of(other))}")
    assert rest.verdict == "identical"


def repeated_steps(root: Path) -> set[int]:
    """Steps that more than one generation has digested."""
    generations: dict[int, set[int]] = {}
    for each in stream(root):
        generations.setdefault(each.step, set()).add(each.generation)
    return {step for step, of in generations.items() if len(of) > 1}
