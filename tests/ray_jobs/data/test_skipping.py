"""Samples that a command leaves out: each step takes exactly the samples that are due, in every life of a run, with and
without workers, over the ends of epochs and passes, and on another number of ranks."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control_plane.core.model.records import CommandSettled
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.data.skipping import SkippedBatches, StreamPlace
from tests.ray_jobs.support.crashes import run_crashes
from tests.ray_jobs.trials.skip_trials import GLOBAL_BATCH, MICRO_BATCH, PER_EPOCH, SAMPLES, STREAM_SAMPLES

SEED, STEPS = 42, 14
"""Transformers' default seed, from which the order follows."""


def test_position_of_a_step_is_a_function_of_what_was_left_out_before_it() -> None:
    skipped = SkippedBatches()
    assert [skipped.data_step(step) for step in (1, 10, 11)] == [1, 10, 11]
    skipped.add(step=10, batches=3)
    skipped.add(step=10, batches=1)
    skipped.add(step=12, batches=2)
    assert [skipped.data_step(step) for step in (10, 11, 12, 13)] == [10, 15, 16, 19]
    again = SkippedBatches()
    again.recall(json.loads(json.dumps(skipped.memory())))
    assert (again.memory(), again.total) == (skipped.memory(), 6)
    assert (again.take_back(), again.data_step(13)) == (2, 17)
    assert SkippedBatches().memory() == []


def test_place_in_a_stream_keeps_what_is_to_be_dropped_beside_its_steps() -> None:
    place = StreamPlace(passes=1, steps=2)
    assert place.memory() == [1, 2]
    place.due += 3
    place.drop()
    assert (place.memory(), place.skipped, place.due) == ([1, 2, 3], 1, 2)
    again = StreamPlace.recalled(place.memory())
    assert (again.passes, again.steps, again.skipped, again.due) == (1, 2, 0, 3)
    place.begin_pass(2)
    assert (place.memory(), StreamPlace.recalled([4, 7])) == ([2, 0, 2], StreamPlace(4, 7))


# --- Trainings: what each step took is held against what was due ---


def skip(number: int, at: int, samples: int) -> dict[str, Any]:
    """The command that leaves out samples at the boundary after step `at`."""
    intent = {"kind": "skip_samples", "samples": samples}
    return {"uuid": str(UUID(int=number)), "author": "test", "intent": intent, "not_before_step": at}


def batches_of(commands: Iterable[dict[str, Any]]) -> SkippedBatches:
    skipped = SkippedBatches()
    for each in commands:
        skipped.add(each["not_before_step"], -(-each["intent"]["samples"] // GLOBAL_BATCH))
    return skipped


IN_EPOCH, AT_ITS_END, OVER_EPOCHS = skip(1, 4, 10), skip(2, 10, 4), skip(3, 12, 50)
SIZED = {
    "function": "tests.ray_jobs.trials.script_trials:train",
    "script": "skips",
    "steps": STEPS,
    "commands": [IN_EPOCH, AT_ITS_END, OVER_EPOCHS],
    "every_steps": 3,
}
"""3 batches in an epoch of 10, one where the second epoch begins, and 13, which is more than an epoch."""

STREAM = SIZED | {"data": "stream", "steps": 9, "every_steps": 2, "commands": [skip(1, 3, 6), skip(2, 5, 30)]}
"""Passes of 5 batches. The first skip takes the rest of one; the second the rest of one, and the whole next one."""

LOOP = SIZED | {"script": "skips in a loop", "loop": "samples", "order_seed": SEED}
BACK = {
    "kind": "rollback",
    "checkpoint": "step-00000003-g1",
    "first": [{"kind": "skip_samples", "samples": 8}],
}
"""Back to step 3, and past two batches."""

REFUSED = SIZED | {"steps": 5, "commands": [skip(1, 2, 4)]}

TRIALS: dict[str, dict[str, Any]] = {
    "sized": SIZED,
    "sized, lost": SIZED | {"kills": [[1, 5], [1, 8], [1, 13]]},
    "sized, workers": SIZED | {"workers": 2},
    "stream": STREAM,
    "stream, lost": STREAM | {"kills": [[1, 4], [1, 6], [1, 8]]},
    "elastic": SIZED | {"accumulation": 1, "kills": [[1, 8]], "world_sizes": [2, 1]},
    "loop": LOOP,
    "loop, lost": LOOP | {"kills": [[1, 5], [1, 8], [1, 13]]},
    "loop by its position": LOOP | {"loop": "position"},
    "rolled back": SIZED | {"steps": 12, "commands": [], "asked": [[6, BACK]]},
    "loop of its own": LOOP | {"loop": "own", "steps": 5, "commands": [skip(1, 2, 4)]},
    "own sampler": REFUSED | {"sampler": "own"},
    "begins anew": REFUSED | {"begins_anew": True},
    "early epochs": REFUSED | {"early": True, "steps": 24, "commands": [skip(1, 4, 4)]},
}


def due(spec: dict[str, Any]) -> dict[int, list[int]]:
    """Samples of each step: of a sized training as the order has them, of a stream as it is read."""
    skipped = batches_of(spec["commands"])
    steps = range(1, spec["steps"] + 1)
    if spec.get("data") == "stream":
        per_pass = STREAM_SAMPLES // GLOBAL_BATCH
        firsts = {step: (skipped.data_step(step) - 1) % per_pass * GLOBAL_BATCH for step in steps}
        return {step: list(range(first, first + GLOBAL_BATCH)) for step, first in firsts.items()}
    order = SampleOrder(SAMPLES, SEED, GLOBAL_BATCH)
    return {step: order.batch(skipped.data_step(step)).tolist() for step in steps}


def taken(root: Path) -> list[dict[int, list[int]]]:
    """Samples that each life's steps were given, over all ranks, in the order of micro-batches, then ranks."""
    lives: dict[tuple[int, int], dict[int, list[list[int]]]] = {}
    for rank, path in enumerate(sorted((root / "runs" / "script").glob("samples-*.jsonl"))):
        for pid, step, numbers in map(json.loads, path.read_text().splitlines()):
            lives.setdefault((rank, pid), {}).setdefault(step, []).append(numbers)
    ranks: dict[int, list[dict[int, list[list[int]]]]] = {}
    for (rank, _), life in lives.items():
        ranks.setdefault(rank, []).append(life)
    # Lives of rank 1 are the first ones: later there may be fewer ranks.
    return [
        {
            step: [number for micro in range(len(of)) for rank in beside for number in rank[step][micro]]
            for step, of in life.items()
            if all(step in rank for rank in beside)
        }
        for at, life in enumerate(ranks[0])
        for beside in [[each[at] for each in ranks.values() if at < len(each)]]
    ]


def settled(root: Path) -> list[CommandSettled]:
    entries = read(RunFiles(root / "runs" / "script").journal)
    return [entry.record for entry in entries if isinstance(entry.record, CommandSettled)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Of each trial its folder, and what the last life saw."""
    return lived(TRIALS, tmp_path_factory.mktemp("skips"))


def lived(trials: dict[str, dict[str, Any]], folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    roots = [folder / f"run-{number}" for number in range(len(trials))]
    specs = [{**spec, "root": str(root)} for spec, root in zip(trials.values(), roots, strict=True)]
    answers = run_crashes(specs, 1, folder)
    for spec, answer in zip(specs, answers, strict=True):
        assert answer["generations"] == len(spec.get("kills", [])) + 1
    return {name: (root, answer["ranks"][0]) for name, root, answer in zip(trials, roots, answers, strict=True)}


@pytest.mark.jobs
@pytest.mark.parametrize(
    "name",
    [
        "sized",
        "sized, lost",
        "sized, workers",
        "stream",
        "stream, lost",
        "elastic",
        "loop",
        "loop, lost",
        "loop by its position",
    ],
)
def test_each_step_of_every_life_takes_the_samples_that_are_due(
    seen: dict[str, tuple[Path, dict[str, Any]]], name: str
) -> None:
    root, ended = seen[name]
    expected, lives = due(TRIALS[name]), taken(root)
    assert len(lives) == len(TRIALS[name].get("kills", [])) + 1
    for life in lives:
        assert life.items() <= expected.items()
    assert {step for life in lives for step in life} == expected.keys()
    assert ended["steps"] == TRIALS[name]["steps"]


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sized", "sized, lost"),
        ("sized", "sized, workers"),
        ("stream", "stream, lost"),
        ("loop", "loop, lost"),
        ("loop", "loop by its position"),
    ],
)
def test_what_was_left_out_is_left_out_bit_for_bit_after_a_failure_and_by_workers(
    seen: dict[str, tuple[Path, dict[str, Any]]], name: str, other: str
) -> None:
    (_, undisturbed), (_, disturbed) = seen[name], seen[other]
    for what in ("weights", "random", "epoch"):
        assert disturbed[what] == undisturbed[what]


@pytest.mark.jobs
@pytest.mark.parametrize("name", ["sized", "sized, lost", "elastic"])
def test_readback_says_what_was_rounded_up_and_which_batch_is_next(
    seen: dict[str, tuple[Path, dict[str, Any]]], name: str
) -> None:
    first, second, third = (each for each in settled(seen[name][0]) if each.status == "applied")
    told = [(each.step, *((each.after or {})[key] for key in ("batches", "skipped", "next_batch"))) for each in
            (first, second, third)]  # fmt: skip
    assert told == [(4, 3, 12, 8), (10, 1, 4, 15), (12, 13, 52, 30)]
    assert (first.before or {})["next_batch"] == 5
    assert len({(each.after or {})["next_samples"] for each in (first, second, third)}) == 3


@pytest.mark.jobs
def test_epoch_is_the_datas(seen: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """31 batches of 10 an epoch, of which 14 were trained on."""
    assert seen["sized"][1]["epoch"] == pytest.approx((STEPS + 17) / PER_EPOCH)


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own sampler", "does not decide the order of the samples, which Shuffled of the script chooses"),
        ("begins anew", "does not decide the data of the epoch, which begins anew (ignore_data_skip)"),
        ("loop of its own", "this script's loop chooses its own"),
        ("early epochs", "the script ends its epochs early"),
    ],
)
def test_data_that_is_not_ours_to_decide_is_refused_with_the_reason(
    seen: dict[str, tuple[Path, dict[str, Any]]], name: str, reason: str
) -> None:
    ((status, told),) = seen[name][1]["commands"]
    assert (status, reason in told) == ("rejected", True), told
    assert seen[name][1]["steps"] == (9 if name == "early epochs" else REFUSED["steps"])


@pytest.mark.jobs
def test_branch_begins_with_what_its_rollback_leaves_out(seen: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Poisoned samples: back to before them, and past them."""
    lines = (seen["rolled back"][0] / "runs" / "script" / "samples-0.jsonl").read_text().splitlines()
    given = [(step, numbers) for _, step, numbers in map(json.loads, lines)]
    order = SampleOrder(SAMPLES, SEED, GLOBAL_BATCH)
    last = next(step for (step, _), (following, _) in pairwise(given) if following < step)
    positions = [*((step, step) for step in range(1, last + 1)), *((step, step + 2) for step in range(4, 13))]
    halves = [slice(0, MICRO_BATCH), slice(MICRO_BATCH, GLOBAL_BATCH)]
    assert given == [(step, order.batch(at).tolist()[half]) for step, at in positions for half in halves]


# --- Slow: killed at every step, and every kind of loader ---

KINDS: dict[str, dict[str, Any]] = {
    "sized": SIZED,
    "workers": SIZED | {"workers": 2},
    "kept workers": SIZED | {"workers": 2, "kept": True},
    "by length": SIZED | {"strategy": "group_by_length"},
    "sized stream": SIZED | {"data": "sized stream", "steps": 9, "commands": STREAM["commands"]},
    "stream": STREAM,
}


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("every_steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_run_that_is_killed_at_every_step_ends_as_one_that_was_not(tmp_path: Path, kind: str, every_steps: int) -> None:
    spec = KINDS[kind]
    kills = [[1, step] for step in range(2, spec["steps"] + 1, every_steps)]
    lost = spec | {"kills": kills, "every_steps": every_steps}
    seen = lived({"undisturbed": spec, "lost": lost}, tmp_path)
    (whole, undisturbed), (parts, disturbed) = seen["undisturbed"], seen["lost"]
    assert [disturbed[what] for what in ("weights", "random", "epoch")] == [
        undisturbed[what] for what in ("weights", "random", "epoch")
    ]
    (expected,) = taken(whole)
    lives = taken(parts)
    assert {step for life in lives for step in life} == expected.keys()
    assert all(life.items() <= expected.items() for life in lives)
