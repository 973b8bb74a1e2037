"""Held-out records: never drawn, the same ones for ever, and what evaluations tell of them on any number of ranks."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from control_plane.core.model.data import ShardRecord, SourceSettings, held_out_key, is_held_out
from control_plane.core.model.errors import Invalid
from control_plane.core.model.intents import AddShards, SplitSource
from control_plane.core.model.intents.data import WithdrawSamples
from control_plane.core.model.records import CommandSettled
from ray_jobs.data.mixture.course import SourceShard, held_out_keys
from ray_jobs.data.mixture.dataset import MixtureDataset, mixture
from ray_jobs.data.mixture.held_out import MAX_SLICES, OTHER, Alone, held_out_losses, slice_name
from ray_jobs.data.mixture.order import MixtureOrder, Source
from ray_jobs.data.mixture.phase import Reference
from ray_jobs.loop.session import TrainingSession
from tests.ray_jobs.data.mixture.test_trainings import at, lived, records, sha, taken
from tests.ray_jobs.trials.mixture_trials import lines

SHA, LATER = "ab" * 32, "cd" * 32
FIELDS = {"id": "integer", "kind": "text"}


def settings(**more: Any) -> SourceSettings:
    return SourceSettings.model_validate({"format": "jsonl", "live": True, "fields": FIELDS} | more)


def test_key_is_the_same_for_one_record_and_for_a_whole_shard() -> None:
    for name in (SHA, LATER, "0" * 64, "f" * 64):
        assert held_out_keys(name, 50).tolist() == [held_out_key(name, row) for row in range(50)]
    shares = [np.mean(held_out_keys(SHA, 100_000) < share * 2**64) for share in (0.02, 0.1, 0.5)]
    assert shares == pytest.approx([0.02, 0.1, 0.5], abs=0.005)


def test_held_out_records_are_never_drawn_over_new_shards_a_split_and_withdrawals() -> None:
    order = MixtureOrder({"fresh": Source(settings(held_out=0.25), (SourceShard(SHA, 400),))}, seed=3)
    drawn = {(one.sha256, one.row) for one in order.span(0, 1000)}
    shard = ShardRecord(source="fresh", sha256=LATER, records=300, bytes=1)
    order.change(1000, AddShards(source="fresh", shards=(shard,)))
    before = order.held_out(10_000)["fresh"]
    order.change(1000, SplitSource(source="fresh", into="late", shards=(LATER,)))
    gone = next(one.row for one in before if one.sha256 == SHA)
    order.change(1000, WithdrawSamples(source="fresh", shard=SHA, rows=(gone,)))
    after = [one for some in order.held_out(10_000).values() for one in some]
    drawn |= {(one.sha256, one.row) for one in order.span(1000, 3000)}
    assert drawn == {
        (name, row)
        for name, count in ((SHA, 400), (LATER, 300))
        for row in range(count)
        if not is_held_out(name, row, 0.25)
    }
    assert {(one.sha256, one.row) for one in before} == {
        (name, row)
        for name, count in ((SHA, 400), (LATER, 300))
        for row in range(count)
        if is_held_out(name, row, 0.25)
    }
    assert {(one.sha256, one.row) for one in before} - {(one.sha256, one.row) for one in after} == {(SHA, gone)}
    assert {one.source for one in after if one.sha256 == LATER} == {"late"}
    status = order.status(4000)
    assert {name: state["held_out"] for name, state in status.items()} == {
        name: len(some) for name, some in order.held_out(10_000).items()
    }
    again = MixtureOrder.recalled(order.memory(), seed=3)
    assert again.held_out(10_000) == order.held_out(10_000)
    assert again.span(4000, 50) == order.span(4000, 50)
    # Few of many are the same few while nothing comes, and a part of all.
    assert order.held_out(20)["fresh"] == order.held_out(10_000)["fresh"][:20]


def two_sources(folder: Path, **more: Any) -> MixtureDataset:
    sources = {}
    for name, count in (("web", 200), ("poems", 60)):
        path = folder / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"id": number, "kind": f"Kind {number % 3}"}) + "\n" for number in range(count))
        )
        sources[name] = settings(path=str(path), held_out=0.3, **more)
    return MixtureDataset(sources, seed=5, folder=folder)


def loss_of(reference: Reference) -> float:
    return {"web": 1.0, "poems": 4.0}[reference.source] + (reference.row * 37 % 101) / 50


class Together:
    """All ranks of an evaluation, one after the other: the first ones are asked again once everyone has answered."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.rank = world_size, 0
        self.said: list[list[Any]] = []
        self.turn = 0

    def all_gather(self, value: Any) -> list[Any]:
        if self.turn == len(self.said):
            self.said.append([])
        if len(self.said[self.turn]) < self.world_size:
            self.said[self.turn].append(value)
        self.turn += 1
        return self.said[self.turn - 1]


def told_by(data: MixtureDataset, ranks: int, losses_of: Any, batch: int) -> tuple[dict[str, float], list[int]]:
    world, batches, told = Together(ranks), list[int](), dict[str, float]()
    for rank in [*range(ranks), 0]:
        world.rank, world.turn, count = rank, 0, [0]

        def counted(references: Sequence[Reference], count: list[int] = count) -> torch.Tensor:
            count[0] += 1
            return torch.as_tensor(losses_of(references))

        told = held_out_losses(data, counted, world, batch)
        batches.append(count[0])
    return told, batches


def test_losses_and_errors_are_those_of_a_reference_on_any_number_of_ranks(tmp_path: Path) -> None:
    data = two_sources(tmp_path)
    held = {name: [loss_of(one) for one in some] for name, some in data.order.held_out(256).items()}
    expected = {f"eval_loss/{name}": fmean(losses) for name, losses in held.items()}
    expected |= {f"eval_error/{name}": stdev(losses) / len(losses) ** 0.5 for name, losses in held.items()}
    assert len(expected) == 4
    for ranks, batch in ((1, 8), (2, 8), (3, 5), (7, 64)):
        told, batches = told_by(data, ranks, lambda some: [loss_of(one) for one in some], batch)
        assert told == pytest.approx(expected, rel=1e-6)
        assert len(set(batches)) == 1, "a sharded model needs equally many passes on every rank"


def test_mean_of_a_batch_is_enough_but_tells_no_error_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    data = two_sources(tmp_path, slices="kind")
    told, _ = told_by(data, 1, lambda some: fmean(loss_of(one) for one in some), 1)
    assert told.keys() == {"eval_loss/web", "eval_loss/poems"}
    assert told["eval_loss/poems"] == pytest.approx(fmean(map(loss_of, data.order.held_out(256)["poems"])), rel=1e-6)
    first = data.order.held_out(256)["web"][0]
    told, _ = told_by(data, 1, lambda some: [loss_of(one) if one != first else float("nan") for one in some], 8)
    assert told["eval_loss/web"] == pytest.approx(fmean(map(loss_of, data.order.held_out(256)["web"][1:])), rel=1e-6)


def test_slices_are_told_by_the_value_of_their_field(tmp_path: Path) -> None:
    data = two_sources(tmp_path, slices="kind")
    told, _ = told_by(data, 2, lambda some: [loss_of(one) for one in some], 8)
    second = [loss_of(one) for one in data.order.held_out(256)["web"] if one.row % 3 == 1]
    assert told["eval_loss/web/kind-1"] == pytest.approx(fmean(second), rel=1e-6)
    assert sum(name.startswith("eval_loss/web/") for name in told) == 3
    many = two_sources(tmp_path, slices="id")
    told, _ = told_by(many, 1, lambda some: [loss_of(one) for one in some], 8)
    names = [name for name in told if name.startswith("eval_loss/web/")]
    assert (len(names), f"eval_loss/web/{OTHER}" in names) == (MAX_SLICES + 1, True)
    assert [slice_name(value) for value in ("Ünï / code", "", True, 7)] == ["n-code", "none", "true", "7"]


def test_dataset_counts_and_numbers_what_is_trained_on_and_gives_the_rest_for_an_evaluation(tmp_path: Path) -> None:
    data = two_sources(tmp_path)
    held = data.held_out("poems")
    assert len(data) + len(held) + len(data.held_out("web")) == 260
    assert len(data.held_out()) == len(held) + len(data.held_out("web"))
    rest = [data[index]["id"] for index in range(len(data))][-(60 - len(held)) :]
    assert set(rest) | {held[index]["id"] for index in range(len(held))} == set(range(60))
    there = pickle.loads(pickle.dumps(held))
    assert [there[index] for index in range(len(there))] == [held[index] for index in range(len(held))]
    with pytest.raises(Invalid, match="source fresh has no 'held_out'; those that have: web, poems"):
        data.held_out("fresh")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"held_out": 0.6}, "less than or equal to 0.5"),
        ({"slices": "kind"}, "there are none"),
        ({"held_out": 0.1, "slices": "kinds"}, "must name a field"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(**wrong)


def test_a_loop_evaluates_with_the_same_random_numbers_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    two_sources(tmp_path)
    sources = {"web": {"format": "jsonl", "path": str(tmp_path / "web.jsonl"), "fields": FIELDS, "held_out": 0.3}}
    data, model = mixture(sources=sources), torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(1, 1))
    model[0].training = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = TrainingSession(model, optimizer, total_steps=2, data=data, global_batch_samples=4)
    seen = []

    def losses_of(samples: list[Any]) -> torch.Tensor:
        seen.append((model.training, torch.is_grad_enabled()))
        return torch.rand(len(samples)) + torch.tensor([float(sample["id"]) for sample in samples])

    before = torch.get_rng_state()
    with session:
        told = [session.held_out_losses(losses_of), session.held_out_losses(losses_of, 200)]
        for _ in session.steps():
            session.step({"loss": 1.0} | told[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert told[0].keys() == {"eval_loss/web", "eval_error/web"}
    assert set(seen) == {(False, False)}
    assert (model.training, model[0].training) == (True, False)
    with pytest.raises(RuntimeError, match="needs data"):
        TrainingSession(model, optimizer, total_steps=1).held_out_losses(losses_of)
    assert Alone().all_gather(1) == [1]


@pytest.mark.slow
@pytest.mark.jobs
def test_two_ranks_of_zero_2_evaluate_what_they_never_train_on(tmp_path: Path) -> None:
    """A Trainer without an evaluation set of its own; records come in between two evaluations."""
    numbers, later = list(range(40)), list(range(100, 112))
    path = tmp_path / "held.jsonl"
    path.write_bytes(lines(numbers))
    fields = {"id": "integer"}
    sources = {
        "web": {"format": "jsonl", "path": str(path), "fields": fields, "held_out": 0.3},
        "fresh": {"format": "jsonl", "live": True, "fields": fields, "held_out": 0.5},
    }
    shard = {"source": "fresh", "sha256": sha(later), "records": len(later), "bytes": len(lines(later))}
    commands = [
        at(3, 1, kind="evaluate"),
        at(3, 2, kind="evaluate"),
        at(4, 3, kind="add_shards", source="fresh", shards=[shard]),
        at(12, 4, kind="evaluate"),
    ]
    lived(tmp_path, 2, sources=sources, commands=commands, steps=14, stage=2)
    held = {number for number in numbers if is_held_out(sha(numbers), number, 0.3)}
    held |= {number for number in later if is_held_out(sha(later), number - 100, 0.5)}
    trained = {number for life in taken(tmp_path) for step in life.values() for number in step}
    assert trained & set(later)
    assert not trained & held
    read = [
        each.after for each in records(tmp_path) if isinstance(each, CommandSettled) and "mixture" not in each.after
    ]
    assert [sorted(one) for one in read] == [["eval_loss/web"], ["eval_loss/web"], ["eval_loss/fresh", "eval_loss/web"]]
    assert read[0] == read[1]
    assert read[2]["eval_loss/web"] != read[0]["eval_loss/web"]
