"""Hooks on activations, without ranks: what they measure, and that they are gone behind the forward pass."""

from collections.abc import Iterator
from math import log

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from ray_jobs.health.activations import ActivationProbe
from ray_jobs.health.attention import spectral_entropy


class Block(nn.Module):
    """Attention and a linear layer behind a functional activation, as scripts write them."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.queries(x).unflatten(-1, (2, 4)).transpose(1, 2)
        x = x + nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(
            2
        )
        if self.fails:
            raise ValueError("planted")
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.embed = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    yield
    assert _get_current_function_mode_stack() == []


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def measured(model: nn.Module) -> dict[str, float]:
    probe = ActivationProbe(model, tokens=128, layers=8)
    probe.arm()
    model(torch.randn(4, 6, 8)).square().mean().backward()
    assert hooks_on(model) == 0
    return probe.take()


@pytest.mark.parametrize("recompute", [False, True])
def test_every_block_is_measured_whether_or_not_it_is_computed_again(recompute: bool) -> None:
    signs = measured(Model(recompute))
    kinds = ("hidden_std", "dormant", "attention_entropy", "attention_logit_max", "qk_entropy")
    assert set(signs) == {f"{kind}/blocks.{index}" for kind in kinds for index in (0, 1)}
    assert 0 < signs["attention_entropy/blocks.0"] <= 1


def test_units_that_a_bias_has_killed_are_dormant() -> None:
    model = Model()
    with torch.no_grad():
        model.blocks[1].up.bias[:12] = -1e3
    signs = measured(model)
    assert signs["dormant/blocks.1"] >= 12 / 16
    assert signs["dormant/blocks.0"] < 0.5


def test_attention_to_one_key_has_no_entropy_and_large_logits() -> None:
    model = Model()
    with torch.no_grad():
        model.blocks[0].queries.weight.mul_(100)
    signs = measured(model)
    assert signs["attention_logit_max/blocks.0"] > 100
    assert signs["attention_entropy/blocks.0"] < 0.3 < measured(Model())["attention_entropy/blocks.0"]


def test_spectral_entropy_is_that_of_the_singular_values_of_the_product() -> None:
    torch.manual_seed(1)
    queries, keys = (torch.randn(2, 12, 4, dtype=torch.float64) for _ in range(2))
    values = torch.linalg.svdvals(queries @ keys.transpose(-1, -2))[:, :4]
    shares = values / values.sum(-1, keepdim=True)
    assert spectral_entropy(queries, keys) == pytest.approx(float((-shares * shares.log()).sum(-1).mean()) / log(4))


def test_hooks_and_modes_are_gone_after_a_forward_pass_that_raises() -> None:
    model = Model()
    model.blocks[1].fails = True
    probe = ActivationProbe(model, tokens=128, layers=8)
    probe.arm()
    with pytest.raises(ValueError, match="planted"):
        model(torch.randn(4, 6, 8))
    assert hooks_on(model) == 0


def test_an_evaluation_is_not_measured_and_the_training_behind_it_is() -> None:
    model = Model()
    probe = ActivationProbe(model, tokens=128, layers=8)
    probe.arm()
    model.eval()
    model(torch.randn(4, 6, 8))
    model.train()
    model(torch.full((4, 6, 8), 2.0))
    assert "hidden_std/blocks.0" in probe.take()


def test_a_failing_measurement_costs_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.health.activations._rows", lambda tensor: 1 / 0)
    probe = ActivationProbe(model := Model(), tokens=128, layers=8)
    probe.arm()
    model(torch.randn(4, 6, 8))
    probe.take()
    assert probe.reason is not None
    assert "ZeroDivisionError" in probe.reason


def test_a_compiled_model_has_no_hooks_and_the_reason_is_said() -> None:
    model = Model()
    model.compile(backend="eager")
    probe = ActivationProbe(model, tokens=128, layers=8)
    probe.arm()
    assert hooks_on(model) == 0
    assert probe.reason is not None
    assert "torch.compile" in probe.reason
