"""What digests were made of: read back, believed only where the journal agrees, and named causes first."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged, NotFound
from control_plane.core.model.records import StateDigested
from control_plane.core.rules.digests import compare
from control_plane.storage.digest_files import RankDigest, differing, digest_file, named, read_parts, root_of
from control_plane.storage.layout import RunFiles

PARTS = {"samples": "s", "random/torch": "r", "weights/head": "w", "optimizer/head/exp_avg": "m"}


def written(root: Path, *digests: dict[str, str], step: int = 7) -> tuple[RunFiles, StateDigested]:
    """A run in which each rank has digested one step, made of these parts, after another."""
    files = RunFiles(root)
    files.digests.mkdir(parents=True)
    for rank, parts in enumerate(digests):
        lines = [RankDigest(at, {**parts, "step": str(at)} if at != step else parts).line() for at in (step - 1, step)]
        digest_file(files, 1, rank).write_text("".join(lines))
    roots = tuple(root_of(parts) for parts in digests)
    return files, StateDigested(generation=1, step=step, ranks=roots, samples="s")


def test_parts_are_read_back_in_their_order(tmp_path: Path) -> None:
    files, digested = written(tmp_path, PARTS, PARTS)
    assert list(read_parts(files, digested, 1).items()) == list(PARTS.items())


def test_root_depends_on_names_and_digests_and_not_on_their_order() -> None:
    assert root_of(dict(reversed(PARTS.items()))) == root_of(PARTS)
    assert root_of(PARTS | {"samples": "t"}) != root_of(PARTS)
    assert root_of({"a": "1", "b": "2"}) != root_of({"a": "2", "b": "1"})
    assert root_of({"a": "1"}) != root_of({"a": "1", "b": ""})


def test_line_that_is_torn_or_was_changed_is_not_believed(tmp_path: Path) -> None:
    files, digested = written(tmp_path, PARTS)
    path = digest_file(files, 1, 0)
    sound = path.read_text()
    path.write_text(sound.replace('"weights/head": "w"', '"weights/head": "v"'))
    with pytest.raises(Damaged, match="another root"):
        read_parts(files, digested, 0)
    path.write_text(sound[:-9])
    with pytest.raises(Damaged, match="another root"):
        read_parts(files, digested, 0)
    path.write_text(sound[:-9] + "\n" + RankDigest(7, PARTS).line())
    assert read_parts(files, digested, 0) == PARTS


def test_line_that_was_never_written_is_said_to_be_missing(tmp_path: Path) -> None:
    files, digested = written(tmp_path, PARTS)
    with pytest.raises(NotFound, match="rank 0's digest of step 70"):
        read_parts(files, digested.model_copy(update={"step": 70}), 0)
    with pytest.raises(NotFound, match="g2-rank-0"):
        read_parts(files, digested.model_copy(update={"generation": 2}), 0)


def test_causes_are_named_before_their_effects() -> None:
    other = dict.fromkeys(["optimizer/head/exp_avg", "weights/head", "random/torch", "knobs/lr"], "x")
    theirs = PARTS | other
    assert differing(PARTS, theirs) == ("random/torch", "knobs/lr", "weights/head", "optimizer/head/exp_avg")
    assert differing(PARTS, dict(reversed(PARTS.items()))) == ()


def test_what_differs_is_named_for_each_rank_or_why_it_is_not_known(tmp_path: Path) -> None:
    ours, our_digest = written(tmp_path / "a", PARTS, PARTS)
    theirs, their_digest = written(tmp_path / "b", PARTS | {"weights/head": "x"}, PARTS | {"samples": "t"})
    digest_file(theirs, 1, 0).unlink()
    first = compare([our_digest], [their_digest]).first
    assert first is not None
    silent, found = named(first, ours, theirs)
    assert (silent.rank, silent.names) == (0, ())
    assert "g1-rank-0.jsonl has no line for it" in str(silent.reason)
    assert (found.rank, found.names, found.reason) == (1, ("samples",), None)
