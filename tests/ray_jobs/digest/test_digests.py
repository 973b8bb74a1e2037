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
from ray_jobs.digest import state as digests
from ray_jobs.steering.actions import OwnVocabulary
from ray_jobs.steering.partitions import Share
from ray_jobs.steering.schedule import SteeredSchedule

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
    """A trainer and a session after a step, as far as a digest looks at them."""
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    model = Net()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    trainer = SimpleNamespace(
        model=model,
        optimizer=optimizer,
        deepspeed=None,
        steered_schedule=SteeredSchedule(scheduler, lambda: optimizer.param_groups),
        own_vocabulary=OwnVocabulary(),
        state=SimpleNamespace(global_step=3),
        _order=SampleOrder(40, 7, 4),
    )
    trainer.own_vocabulary.state["reward"] = 1.0
    knobs = {"dropout": 0.1, "betas": [0.9, 0.99], "logging_steps": 5}
    session = SimpleNamespace(read_knobs=lambda: knobs, knobs=knobs)
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return trainer, session


def flip(tensor: torch.Tensor) -> Change:
    def turn() -> None:
        held = tensor.detach().view(-1).view(torch.uint8)
        held[0] ^= 1

    return turn


def changes(trainer: Any, session: Any) -> dict[str, Change]:
    """By the name that must be told: how to change it. Tensors by one bit."""
    optimizer, names = trainer.optimizer, {id(each): name for name, each in trainer.model.named_parameters()}
    tensors = {f"weights/{name}": each for name, each in trainer.model.named_parameters()}
    tensors |= {f"weights/{name}": each for name, each in trainer.model.named_buffers() if each.numel()}
    for owner, state in optimizer.state.items():
        tensors |= {f"optimizer/{names[id(owner)]}/{key}": each for key, each in state.items()}
    return {name: flip(tensor) for name, tensor in tensors.items()} | {
        "random/python": random.random,
        "random/numpy": lambda: numpy.random.rand(),
        "random/torch": lambda: torch.rand(1),
        "knobs/dropout": lambda: session.knobs.update(dropout=0.2),
        "knobs/betas": lambda: session.knobs.update(betas=[0.9, 0.98]),
        "schedule": trainer.steered_schedule.step,
        "script": lambda: trainer.own_vocabulary.state.update(reward=1.5),
        "samples": lambda: setattr(trainer.state, "global_step", 4),
    }


def overlooked(take: Callable[[Any, Any], RankDigest] = digests.take) -> set[str]:
    trainer, session = trained()
    wanted = changes(trainer, session)
    unseen = set()
    for name, change in wanted.items():
        before = take(trainer, session)
        change()
        after = take(trainer, session)
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
    trainer, session = trained()
    before = digests.take(trainer, session)
    session.knobs["logging_steps"] = 50
    assert digests.take(trainer, session).root == before.root


def test_training_that_is_made_again_and_one_that_is_restored_have_the_same_digest() -> None:
    trainer, session = trained()
    first = digests.take(trainer, session)
    assert digests.take(trainer, session) == first
    assert digests.take(*trained()).parts == first.parts
    model, optimizer = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
    trainer.model.embedding.weight.data += 1
    trainer.optimizer.state.clear()
    assert digests.take(trainer, session).root != first.root
    trainer.model.load_state_dict(model)
    trainer.optimizer.load_state_dict(optimizer)
    assert digests.take(trainer, session).parts == first.parts


def test_step_of_adam_as_a_number_is_the_same_state() -> None:
    trainer, session = trained()
    first = digests.take(trainer, session)
    for state in trainer.optimizer.state.values():
        state["step"] = float(state["step"])
    assert digests.take(trainer, session).parts == first.parts


def test_samples_are_those_of_the_step_or_the_position_alone() -> None:
    trainer, _ = trained()
    order = list(trainer._order)
    assert trainer._order.batch(3).tolist() == order[8:12]
    trainer._order.set_epoch(1)
    assert trainer._order.batch(11).tolist() == list(trainer._order)[:4]
    assert digests.samples(trainer, 3) == digests.samples(trained()[0], 3) != digests.samples(trainer, 13)
    trainer._order = None
    assert digests.samples(trainer, 3) == digests.samples(SimpleNamespace(), 3) != digests.samples(trainer, 4)


def test_flat_state_is_named_by_parameter_and_what_belongs_to_none_by_group() -> None:
    owner = torch.zeros(10)
    shares = [("a", Share(owner, 0, 0, 4)), ("b", Share(owner, 5, 0, 3))]
    before = dict(digests._entry("group0", "exp_avg", owner, owner, shares))
    assert list(before) == ["optimizer/a/exp_avg", "optimizer/b/exp_avg", "optimizer/group0/exp_avg"]
    for place in range(10):
        owner[place] = 1.0
        after = dict(digests._entry("group0", "exp_avg", owner, owner, shares))
        wanted = "a" if place < 4 else "b" if 5 <= place < 8 else "group0"
        assert differing(before, after) == (f"optimizer/{wanted}/exp_avg",)
        owner[place] = 0.0


def test_state_on_nvme_is_refused() -> None:
    trainer, session = trained()
    trainer.deepspeed = SimpleNamespace(optimizer=SimpleNamespace(swap_optimizer=True, param_groups=[]))
    with pytest.raises(RuntimeError, match="NVMe"):
        digests.take(trainer, session)
