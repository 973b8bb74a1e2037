"""Groups of layers, the vector of the gather, and the norms, without ranks."""

from math import isnan, nan, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from ray_jobs.health import layer_norms
from ray_jobs.health.layer_groups import MAX_GROUPS, MAX_NAME_CHARS, block_modules, layer_groups
from ray_jobs.health.layer_norms import LayerNorms
from ray_jobs.health.vector import RANK_SIGNS, LayerSums, VectorLayout
from ray_jobs.steering.partitions import Partitions


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


class Transformer(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.embed = nn.Embedding(8, 4)
        self.body.layers = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(4, 8)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def test_blocks_are_groups_and_what_stands_beside_them_too() -> None:
    model = Transformer(2)
    assert list(layer_groups(model)) == ["embed", "layers.0", "layers.1", "head"]
    assert list(block_modules(model)) == ["layers.0", "layers.1"]


def test_a_model_without_blocks_falls_back_to_its_top_level_modules() -> None:
    assert list(layer_groups(mlp())) == ["0", "2", "4"]
    assert list(layer_groups(nn.Linear(2, 2))) == ["model"]


def test_every_trained_parameter_is_in_one_group_and_a_frozen_one_in_none() -> None:
    model = Transformer(3)
    model.head.requires_grad_(False)
    groups = layer_groups(model)
    held = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(held) == sorted(id(one) for one in model.parameters() if one.requires_grad)
    assert "head" not in groups


def test_groups_of_a_deep_model_are_bounded_and_named_by_their_span() -> None:
    groups = layer_groups(Transformer(200))
    assert len(groups) <= MAX_GROUPS
    assert "layers.0-3" in groups
    assert sum(map(len, groups.values())) == 200 * 4 + 3
    assert len(block_modules(Transformer(200))) == MAX_GROUPS


def test_long_names_are_cut_and_stay_apart() -> None:
    model = nn.Module()
    for letter in "ab":
        model.add_module(letter + "x" * 80, nn.Linear(2, 2))
    groups = layer_groups(model)
    assert len(groups) == 2
    assert max(map(len, groups)) <= MAX_NAME_CHARS


def test_a_vector_has_one_length_whatever_was_measured() -> None:
    layout = VectorLayout(["a", "b"])
    full = layout.pack(dict.fromkeys(RANK_SIGNS, 1.0), LayerSums([1.0, 1.0], [2.0, 2.0], [3.0, 3.0]))
    assert len(full) == len(layout.pack({}, None)) == len(layout) == 1 + len(RANK_SIGNS) + 6
    assert layout.digest != VectorLayout(["b", "a"]).digest


def test_what_was_not_measured_is_no_nan_and_a_nan_is_not_missing() -> None:
    layout = VectorLayout(["a"])
    rows = [layout.pack({"loss": nan, "step_s": 1.0}, None), layout.pack({"loss": 2.0}, None)]
    gathered = layout.combine(np.array(rows))
    assert isnan(gathered.mean_loss() or 0.0)
    assert "tokens" not in gathered.by_rank
    assert gathered.by_rank["step_s"][0] == 1.0
    assert gathered.layers is None


def test_layers_are_summed_over_the_ranks_and_their_gradients_told_before_clipping() -> None:
    layout = VectorLayout(["a", "b"])
    rows = [
        layout.pack({}, LayerSums([4.0, 0.0], [9.0, 0.0], [1.0, 0.0])),
        layout.pack({}, LayerSums([0.0, 1.0], [0.0, 16.0], [0.0, 1.0])),
    ]
    signs = layout.combine(np.array(rows)).layer_signs(layout.groups, 50.0, [True, False])
    assert signs["weight_norm/a"] == 2.0
    assert signs["update_ratio/a"] == 0.5
    # The norms of the two groups are 3 and 4, clipped from 50 to 5.
    assert signs["layer_grad_norm/a"] == pytest.approx(30.0)
    assert set(signs) == {"weight_norm/a", "layer_grad_norm/a", "update_norm/a", "update_ratio/a", "weight_norm/b"}


@pytest.mark.parametrize("kept", [1 << 16, 3])
def test_norms_are_those_of_the_tensors_themselves(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_norms, "MAX_KEPT", kept)
    torch.manual_seed(1)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = layer_groups(model)
    norms = LayerNorms(Partitions(model, optimizer), groups, rank=0)
    before = [one.detach().clone() for one in groups["2"]]
    norms.arm()
    model(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    copy = norms.take()
    assert copy is not None
    sums = norms.sums_of(copy.values())
    at = list(groups).index("2")
    assert sqrt(sums.weight[at]) == pytest.approx(norm_of(before), rel=1e-6)
    gradients = [one.grad for one in groups["2"] if one.grad is not None]
    assert sqrt(sums.gradient[at]) == pytest.approx(norm_of(gradients), rel=1e-6)
    # With few elements kept, the update is an estimate.
    assert sqrt(sums.update[at]) == pytest.approx(0.1 * norm_of(gradients), rel=1e-5 if kept > 100 else 0.6)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_rank_other_than_0_adds_nothing_where_every_rank_holds_everything() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = LayerNorms(Partitions(model, optimizer), layer_groups(model), rank=1)
    norms.arm()
    model(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    copy = norms.take()
    assert copy is not None
    assert set(copy.values()) == {0.0}


def test_a_skipped_step_has_no_norms() -> None:
    model = mlp()
    norms = LayerNorms(Partitions(model, torch.optim.SGD(model.parameters(), lr=0.1)), layer_groups(model), rank=0)
    norms.arm()
    assert norms.take() is None


def norm_of(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).norm())
