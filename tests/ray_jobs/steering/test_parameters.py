"""Freezing and resetting parameters on real ranks: two gloo processes, a plain Trainer and DeepSpeed ZeRO 0 to 3."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from control_plane.core.model.commands import Command
from control_plane.core.model.records import CommandSettled
from control_plane.storage.journal.writer import read
from control_plane.storage.layout import RunFiles
from ray_jobs.steering.parameters import ResetApplier, Skeleton, layers, register_parameter_appliers
from tests.ray_jobs.steering.test_frozen import copied, make_step, moved, plain_training, two_layers
from tests.ray_jobs.support.ranks import run_ranks
from tests.ray_jobs.trials import trials
from tests.ray_jobs.trials.parameter_trials import hashed, intent

STEPS = 12
ARMS: dict[str, int | None] = {"plain": None, "zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3}
ENGINES = [(1, 32), (3, 32), (1, 16), (2, 16), (3, 16)]
FREEZE_AT, UNFREEZE_AT, RESET_AT, FREEZE_ALL_AT = 3, 6, 8, 9
BLOCK, MLP = "transformer.h.0.", "transformer.h.0.mlp."
SEED = 11
FROZEN_STEPS = range(FREEZE_AT + 1, UNFREEZE_AT + 1)


def commands() -> list[dict[str, Any]]:
    return [
        intent(FREEZE_AT, kind="freeze", parameters="encoder.*"),
        intent(FREEZE_AT, kind="freeze", parameters=f"{BLOCK}*"),
        intent(UNFREEZE_AT, kind="unfreeze", parameters="*"),
        intent(UNFREEZE_AT, kind="unfreeze", parameters="*"),
        intent(RESET_AT, kind="reset_parameters", modules="transformer.h.0", seed=SEED),
        intent(RESET_AT, kind="reset_parameters", modules=f"{MLP}*", seed=SEED),
        intent(FREEZE_ALL_AT, kind="freeze", parameters="*"),
    ]


class Run:
    """One training: what each rank's witness saw, and how its commands were settled, in their order."""

    def __init__(self, root: Path, seen: list[dict[str, Any]]) -> None:
        self.seen = seen
        records = [entry.record for entry in read(RunFiles(root).journal)]
        self.settled = [record for record in records if isinstance(record, CommandSettled)]

    def of(self, status: str) -> list[CommandSettled]:
        return [each for each in self.settled if each.status == status]

    def weights(self, step: int) -> dict[str, dict[str, str]]:
        return self.seen[0]["weights"][str(step)]

    def frozen(self, step: int) -> dict[str, dict[str, str]]:
        return {name: seen for name, seen in self.weights(step).items() if name.startswith(BLOCK)}


@dataclass
class Seen:
    runs: dict[str, Run]
    engines: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Every arm with the commands and, for a plain one and ZeRO 2, without; all in the same two processes."""
    folder = tmp_path_factory.mktemp("parameters")
    arms = {name: (stage, commands()) for name, stage in ARMS.items()}
    arms |= {f"{name}-untouched": (ARMS[name], []) for name in ("plain", "zero2")}
    trainings = [
        {
            "root": str(folder / name),
            "stage": stage,
            "scheduler": "hf",
            "optimizer": "deepspeed",
            "steps": STEPS,
            "commands": given,
        }
        for name, (stage, given) in arms.items()
    ]
    spec = {"trainings": trainings, "engines": ENGINES}
    seen = run_ranks("tests.ray_jobs.trials.parameter_trials:train_each", 2, spec, folder / "ranks")
    trained = {name: Run(folder / name, [rank["trainings"][index] for rank in seen]) for index, name in enumerate(arms)}
    return Seen(trained, [[rank["engines"][index] for rank in seen] for index in range(len(ENGINES))])


@pytest.fixture(scope="module")
def runs(seen: Seen) -> dict[str, Run]:
    return seen.runs


each_arm = pytest.mark.parametrize("arm", ARMS)


@each_arm
@pytest.mark.jobs
def test_frozen_parameters_and_their_moments_stay_bit_for_bit(runs: dict[str, Run], arm: str) -> None:
    still = runs[arm].frozen(FREEZE_AT)
    assert len(still) == 12
    assert {"fp32", "live", "exp_avg", "exp_avg_sq"} == set.intersection(*map(set, still.values()))
    assert all(runs[arm].frozen(step) == still for step in FROZEN_STEPS)


@each_arm
@pytest.mark.jobs
def test_while_some_are_frozen_the_others_move(runs: dict[str, Run], arm: str) -> None:
    for step in FROZEN_STEPS:
        before, after = runs[arm].weights(step - 1), runs[arm].weights(step)
        moved = {name for name in after if after[name]["fp32"] != before[name]["fp32"]}
        assert moved == {name for name in after if not name.startswith(BLOCK)}


@each_arm
@pytest.mark.jobs
def test_unfrozen_parameters_move_again(runs: dict[str, Run], arm: str) -> None:
    before, after = runs[arm].frozen(UNFREEZE_AT), runs[arm].frozen(UNFREEZE_AT + 1)
    assert all(after[name]["fp32"] != before[name]["fp32"] for name in after)
    assert all(after[name]["exp_avg"] != before[name]["exp_avg"] for name in after)


@each_arm
@pytest.mark.jobs
def test_with_everything_frozen_nothing_moves(runs: dict[str, Run], arm: str) -> None:
    still = runs[arm].weights(FREEZE_ALL_AT)
    assert all(runs[arm].weights(step) == still for step in range(FREEZE_ALL_AT + 1, STEPS + 1))


@pytest.mark.jobs
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "zero0"])  # which tells no norm
def test_with_everything_frozen_no_gradient_counts_in_the_norm(runs: dict[str, Run], arm: str) -> None:
    norms = runs[arm].seen[0]["norms"]
    assert [norms[str(step)] for step in range(FREEZE_ALL_AT + 1, STEPS + 1)] == [0.0] * (STEPS - FREEZE_ALL_AT)
    assert norms[str(FREEZE_ALL_AT)] > 0


@each_arm
@pytest.mark.jobs
def test_both_ranks_see_the_same_parameters_at_every_step(runs: dict[str, Run], arm: str) -> None:
    first, second = (rank["weights"] for rank in runs[arm].seen)
    assert first == second


@each_arm
@pytest.mark.jobs
def test_a_freeze_is_settled_with_names_and_a_count(runs: dict[str, Run], arm: str) -> None:
    freeze, unfreeze, _, everything = runs[arm].of("applied")
    model = small_model()
    names = [name for name, _ in model.named_parameters() if name.startswith(BLOCK)]
    assert (freeze.step, freeze.world_size) == (FREEZE_AT, 2)
    assert freeze.before == {"frozen": [], "frozen_parameters": 0}
    count = sum(one.numel() for name, one in model.named_parameters() if name.startswith(BLOCK))
    assert freeze.after == {"frozen": sorted(names), "frozen_parameters": count}
    assert unfreeze.after == {"frozen": [], "frozen_parameters": 0}
    assert everything.after["frozen_parameters"] == sum(one.numel() for one in model.parameters())


@each_arm
@pytest.mark.jobs
def test_what_matches_nothing_is_rejected_with_some_names(runs: dict[str, Run], arm: str) -> None:
    freeze, unfreeze, reset = runs[arm].of("rejected")
    assert "trains no parameter that matches 'encoder.*'; it trains transformer.wte.weight" in freeze.reason
    assert "no frozen parameter matches '*'; frozen: none" in unfreeze.reason
    assert "no module that matches 'transformer.h.0' can be given fresh weights" in reset.reason
    assert "transformer.wte" in reset.reason


@each_arm
@pytest.mark.jobs
def test_reset_weights_follow_from_the_seed_and_the_module_name(runs: dict[str, Run], arm: str) -> None:
    found, expected = runs[arm].weights(RESET_AT), expected_weights()
    for name, weights in expected.items():
        assert (found[name]["fp32"], found[name]["live"]) == (hashed(weights), hashed(weights))
        assert found[name]["exp_avg"] == found[name]["exp_avg_sq"] == hashed(torch.zeros_like(weights))
    assert found[f"{MLP}c_fc.weight"] != runs[arm].weights(RESET_AT - 1)[f"{MLP}c_fc.weight"]


@each_arm
@pytest.mark.jobs
def test_reset_weights_train_on(runs: dict[str, Run], arm: str) -> None:
    before, after = runs[arm].weights(RESET_AT), runs[arm].weights(RESET_AT + 1)
    assert all(after[name]["fp32"] != before[name]["fp32"] for name in after)


@each_arm
@pytest.mark.jobs
def test_a_reset_is_settled_with_one_digest_for_all_ranks(runs: dict[str, Run], arm: str) -> None:
    _, _, reset, _ = runs[arm].of("applied")
    assert reset.after["reset"] == [f"{MLP}c_fc", f"{MLP}c_proj"]
    assert [ranks["digest"] for ranks in reset.ranks] == [reset.after["digest"]] * 2
    assert reset.after["digest"] == runs["plain"].of("applied")[2].after["digest"]


@each_arm
@pytest.mark.jobs
def test_undoing_a_reset_restores_every_bit_and_no_random_number_is_missing(runs: dict[str, Run], arm: str) -> None:
    for rank in runs[arm].seen:
        assert rank["undone"] == dict.fromkeys(rank["undone"], True)
        assert len(rank["undone"]) == 5


@each_arm
@pytest.mark.jobs
def test_what_was_frozen_is_restored_from_what_a_checkpoint_keeps(runs: dict[str, Run], arm: str) -> None:
    first, second = (rank["recalled"] for rank in runs[arm].seen)
    assert first == second == sorted(runs[arm].weights(STEPS))


@pytest.mark.jobs
@pytest.mark.parametrize("arm", ["plain", "zero2"])
def test_until_a_freeze_works_losses_are_those_of_an_untouched_run(runs: dict[str, Run], arm: str) -> None:
    steered, untouched = (runs[name].seen[0]["losses"] for name in (arm, f"{arm}-untouched"))
    # The first loss after the freeze still comes from the same weights, and from the same random numbers: dropout.
    assert [steered[str(step)] for step in range(1, FREEZE_AT + 2)] == [
        untouched[str(step)] for step in range(1, FREEZE_AT + 2)
    ]
    assert steered[str(FREEZE_AT + 2)] != untouched[str(FREEZE_AT + 2)]


@pytest.mark.jobs
@pytest.mark.parametrize("arm", range(len(ENGINES)), ids=[f"zero{stage}-{bits}-bits" for stage, bits in ENGINES])
def test_freezing_and_resetting_are_exact_with_padded_shares_and_in_16_bits(seen: Seen, arm: int) -> None:
    first, second = seen.engines[arm]
    assert first == second
    begun, frozen, reset, after = (first[moment] for moment in ("begun", "frozen", "reset", "trained on"))
    assert {name for name in begun if begun[name] == frozen[name]} == {"0.weight", "1.bias"}
    assert first["undone"] == frozen
    assert {name for name in begun if reset[name] != frozen[name]} == {"1.weight", "1.bias"}
    live = torch.bfloat16 if ENGINES[arm][1] == 16 else torch.float32
    for name, weights in linear_weights(4, "1", (3, 5)).items():
        assert (reset[name]["fp32"], reset[name]["live"]) == (hashed(weights), hashed(weights.to(live)))
        assert reset[name]["exp_avg"] == reset[name]["exp_avg_sq"] == hashed(torch.zeros_like(weights))
    assert all(after[name]["fp32"] != reset[name]["fp32"] for name in after)


# --- One process ---


def small_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=trials.VOCABULARY, n_positions=trials.BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    )


def generator(seed: int, name: str) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(number >> 1)


def linear_weights(seed: int, name: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """By hand: torch's way for a linear layer."""
    drawing, bound = generator(seed, name), 1 / math.sqrt(shape[1])
    weight = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=drawing)
    bias = torch.empty(shape[0]).uniform_(-bound, bound, generator=drawing)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def expected_weights() -> dict[str, torch.Tensor]:
    """By hand: GPT-2's way for its two linear layers, of which the second is scaled by the number of layers."""
    first = torch.empty(16, 64).normal_(0.0, 0.02, generator=generator(SEED, f"{MLP}c_fc"))
    drawing = generator(SEED, f"{MLP}c_proj")
    torch.empty(64, 16).normal_(0.0, 0.02, generator=drawing)  # as any linear layer; then as GPT-2's second one
    second = torch.empty(64, 16).normal_(0.0, 0.02 / math.sqrt(2), generator=drawing)
    return {
        f"{MLP}c_fc.weight": first,
        f"{MLP}c_fc.bias": torch.zeros(64),
        f"{MLP}c_proj.weight": second,
        f"{MLP}c_proj.bias": torch.zeros(16),
    }


def test_resetting_a_frozen_module_gives_it_new_weights_that_stand_still() -> None:
    training = plain_training(two_layers())
    old = copied(training.model)
    training.frozen.hold({"0.weight", "0.bias"})
    make_step(training)
    reset = Command.model_validate(intent(0, kind="reset_parameters", modules="0", seed=5))
    ResetApplier(training.partitions).apply(reset, 1)
    new = copied(training.model)
    make_step(training)
    assert moved(training.model, new) == {"2.weight", "2.bias"}
    assert not torch.equal(old["0.weight"], new["0.weight"])


def test_fresh_weights_depend_on_the_seed_and_the_name_and_touch_no_random_state() -> None:
    torch.manual_seed(1)
    random, skeleton = torch.get_rng_state(), Skeleton(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    torch.set_rng_state(random)
    first, again = skeleton.fresh("0", 1), skeleton.fresh("0", 1)
    assert all(torch.equal(first[key], again[key]) for key in ("weight", "bias"))
    assert not torch.equal(first["weight"], skeleton.fresh("0", 2)["weight"])
    assert not torch.equal(first["weight"], skeleton.fresh("1", 1)["weight"])
    assert torch.equal(random, torch.get_rng_state())


def test_a_module_of_which_nobody_makes_the_weights_cannot_be_reset() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2))

    skeleton = Skeleton(nn.Sequential(Scale(), nn.Linear(2, 2), nn.ReLU()))
    assert [skeleton.can_reset(name) for name in ("", "0", "1", "2")] == [False, False, True, False]


def test_layers_tell_each_module_with_its_parameters_and_what_can_be_turned() -> None:
    model = two_layers()
    model[0].weight.requires_grad_(False)
    told = layers(model, frozen={"2.bias"})
    assert json.loads(json.dumps(told)) == told
    assert told == [
        {"name": "", "type": "Sequential", "parameters": 30, "trainable": 12, "tunables": {}},
        {"name": "0", "type": "Linear", "parameters": 20, "trainable": 4, "tunables": {}},
        {"name": "1", "type": "Dropout", "parameters": 0, "trainable": 0, "tunables": {"p": 0.25}},
        {"name": "2", "type": "Linear", "parameters": 10, "trainable": 8, "tunables": {}},
    ]


def test_registering_covers_all_three_commands() -> None:
    registered: dict[str, Any] = {}
    session = SimpleNamespace(register=registered.__setitem__)
    register_parameter_appliers(session, plain_training(two_layers()))  # type: ignore[arg-type]
    assert set(registered) == {"freeze", "unfreeze", "reset_parameters"}
