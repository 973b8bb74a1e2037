"""Digests of tensors and values: every bit counts, and nothing else does."""

import math

import pytest
import torch

from ray_jobs.digest.hashing import number_digest, staged, tensor_digest, value_digest

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_flipped_bit_gives_another_digest(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype).reshape(2, 3)
    held = tensor.view(-1).view(torch.uint8)
    seen = {tensor_digest(tensor)}
    for place in range(held.numel()):
        for bit in range(8):
            held[place] ^= 1 << bit
            seen.add(tensor_digest(tensor))
            held[place] ^= 1 << bit
    assert len(seen) == 1 + 8 * held.numel()


def test_flipped_bit_at_the_end_of_a_large_tensor_gives_another_digest() -> None:
    tensor = torch.zeros(1 << 20)
    before = tensor_digest(tensor)
    tensor.view(torch.uint8)[-1] ^= 1
    assert tensor_digest(tensor) != before


def test_payloads_of_nan_and_signs_of_zero_are_told_apart() -> None:
    bits = torch.tensor([0x7FC00000, 0x7FC00001, 0x7F800001, 0, -(2**31)], dtype=torch.int32)
    assert len({tensor_digest(each.view(torch.float32)) for each in bits}) == 5
    assert len({tensor_digest(each.view(torch.float32).reshape(1)) for each in bits}) == 5


def test_shape_and_type_are_part_of_the_digest() -> None:
    same_bytes = [
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(6),
        torch.zeros(6, dtype=torch.int32),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(12, dtype=torch.bfloat16),
    ]
    single = [torch.tensor(1.0), torch.tensor([1.0])]
    empty = [torch.zeros(0), torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(0, dtype=torch.bfloat16)]
    assert len({tensor_digest(each) for each in (*same_bytes, *single, *empty)}) == 12


def test_strides_views_and_gradients_are_not_part_of_the_digest() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    digest = tensor_digest(tensor)
    assert tensor_digest(tensor.transpose(0, 2).contiguous().transpose(0, 2)) == digest
    assert tensor_digest(torch.cat([torch.ones(1, 3, 4), tensor])[1:]) == digest
    assert tensor_digest(torch.nn.Parameter(tensor)) == digest
    turned = torch.tensor([1 + 2j, 3 - 4j])
    assert tensor_digest(turned.conj()) == tensor_digest(turned.conj().resolve_conj()) != tensor_digest(turned)


def test_several_tensors_are_one_digest_and_their_bounds_count() -> None:
    one, two = torch.zeros(2), torch.zeros(3)
    assert len({tensor_digest(one, two), tensor_digest(two, one), tensor_digest(torch.zeros(5))}) == 3


def test_digests_are_the_same_in_every_process() -> None:
    assert tensor_digest(torch.arange(4.0)) == "bdff0617a41f3ea945519b44fbedc245"
    assert value_digest({"b": [1, 2.5, None], "a": "x"}) == "28aedb2f82c2e2e3c7b1d7e9b584332e"


def test_order_of_a_dictionary_does_not_count_and_types_do() -> None:
    assert value_digest({"a": 1, "b": 2}) == value_digest({"b": 2, "a": 1})
    assert len({value_digest(each) for each in (1, 1.0, "1", True, None, [1])}) == 6


def test_step_of_adam_is_the_same_as_a_tensor_and_as_a_number() -> None:
    assert len({number_digest(each) for each in (5, 5.0, torch.tensor(5.0), torch.tensor(5))}) == 1
    different = (5.0, 6.0, 0.0, -0.0, math.nan, math.inf, 2**53, 2**53 + 1, torch.tensor(math.nan))
    assert len({number_digest(each) for each in different}) == len(different)


@pytest.mark.parametrize("stage_bytes", [1, 7, 64, 1000])
def test_bytes_that_come_in_pieces_are_all_of_them_in_their_order(stage_bytes: int) -> None:
    flat = torch.arange(200, dtype=torch.uint8)
    assert b"".join(bytes(piece) for piece in staged(flat, stage_bytes)) == flat.numpy().tobytes()
    assert list(staged(flat[:0], stage_bytes)) in ([], [b""])


def test_tensor_without_data_is_refused() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        tensor_digest(torch.zeros(3, device="meta"))
