"""The digest of a rank's live state: whatever changes is seen and named, and what is restored is the same again.

`overlooked` changes everything there is, one after the other, and answers what a digest did not notice. Mutants of the
digest, which leave something out, show that it would.
"""

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from control_plane.storage.digest_files import RankDigest, differing
from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.data.skipping import SkippedBatches
from ray_jobs.digest import state as digests
from ray_jobs.loop.live import PlainLoop, live
from ray_jobs.steering.partitions import Partition, Partitions

Change = Callable[[], Any]


class Net(torch.nn.Module):
    """A little of everything: tied weights, a buffer that is trained, one that is not saved, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("mask", torch.ones(0, 4), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(ids)))


def trained() -> tuple[Any, Any]:
    """A training and a session after a step, as far as a digest looks at them."""
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    model = Net()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    loop = PlainLoop(100, step=3, sample_order=SampleOrder(40, 7, 4))
    training = live(loop, model, optimizer, scheduler=scheduler)
    training.extensions.state["reward"] = 1.0
    knobs = {"dropout": 0.1, "betas": [0.9, 0.99], "logging_steps": 5}
    session = SimpleNamespace(read_knobs=lambda: knobs, knobs=knobs)
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return training, session


def flip(tensor: torch.Tensor) -> Change:
    def turn() -> None:
        held = tensor.detach().view(-1).view(torch.uint8)
        held[0] ^= 1

    return turn


def changes(training: Any, session: Any) -> dict[str, Change]:
    """By the name that must be told: how to change it. Tensors by one bit."""
    optimizer, names = training.optimizer, {id(each): name for name, each in training.model.named_parameters()}
    tensors = {f"weights/{name}": each for name, each in training.model.named_parameters()}
    tensors |= {f"weights/{name}": each for name, each in training.model.named_buffers() if each.numel()}
    for owner, state in optimizer.state.items():
        tensors |= {f"optimizer/{names[id(owner)]}/{key}": each for key, each in state.items()}
    return {name: flip(tensor) for name, tensor in tensors.items()} | {
        "random/python": random.random,
        "random/numpy": lambda: numpy.random.rand(),
        "random/torch": lambda: torch.rand(1),
        "knobs/dropout": lambda: session.knobs.update(dropout=0.2),
        "knobs/betas": lambda: session.knobs.update(betas=[0.9, 0.98]),
        "schedule": training.schedule.step,
        "script": lambda: training.extensions.state.update(reward=1.5),
        "samples": lambda: setattr(training.loop, "step", 4),
    }


def overlooked(take: Callable[[Any, Any], RankDigest] = digests.take) -> set[str]:
    training, session = trained()
    wanted = changes(training, session)
    unseen = set()
    for name, change in wanted.items():
        before = take(training, session)
        change()
        after = take(training, session)
        if before.root == after.root or differing(before.parts, after.parts) != (name,):
            unseen.add(name)
    return unseen


def test_every_change_of_the_live_state_is_seen_and_named() -> None:
    assert overlooked() == set()


@pytest.mark.parametrize(
    ("part", "left_out", "missed"),
    [
        ("optimizer", "", "optimizer/embedding.weight/exp_avg_sq"),
        ("optimizer", "exp_avg_sq", "optimizer/norm.bias/exp_avg_sq"),
        ("optimizer", "step", "optimizer/norm.bias/step"),
        ("weights", "running_mean", "weights/norm.running_mean"),
        ("weights", "frozen", "weights/frozen"),
        ("random", "numpy", "random/numpy"),
        ("course", "script", "script"),
        ("knobs", "betas", "knobs/betas"),
    ],
)
def test_digest_that_leaves_something_out_is_found_out(
    monkeypatch: pytest.MonkeyPatch, part: str, left_out: str, missed: str
) -> None:
    whole = getattr(digests, part)
    monkeypatch.setattr(
        digests, part, lambda *given: ((name, each) for name, each in whole(*given) if left_out not in name)
    )
    found = overlooked()
    assert missed in found
    assert all(left_out in name for name in found)


def test_digest_of_values_instead_of_bits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "tensor_digest", lambda *tensors: str([round(t.sum().item(), 3) for t in tensors]))
    assert len(overlooked()) > 5


def test_tied_weights_are_digested_once_under_their_first_name() -> None:
    parts = digests.take(*trained()).parts
    assert "weights/embedding.weight" in parts
    assert not [name for name in parts if "head" in name]


def test_knobs_that_do_not_change_the_steps_are_left_out() -> None:
    training, session = trained()
    before = digests.take(training, session)
    session.knobs["logging_steps"] = 50
    assert digests.take(training, session).root == before.root


def test_training_that_is_made_again_and_one_that_is_restored_have_the_same_digest() -> None:
    training, session = trained()
    first = digests.take(training, session)
    assert digests.take(training, session) == first
    assert digests.take(*trained()).parts == first.parts
    model, optimizer = copy.deepcopy(training.model.state_dict()), copy.deepcopy(training.optimizer.state_dict())
    training.model.embedding.weight.data += 1
    training.optimizer.state.clear()
    assert digests.take(training, session).root != first.root
    training.model.load_state_dict(model)
    training.optimizer.load_state_dict(optimizer)
    assert digests.take(training, session).parts == first.parts


def test_step_of_adam_as_a_number_is_the_same_state() -> None:
    training, session = trained()
    first = digests.take(training, session)
    for state in training.optimizer.state.values():
        state["step"] = float(state["step"])
    assert digests.take(training, session).parts == first.parts


def test_samples_are_those_of_the_step_or_the_position_alone() -> None:
    sampler = SampleOrder(40, 7, 4)
    order = list(sampler)
    assert sampler.batch(3).tolist() == order[8:12]
    sampler.set_epoch(1)
    assert sampler.batch(11).tolist() == list(sampler)[:4]
    skipped, some = SkippedBatches(), SkippedBatches()
    some.add(step=2, batches=10)
    assert digests.samples(sampler, 3, skipped) == digests.samples(SampleOrder(40, 7, 4), 3, skipped)
    assert digests.samples(sampler, 3, skipped) != digests.samples(sampler, 13, skipped)
    assert digests.samples(sampler, 3, some) == digests.samples(sampler, 13, skipped)
    assert digests.samples(sampler, 2, some) == digests.samples(sampler, 2, skipped)
    assert digests.samples(None, 3, skipped) != digests.samples(None, 4, skipped)
    assert digests.samples(None, 3, some) != digests.samples(None, 3, skipped)
    assert digests.samples(None, 2, some) == digests.samples(None, 2, skipped)


def test_flat_state_is_named_by_parameter_and_what_belongs_to_none_by_group() -> None:
    owner = torch.zeros(10)
    shares = [("a", Partition(owner, 0, 0, 4)), ("b", Partition(owner, 5, 0, 3))]
    before = dict(digests._entry("group0", "exp_avg", owner, owner, shares))
    assert list(before) == ["optimizer/a/exp_avg", "optimizer/b/exp_avg", "optimizer/group0/exp_avg"]
    for place in range(10):
        owner[place] = 1.0
        after = dict(digests._entry("group0", "exp_avg", owner, owner, shares))
        wanted = "a" if place < 4 else "b" if 5 <= place < 8 else "group0"
        assert differing(before, after) == (f"optimizer/{wanted}/exp_avg",)
        owner[place] = 0.0


def test_state_on_nvme_is_refused() -> None:
    optimizer: Any = SimpleNamespace(swap_optimizer=True, param_groups=[])
    with pytest.raises(RuntimeError, match="NVMe"):
        dict(digests.optimizer(Partitions(Net(), optimizer)))
