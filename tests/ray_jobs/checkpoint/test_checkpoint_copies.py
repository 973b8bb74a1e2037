"""Copies of a state in host memory, and the digest that says whether two states are the same."""

import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ray_jobs.checkpoint.capture import TRAINER_STATE, copied, random_digest, state_digest
from ray_jobs.checkpoint.host_memory import HostBuffers

FILE = "state/mp_rank_00_model_states.pt"


@dataclass
class Scaler:
    """An object in a state, as DeepSpeed's loss scaler is one."""

    scale: float


def state() -> dict[str, Any]:
    flat = torch.arange(100.0)
    return {
        "flat": flat,
        "first": flat[:10].view(2, 5),
        "turned": flat[:10].view(2, 5).t(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
        "scaler": Scaler(2.0),
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "names": {"a", "b"}}],
    }


def size_on_disk(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return len(file.getvalue())


def test_copy_is_equal_and_does_not_follow_what_the_original_becomes() -> None:
    original = state()
    copy = copied({FILE: original})[FILE]
    original["flat"].zero_()
    original["groups"][0]["lr"] = 5.0
    original["scaler"].scale = 5.0
    expected = state()
    for name in ("flat", "first", "turned", "half", "empty", "scalar"):
        assert torch.equal(copy[name], expected[name]), name
        assert copy[name].dtype == expected[name].dtype
    assert (copy["groups"], copy["scaler"]) == (expected["groups"], expected["scaler"])


def test_copy_of_views_shares_memory_as_the_originals_do() -> None:
    copy = copied({FILE: state()})[FILE]
    assert copy["flat"].data_ptr() == copy["first"].data_ptr() == copy["turned"].data_ptr()
    assert copy["turned"].stride() == state()["turned"].stride()


def test_copy_leaves_out_what_no_tensor_shows() -> None:
    flat = torch.zeros(1_000_000)
    copy = copied({FILE: {"few": flat[500_001:500_011], "others": flat[7:9]}})[FILE]
    assert copy["few"].shape == (10,)
    assert size_on_disk(copy) < 10_000


def test_copy_can_be_saved_although_two_dtypes_look_at_one_storage() -> None:
    flat = torch.arange(8.0)
    both = {"numbers": flat[:4], "bits": flat.view(torch.int32)[4:]}
    copy = copied({FILE: both})[FILE]
    assert size_on_disk(copy) > 0
    assert all(torch.equal(copy[name], both[name]) for name in both)


def test_copy_keeps_a_parameter_and_a_tied_weight_as_one() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    copy = copied({FILE: OrderedDict(embedding=weight, head=weight)})[FILE]
    assert isinstance(copy, OrderedDict)
    assert copy["embedding"] is copy["head"]
    assert not copy["head"].requires_grad


def test_second_copy_uses_the_memory_of_the_first() -> None:
    buffers = HostBuffers()
    first = copied({FILE: state()}, buffers)[FILE]["flat"].data_ptr()
    held_bytes = buffers.size_bytes
    assert copied({FILE: state()}, buffers)[FILE]["flat"].data_ptr() == first
    assert buffers.size_bytes == held_bytes


def test_buffers_of_another_size_are_given_back() -> None:
    buffers = HostBuffers()
    copied({FILE: {"large": torch.zeros(10_000)}}, buffers)
    copied({FILE: {"small": torch.zeros(10)}}, buffers)
    assert buffers.size_bytes < 100


def test_large_copy_holds_exactly_its_bytes() -> None:
    large = torch.arange(3 * 2**20, dtype=torch.float32)
    copy = copied({FILE: {"large": large}})[FILE]["large"]
    assert torch.equal(copy, large)
    assert copy.untyped_storage().nbytes() == large.untyped_storage().nbytes()


def test_digest_does_not_see_order_identity_sharing_or_rank() -> None:
    turned_round = dict(reversed(state().items()))
    turned_round["groups"] = [{"names": {"b", "a"}, "betas": [0.9, 0.999], "lr": 1e-3}]
    turned_round["first"] = turned_round["first"].clone()
    assert state_digest({FILE: turned_round}) == state_digest({FILE: state()})
    of_ranks = [f"state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 11)]
    assert len({state_digest({path: state()}) for path in of_ranks}) == 1
    assert state_digest({FILE: state()}) != state_digest({of_ranks[0]: state()})


def test_digest_of_a_copy_is_the_original_s() -> None:
    assert state_digest(copied({FILE: state()})) == state_digest({FILE: state()})


CHANGES: dict[str, Any] = {
    "one bit": lambda s: s["flat"].view(torch.int32)[99].bitwise_xor_(1),
    "a zero's sign": lambda s: s["flat"][0].neg_(),
    "a float in a group": lambda s: s["groups"][0].update(lr=1e-3 + 2e-19),
    "a float in an object": lambda s: setattr(s["scaler"], "scale", 2.0000000000000004),
    "a dtype": lambda s: s.update(half=s["half"].half()),
    "a shape": lambda s: s.update(flat=s["flat"].view(10, 10)),
    "an empty shape": lambda s: s.update(empty=torch.empty(3, 0)),
    "a key": lambda s: s.update(another=s.pop("half")),
    "an int for a float": lambda s: s["scaler"].__setattr__("scale", 2),
    "one more group": lambda s: s["groups"].append({}),
    "a name in a set": lambda s: s["groups"][0].update(names={"a", "c"}),
    "nothing for something": lambda s: s.update(scalar=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_sees(change: str) -> None:
    changed = state()
    CHANGES[change](changed)
    assert state_digest({FILE: changed}) != state_digest({FILE: state()})


def test_digest_sees_a_bit_of_every_tensor_of_a_state() -> None:
    digests = {state_digest({FILE: state()})}
    for name in ("flat", "half", "scalar"):
        changed = state()
        changed[name].view(-1).view(torch.uint8)[-1] ^= 1
        digests.add(state_digest({FILE: changed}))
    assert len(digests) == 4


def test_digest_sees_no_configuration_and_no_diary() -> None:
    texts = ['{"global_step": 7, "log_history": [1]}', '{"log_history": [], "global_step": 7}']
    states = [{FILE: state() | {"ds_config": text}, TRAINER_STATE: text} for text in texts]
    assert state_digest(states[0]) == state_digest(states[1])
    later = states[0] | {TRAINER_STATE: '{"global_step": 8}'}
    assert state_digest(later) != state_digest(states[0])


def test_random_generators_have_a_digest_of_their_own() -> None:
    def progress(seed: int, loss_sum: float) -> dict[str, Any]:
        return {"state/rank-3-progress.pt": {"random": {"python": (3, (seed, 2), None)}, "loss_sum": loss_sum}}

    assert state_digest(progress(1, 0.5)) == state_digest(progress(2, 0.5)) != state_digest(progress(1, 0.25))
    assert random_digest(progress(1, 0.5)) == random_digest(progress(1, 0.25)) != random_digest(progress(2, 0.5))
