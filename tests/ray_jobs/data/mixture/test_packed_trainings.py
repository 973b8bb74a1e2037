"""Trainings on real ranks whose samples are packed blocks, by weights that the config schedules: each step takes the
blocks that a second implementation packs, over failures, worker processes, numbers of ranks, and a rollback."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ray_jobs.data.mixture import reference
from tests.ray_jobs.data.mixture.test_trainings import (
    COMMANDS,
    FIRST,
    SECOND,
    STEPS,
    WEB,
    at,
    check,
    lived,
    sha,
    shard,
    taken_in_order,
)
from tests.ray_jobs.trials.mixture_trials import GLOBAL_BATCH, SEED, block_name, document
from tests.ray_jobs.trials.trials import BLOCK_TOKENS

pytestmark = [pytest.mark.jobs, pytest.mark.slow, pytest.mark.timeout(1200)]

CHANGES = [each for each in COMMANDS if each["intent"]["kind"] != "skip_samples"]
SCHEDULE = [[3, {"web": 0.5}], [9, {"web": 3.0}], [12, {"web": 1.0}]]
NUMBERS = {sha(each): each for each in (WEB, FIRST, SECOND)}


def tokens_of(sha256: str, row: int) -> list[int]:
    return document({"id": NUMBERS[sha256][row]})


def block(name: str) -> int:
    """The name of a block's tokens, from the name of its pieces."""
    tokens = list[int]()
    for piece in name.split("/", 1)[1].split(","):
        document_name, span = piece.split(":")
        sha256, row = document_name.split("/")
        first, end = map(int, span.split("-"))
        tokens += tokens_of(sha256, int(row))[first:end]
    assert len(tokens) == BLOCK_TOKENS
    return block_name(tokens)


def due(commands: list[dict[str, Any]], schedule: Any = SCHEDULE) -> dict[int, list[int]]:
    """Names of the blocks of each step, by the second implementation."""
    first = {"web": {"weight": 1.0, "repeats": True, "shards": [(sha(WEB), len(WEB))]}}
    changes = [(each["not_before_step"] * GLOBAL_BATCH, each["intent"]) for each in commands]
    planned = [(step * GLOBAL_BATCH, weights) for step, weights in schedule]
    make = partial(reference.PackedPile, size=BLOCK_TOKENS, length=lambda record: len(tokens_of(*record)))
    names: Iterator[str] = reference.drawn(first, SEED, changes, STEPS * GLOBAL_BATCH, planned, make)
    blocks = [block(name) for name in names]
    return {step: blocks[(step - 1) * GLOBAL_BATCH : step * GLOBAL_BATCH] for step in range(1, STEPS + 1)}


def packed(root: Path, ranks: int, **more: Any) -> dict[str, Any]:
    return lived(root, ranks, **({"stage": 2, "pack": True, "schedule": SCHEDULE, "commands": CHANGES} | more))


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (2, 2), (4, 0), (4, 2), (1, 2)])
def test_killed_and_resumed_twice_each_step_takes_the_blocks_that_are_due(
    tmp_path: Path, ranks: int, workers: int
) -> None:
    kills = [[ranks - 1, 5, "backward"], [0, 9, "boundary"], [ranks - 1, 13, "forward"]]
    parts = packed(tmp_path / "parts", ranks, workers=workers, kills=kills)
    check(tmp_path / "parts", due(CHANGES))
    if (ranks, workers) == (2, 2):
        assert packed(tmp_path / "whole", ranks, workers=workers) == parts


@pytest.mark.parametrize("sizes", [[4, 2], [2, 4], [2, 1]])
def test_on_another_number_of_ranks_each_step_takes_the_same_blocks(tmp_path: Path, sizes: list[int]) -> None:
    packed(tmp_path, sizes[0], kills=[[0, 8, "forward"]], world_sizes=sizes)
    check(tmp_path, due(CHANGES))


def test_branch_packs_by_its_own_history(tmp_path: Path) -> None:
    add, weights = CHANGES[0]["intent"], {"kind": "set_mixture", "weights": {"web": 1.0, "fresh": 3.0}}
    more = {"kind": "add_shards", "source": "fresh", "shards": [shard("fresh", SECOND)]}
    back = {"kind": "rollback", "checkpoint": "step-00000006-g1", "first": [weights]}
    packed(tmp_path, 2, commands=[at(2, 1, **add)], asked=[[9, more], [10, back]])
    given = taken_in_order(tmp_path)
    turn = next(index for index, (step, _) in enumerate(given) if index and step < given[index - 1][0])
    assert [step for step, _ in given[turn:]] == list(range(7, STEPS + 1))
    assert dict(given[:9]).items() <= due([at(2, 1, **add)]).items()
    assert dict(given[turn:]).items() <= due([at(2, 1, **add), at(6, 2, **weights)]).items()
