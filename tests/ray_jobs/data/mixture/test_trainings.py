"""Trainings on real ranks whose sources change: each step of every life takes exactly what a second implementation of
the order says, with and without workers, over failures, a rollback, a replay, and another number of ranks."""

import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control_plane.compare.replay_check import judge
from control_plane.core.model.records import CommandSettled, GenerationStarted, Parent
from control_plane.core.model.state import fold
from control_plane.core.rules.branch_rules import Origin
from control_plane.core.rules.replay_plan import recorded
from control_plane.storage.checkpoint.transfer import transfer_shards, write_origin
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from tests.ray_jobs.data.mixture import reference
from tests.ray_jobs.support.crashes import run_crashes
from tests.ray_jobs.trials.mixture_trials import GLOBAL_BATCH, RUN, SEED, lines

pytestmark = pytest.mark.jobs

STEPS = 14
FIELDS = {"id": "integer"}
WEB, FIRST, SECOND = list(range(30)), list(range(100, 112)), list(range(200, 207))
"""Records of the first source, and of two shards that come while training."""


def sha(numbers: list[int]) -> str:
    return hashlib.sha256(lines(numbers)).hexdigest()


def shard(source: str, numbers: list[int]) -> dict[str, Any]:
    return {"source": source, "sha256": sha(numbers), "records": len(numbers), "bytes": len(lines(numbers))}


def at(step: int, number: int, **intent: Any) -> dict[str, Any]:
    """Command `number`, for the boundary after `step`."""
    return {"uuid": str(UUID(int=number)), "author": "test", "intent": intent, "not_before_step": step}


LIVE = {"format": "jsonl", "live": True, "fields": FIELDS, "weight": 2.0}
COMMANDS = [
    at(2, 1, kind="add_source", source="fresh", settings=LIVE, shards=[shard("fresh", FIRST)]),
    at(4, 2, kind="set_mixture", weights={"web": 1.0, "fresh": 1.0}),
    at(6, 3, kind="add_shards", source="fresh", shards=[shard("fresh", SECOND)]),
    at(6, 4, kind="withdraw_samples", source="fresh", shard=sha(FIRST), rows=[0, 1, 2]),
    at(8, 5, kind="split_source", source="fresh", into="late", shards=[sha(SECOND)]),
    at(8, 6, kind="skip_samples", samples=6),
    at(11, 7, kind="remove_source", source="late"),
]


def spec_of(root: Path, ranks: int, **more: Any) -> dict[str, Any]:
    """A training, with its files in place."""
    files = RunFiles(root / "runs" / RUN)
    for numbers in (FIRST, SECOND):
        path = files.data / "fresh" / f"{sha(numbers)}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines(numbers))
    (root / "web.jsonl").write_bytes(lines(WEB))
    sources = {"web": {"format": "jsonl", "path": str(root / "web.jsonl"), "fields": FIELDS}}
    base = {
        "function": "tests.ray_jobs.trials.mixture_trials:train",
        "root": str(root),
        "sources": sources,
        "steps": STEPS,
        "every_steps": 3,
        "accumulation": GLOBAL_BATCH // ranks,
        "commands": COMMANDS,
        "digest_every": 1,
    }
    return base | more


def lived(root: Path, ranks: int, **more: Any) -> dict[str, Any]:
    """What the last life saw."""
    spec = spec_of(root, ranks, **more)
    (answer,) = run_crashes([spec], ranks, root / "out")
    assert answer["generations"] == len(more.get("kills", [])) + 1
    return dict(answer["ranks"][0])


def due(commands: list[dict[str, Any]] | None = None, steps: int = STEPS) -> dict[int, list[int]]:
    """Numbers of the records of each step, by the second implementation. Batches that are skipped are drawn, too."""
    skipped, changes, positions = 0, list[tuple[int, dict[str, Any]]](), dict[int, int]()
    commands = sorted(commands if commands is not None else COMMANDS, key=lambda each: each["not_before_step"])
    for step in range(1, steps + 1):
        for command in (each for each in commands if each["not_before_step"] == step - 1):
            if command["intent"]["kind"] == "skip_samples":
                skipped += -(-command["intent"]["samples"] // GLOBAL_BATCH)
            else:
                changes.append(((step - 1 + skipped) * GLOBAL_BATCH, command["intent"]))
        positions[step] = (step - 1 + skipped) * GLOBAL_BATCH
    first = {"web": {"weight": 1.0, "repeats": True, "shards": [(sha(WEB), len(WEB))]}}
    names = list(reference.drawn(first, SEED, changes, (steps + skipped) * GLOBAL_BATCH))
    numbers = {sha(each): each for each in (WEB, FIRST, SECOND)}
    drawn = [numbers[name.split("/")[1]][int(name.split("/")[2])] for name in names]
    return {step: drawn[place : place + GLOBAL_BATCH] for step, place in positions.items()}


def taken(root: Path) -> list[dict[int, list[int]]]:
    """What each life's steps were given, over all ranks, in the order of micro-batches, then ranks."""
    lives: list[dict[int, dict[int, list[list[int]]]]] = []
    for rank, path in enumerate(sorted((root / "runs" / RUN).glob("samples-*.jsonl"))):
        seen = list[int]()
        for pid, step, numbers in map(json.loads, path.read_text().splitlines()):
            if pid not in seen:
                seen.append(pid)
            if len(lives) < len(seen):
                lives.append({})
            lives[len(seen) - 1].setdefault(step, {}).setdefault(rank, []).append(numbers)
    return [
        {
            step: [number for micro in zip(*ranks.values(), strict=True) for given in micro for number in given]
            for step, ranks in life.items()
            if len({len(given) for given in ranks.values()}) == 1
        }
        for life in lives
    ]


def check(root: Path, expected: dict[int, list[int]]) -> None:
    """Every step of every life took what was due, and each step was made."""
    lives = taken(root)
    for life in lives:
        whole = {step: numbers for step, numbers in life.items() if len(numbers) == GLOBAL_BATCH}
        assert whole.items() <= expected.items()
    assert {step for life in lives for step in life} == expected.keys()


def records(root: Path) -> list[Any]:
    return [entry.record for entry in writer.read(RunFiles(root / "runs" / RUN).journal)]


def test_each_step_takes_what_is_due_and_the_answer_names_the_first_one(tmp_path: Path) -> None:
    """Two ranks, plain data-parallel; without workers."""
    lived(tmp_path, 2)
    check(tmp_path, due())
    settled = [each for each in records(tmp_path) if isinstance(each, CommandSettled)]
    assert [(each.status, each.reason) for each in settled] == [("applied", None)] * len(COMMANDS)
    changes = [each for each in settled if (each.after or {}).get("mixture")]
    assert [(each.step, (each.after or {})["first_step"]) for each in changes] == [
        (step, step + 1) for step in (2, 4, 6, 6, 8, 11)
    ]
    assert all(len(each.ranks) == 2 and each.ranks[0] == each.ranks[1] for each in changes)
    state = fold(list(writer.read(RunFiles(tmp_path / "runs" / RUN).journal)))
    assert {name: source["records"] for name, source in state.data.mixture.items()} == {"web": 30, "fresh": 9}
    (begun,) = (each for each in records(tmp_path) if isinstance(each, GenerationStarted))
    assert begun.facts["mixture"]["web"]["records"] == 30


def test_loop_of_its_own_takes_what_is_due_also_after_a_failure(tmp_path: Path) -> None:
    lived(tmp_path, 1, loop=True, kills=[[0, 8]])
    check(tmp_path, due())


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "about"), [(2, {}), (2, {"stage": 2, "workers": 2}), (1, {"loop": True})])
def test_the_loss_of_each_source_is_that_of_its_samples_on_all_ranks(
    tmp_path: Path, ranks: int, about: dict[str, Any]
) -> None:
    spec = {"steps": 63, "losses": True, "every_steps": 0, "commands": COMMANDS[:2] + COMMANDS[5:6]}
    lived(tmp_path, ranks, **spec, **about)
    noted: dict[tuple[int, str], list[float]] = {}
    drawn: dict[str, list[int]] = {"web": [], "fresh": []}
    for rank in range(ranks):
        for line in (tmp_path / "runs" / RUN / f"losses-{rank}.jsonl").read_text().splitlines():
            step, number, loss = json.loads(line)
            source = "web" if number < FIRST[0] else "fresh"
            noted.setdefault((step, source), []).append(loss)
            drawn[source].append(step)
    points = MetricsStore(RunFiles(tmp_path / "runs" / RUN).metrics).read(0, 10_000).points
    told = {(each.step, each.name): each.value for each in points if each.name.startswith("source_")}
    measured = range(10, 61, 10)
    assert {step for step, _ in told} == set(measured)
    for step in measured:
        for source in ("web", "fresh"):
            if not (losses := noted.get((step, source))):
                assert (step, f"source_loss/{source}") not in told
                continue
            assert told[step, f"source_loss/{source}"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        # A batch of 4 was skipped after step 8: of the order, not of what was trained on.
        trained = sum(at <= step for steps in drawn.values() for at in steps)
        assert sum(told[step, f"source_samples/{source}"] for source in drawn) == trained + 8
        assert trained == 4 * step


@pytest.mark.parametrize(
    ("intent", "reason"),
    [
        ({"kind": "add_shards", "source": "web", "shards": [shard("web", FIRST)]}, "source web is not live"),
        (
            {"kind": "add_source", "source": "new", "settings": LIVE, "shards": [shard("new", FIRST)]},
            "cannot be read: No such file or directory",
        ),
        ({"kind": "set_mixture", "weights": {"other": 1.0}}, "there is no source other"),
        ({"kind": "set_mixture", "weights": {"web": 0.0}}, "no source would be left"),
    ],
)
@pytest.mark.slow
def test_what_ranks_cannot_do_is_rejected_and_changes_nothing(tmp_path: Path, intent: Any, reason: str) -> None:
    lived(tmp_path, 2, commands=[at(2, 1, **intent)], steps=5)
    check(tmp_path, due([], 5))
    (settled,) = (each for each in records(tmp_path) if isinstance(each, CommandSettled))
    assert (settled.status, reason in (settled.reason or "")) == ("rejected", True), settled.reason


@pytest.mark.slow
def test_damaged_shard_is_rejected(tmp_path: Path) -> None:
    wrong = shard("fresh", FIRST) | {"records": 11}
    longer = shard("fresh", SECOND) | {"bytes": 1}
    commands = [
        at(2, 1, kind="add_source", source="fresh", settings=LIVE, shards=[wrong]),
        at(2, 2, kind="add_source", source="fresh", settings=LIVE, shards=[longer]),
    ]
    lived(tmp_path, 2, commands=commands, steps=4)
    reasons = [each.reason or "" for each in records(tmp_path) if isinstance(each, CommandSettled)]
    assert "has 12 records, not 11" in reasons[0]
    assert "bytes, not 1" in reasons[1]


# --- Slow: every way in which a run goes on ---


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("ranks", "stage"), [(2, 2), (4, 2), (2, None)])
def test_killed_and_resumed_twice_it_ends_as_one_that_was_not(
    tmp_path: Path, ranks: int, stage: int | None, workers: int
) -> None:
    kills = [[1, 5, "backward"], [0, 9, "boundary"], [1, 13, "forward"]]
    whole = lived(tmp_path / "whole", ranks, stage=stage, workers=workers)
    parts = lived(tmp_path / "parts", ranks, stage=stage, workers=workers, kills=kills)
    check(tmp_path / "whole", due())
    check(tmp_path / "parts", due())
    assert parts == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sizes", [[4, 2], [2, 4], [2, 1]])
def test_on_another_number_of_ranks_each_step_takes_the_same_samples(tmp_path: Path, sizes: list[int]) -> None:
    lived(tmp_path, sizes[0], stage=2, kills=[[0, 8, "forward"]], world_sizes=sizes)
    check(tmp_path, due())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kept_workers_hold_nothing_back(tmp_path: Path) -> None:
    lived(tmp_path, 2, stage=2, workers=2, kept=True)
    check(tmp_path, due())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_branch_draws_by_its_own_history_and_a_replay_is_identical(tmp_path: Path) -> None:
    weights = {"kind": "set_mixture", "weights": {"web": 1.0, "fresh": 3.0}}
    add = {"kind": "add_shards", "source": "fresh", "shards": [shard("fresh", SECOND)]}
    asked: list[list[Any]] = [
        [2, COMMANDS[0]["intent"]],
        [7, add],
        [9, {"kind": "rollback", "checkpoint": "step-00000006-g1", "first": [weights]}],
        [9, add],
    ]
    root, other = tmp_path / "source", tmp_path / "again"
    ended = lived(root, 2, stage=2, commands=[], asked=asked)
    source, files = RunFiles(root / "runs" / RUN), RunFiles(other / "runs" / RUN)
    state = fold(list(writer.read(source.journal)))
    steps = {kind: [each.settled.step for each in state.commands.values() if each.settled
                    and each.status == "applied" and each.command.intent.kind == kind]
             for kind in ("add_source", "add_shards", "rollback", "set_mixture")}  # fmt: skip
    assert [len(steps[kind]) for kind in steps] == [1, 2, 1, 1]
    main = [at(steps["add_source"][0], 1, **COMMANDS[0]["intent"]), at(steps["add_shards"][0], 2, **add)]
    branch = [main[0], at(6, 3, **weights), at(steps["add_shards"][1], 4, **add)]
    given = taken_in_order(root)
    back = next(index for index, (step, _) in enumerate(given) if index and step < given[index - 1][0])
    assert dict(given[:back]).items() <= due(main).items()
    assert dict(given[back:]).items() <= due(branch).items()
    assert [step for step, _ in given[back:]] == list(range(7, STEPS + 1))
    spec = spec_of(other, 2, stage=2, commands=[], every_steps=0)
    for path in files.data.glob("*/*"):
        path.unlink()
    transfer_shards(source, files)
    scheduled = recorded(list(writer.read(source.journal)), None)
    write_origin(files, Origin(parent=Parent(kind="replay", run=RUN), scheduled=scheduled))
    (answer,) = run_crashes([spec | {"sources": spec_of(root, 2)["sources"]}], 2, other / "out")
    assert answer["ranks"][0] == ended
    verdict = judge(files, source)
    assert verdict.verdict == "identical", verdict.sentence()


def taken_in_order(root: Path) -> list[tuple[int, list[int]]]:
    """What each step was given, of one life, in the order in which the steps were made."""
    given: list[tuple[int, list[list[list[int]]]]] = []
    for rank, path in enumerate(sorted((root / "runs" / RUN).glob("samples-*.jsonl"))):
        at_step, place = 0, -1
        for _, step, numbers in map(json.loads, path.read_text().splitlines()):
            if step != at_step:
                at_step, place = step, place + 1
            if rank == 0 and place == len(given):
                given.append((step, []))
            micro = given[place][1]
            while len(micro) <= rank:
                micro.append([])
            micro[rank].append(numbers)
    return [
        (step, [number for micro in zip(*ranks, strict=True) for numbers in micro for number in numbers])
        for step, ranks in given
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_ends_with_the_last_record_of_sources_that_do_not_repeat(tmp_path: Path, workers: int) -> None:
    """30 records and 12 that come: 10 global batches of 4, and two records that fill none."""
    spec = spec_of(tmp_path, 2)
    sources = {"web": spec["sources"]["web"] | {"exhausted": "stop"}}
    settings = LIVE | {"exhausted": "stop"}
    add = at(3, 1, kind="add_source", source="fresh", settings=settings, shards=[shard("fresh", FIRST)])
    ended = lived(tmp_path, 2, sources=sources, commands=[add], workers=workers)
    (life,) = taken(tmp_path)
    numbers = [number for given in life.values() for number in given]
    assert (ended["steps"], len(numbers), len(set(numbers))) == (10, 40, 40)
    assert set(numbers) < {*WEB, *FIRST}
