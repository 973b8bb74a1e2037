"""Losses by source: summed on ranks by what the order says of each sample, gathered, charted; and of single samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.intents.data import AddSource, SetMixture
from ray_jobs.data.mixture.course import Reference
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.health.rank_health import RankHealth
from ray_jobs.health.source_losses import PLACES, SOURCE_STEPS
from ray_jobs.health.vector import VectorLayout
from ray_jobs.hf.sample_losses import IGNORED, sample_losses
from ray_jobs.loop.live import PlainLoop, live
from ray_jobs.rank.plan import FROM_THE_BEGINNING
from ray_jobs.rank.session import RankSession
from tests.ray_jobs.health.test_rank_health import Alone, Line, Net

BATCH = 8
FIELDS = {"id": "integer"}


class TwoSources:
    """A loop on rank 0, or rank 1 of a world in which everyone hears the same, whose samples' losses are made up."""

    def __init__(self, folder: Path) -> None:
        sources = {}
        for name, count, weight in (("easy", 30, 3.0), ("hard", 20, 1.0)):
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(count)))
            settings = {"format": "jsonl", "path": str(path), "weight": weight, "fields": FIELDS}
            sources[name] = SourceSettings.model_validate(settings)
        self.data = MixtureDataset(sources, seed=5, folder=folder)
        self.data.global_batch_samples = BATCH
        self.loop = PlainLoop(100, global_batch_samples=BATCH)
        self.loop.mixture = self.data
        net = Net()
        training = live(self.loop, net, torch.optim.SGD(net.parameters(), lr=0.1))
        self.line = Line()
        session = RankSession(Alone(2), self.line)  # type: ignore[arg-type]
        settings = HealthSettings.model_validate({})
        self.health = RankHealth(training, session, settings, FROM_THE_BEGINNING)
        self.taken: dict[int, list[Reference]] = {}

    def make(self, steps: int) -> None:
        for _ in range(steps):
            step = self.loop.step + 1
            self.health.begin_step(step)
            self.taken[step] = references = self.data.batch(step)
            for half in (references[: BATCH // 2], references[BATCH // 2 :]):
                self.health.signs.sources.add(half, torch.tensor([loss_of(one) for one in half]))
            self.health.signs.end_of_loop({"loss": 1.0})
            self.loop.step = step
            self.health.end_step(step)
            self.health.signs.begin()

    def charted(self, name: str) -> dict[int, float]:
        return {point.step: point.value for point in self.line.points if point.name == name}


def loss_of(reference: Reference) -> float:
    return {"easy": 1.0, "hard": 3.0, "late": 7.0}[reference.source] + reference.row / 64


def mean_of(references: list[Reference], source: str) -> float:
    losses = [loss_of(one) for one in references if one.source == source]
    return sum(losses) / len(losses)


def test_means_and_counts_of_each_source_are_charted_as_counted_by_hand(tmp_path: Path) -> None:
    run = TwoSources(tmp_path)
    run.make(3 * SOURCE_STEPS + 2)
    run.health.close()
    for source in ("easy", "hard"):
        losses, samples = run.charted(f"source_loss/{source}"), run.charted(f"source_samples/{source}")
        assert list(losses) == list(samples) == [10, 20, 30]
        for step, loss in losses.items():
            assert loss == pytest.approx(mean_of(run.taken[step], source), rel=1e-6)
            so_far = [one for number in range(1, step + 1) for one in run.taken[number]]
            assert samples[step] == sum(one.source == source for one in so_far)


def test_sources_that_come_are_told_apart_from_the_step_on_that_draws_from_them(tmp_path: Path) -> None:
    run = TwoSources(tmp_path)
    run.make(9)
    late = {"format": "jsonl", "live": True, "weight": 4.0, "fields": FIELDS}
    added = AddSource(source="late", settings=SourceSettings.model_validate(late))
    too_long = AddSource(source=64 * "x", settings=SourceSettings.model_validate(late))
    run.make(1)
    # At the boundary at which step 10's gather is on its way, and no record of the new source is there.
    run.data.change(added, number=11, current=10)
    run.data.change(too_long, number=11, current=10)
    run.data.change(SetMixture(weights={"easy": 0.0}), number=11, current=10)
    run.make(12)
    run.health.close()
    assert set(run.charted("source_loss/easy")) == {10}
    assert set(run.charted("source_loss/hard")) == {10, 20}
    assert not run.charted("source_loss/late")
    assert run.charted("source_samples/late") == {20: 0.0}
    assert run.charted("source_loss/hard")[20] == pytest.approx(mean_of(run.taken[20], "hard"), rel=1e-6)


def test_a_sample_without_a_finite_loss_is_left_out_and_other_steps_are_not_measured(tmp_path: Path) -> None:
    run = TwoSources(tmp_path)
    losses = run.health.signs.sources
    losses.begin(9)
    losses.add(run.data.batch(9), torch.ones(BATCH))
    assert losses.take() is None
    losses.begin(10)
    some = run.data.batch(10)
    losses.add(some, torch.tensor([float("nan"), *[2.0] * (BATCH - 1)]))
    losses.add(some[:3], torch.ones(2))  # no number a sample: not used
    taken = losses.take()
    assert taken is not None
    values = list(taken.copy.values())
    assert sum(values[2:]) == BATCH - 1
    assert sum(values[:2]) == 2.0 * (BATCH - 1)


def test_the_vector_keeps_layers_and_sources_apart() -> None:
    layout = VectorLayout(["a"], 3)
    packed = layout.pack({"loss": 2.0}, None, [4.0, 6.0, 2.0, 1.0])
    assert len(packed) == len(layout) == len(layout.pack({}, None))
    gathered = layout.combine(np.array([packed, packed]))
    assert gathered.layers is None
    assert gathered.source_losses(("x", "y", "z")) == {"source_loss/x": 2.0, "source_loss/y": 6.0}
    assert layout.digest != VectorLayout(["a"]).digest
    assert len(VectorLayout(["a"], PLACES)) - len(VectorLayout(["a"])) == 2 * PLACES


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    return [
        float(cross_entropy(one.detach(), label, ignore_index=IGNORED))
        for one, label in zip(logits, labels, strict=True)
    ]


def test_losses_of_samples_are_the_models_own_where_it_predicts_the_next_token() -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()
    ids = torch.randint(0, 31, (3, 8))
    labels = ids.clone()
    labels[1, 5:] = IGNORED
    answer: Any = model(input_ids=ids, labels=labels)
    losses = sample_losses(model, answer, labels)
    assert losses is not None
    assert losses.tolist() == pytest.approx(by_hand(answer.logits[:, :-1], labels[:, 1:]), rel=1e-5)
    counts = (labels[:, 1:] != IGNORED).sum(dim=1)
    assert float((losses * counts).sum() / counts.sum()) == pytest.approx(float(answer.loss.detach()), rel=1e-5)


def test_losses_of_samples_of_other_models() -> None:
    shape = BertConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    masked = BertForMaskedLM(shape).eval()
    ids = torch.randint(0, 31, (2, 8))
    answer: Any = masked(input_ids=ids, labels=ids)
    found = sample_losses(masked, answer, ids)
    assert found is not None
    assert found.tolist() == pytest.approx(by_hand(answer.logits, ids), rel=1e-5)
    long, of_long = torch.randn(2, 130, 5), torch.randint(0, 5, (2, 130))
    found = sample_losses(masked, {"logits": long}, of_long)
    assert found is not None
    assert found.tolist() == pytest.approx(by_hand(long[:, ::3], of_long[:, ::3]), rel=1e-5), "every third token"
    classes, wanted = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    found = sample_losses(nn.Linear(1, 1), {"logits": classes}, wanted)
    assert found is not None
    assert found.tolist() == pytest.approx(by_hand(classes[:, None], wanted[:, None]), rel=1e-5)
    assert sample_losses(masked, {"logits": torch.randn(4, 1)}, torch.randn(4)) is None
    assert sample_losses(masked, (torch.tensor(1.0),), ids) is None
