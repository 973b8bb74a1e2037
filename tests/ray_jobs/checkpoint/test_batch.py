"""The global batch on any number of ranks, and the data that each step then consumes."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from control_plane.core.model.errors import Invalid
from ray_jobs.checkpoint.batch import BatchPlan, plan_batch, possible_sizes
from ray_jobs.data.sample_order import SampleOrder, sample_order

counts = st.integers(min_value=1, max_value=200)


@pytest.mark.parametrize(
    ("ranks", "plan"),
    [
        (1, BatchPlan(micro_batch_per_rank=3, accumulation_steps=4)),
        (2, BatchPlan(micro_batch_per_rank=3, accumulation_steps=2)),
        (3, BatchPlan(micro_batch_per_rank=2, accumulation_steps=2)),
        (4, BatchPlan(micro_batch_per_rank=3, accumulation_steps=1)),
        (12, BatchPlan(micro_batch_per_rank=1, accumulation_steps=1)),
    ],
)
def test_plan_on_other_ranks_keeps_the_batch_and_the_largest_micro_batch_that_divides(
    ranks: int, plan: BatchPlan
) -> None:
    assert plan_batch(global_batch_samples=12, micro_batch_per_rank=3, ranks=ranks) == plan


@given(share=counts, micro=counts, ranks=counts)
def test_plan_of_any_share_is_exact_and_never_takes_more_at_once(share: int, micro: int, ranks: int) -> None:
    plan = plan_batch(share * ranks, micro, ranks)
    assert plan.global_batch_samples(ranks) == share * ranks
    assert plan.micro_batch_per_rank <= micro
    assert not [size for size in range(plan.micro_batch_per_rank + 1, min(micro, share) + 1) if share % size == 0]


@given(batch=counts, micro=counts, ranks=counts)
def test_plan_exists_exactly_for_the_sizes_that_can(batch: int, micro: int, ranks: int) -> None:
    if ranks in possible_sizes(batch, 1, 200):
        plan_batch(batch, micro, ranks)
    else:
        with pytest.raises(Invalid):
            plan_batch(batch, micro, ranks)


def test_plan_that_cannot_be_names_the_sizes_that_can() -> None:
    with pytest.raises(Invalid, match=r"48 samples .* among 5 ranks; possible .* from 2 to 6 ranks: 2, 3, 4, 6"):
        plan_batch(48, 8, ranks=5, bounds=(2, 6))
    with pytest.raises(Invalid, match="from 5 to 5 ranks: none"):
        plan_batch(48, 8, ranks=5, bounds=(5, 5))


def test_plan_with_many_sizes_names_the_nearest() -> None:
    with pytest.raises(Invalid, match=r"nearest possible numbers from 10 to 40 ranks: 10, 12, 15, 16, 18, 20, 24, 30$"):
        plan_batch(720, 8, ranks=19, bounds=(10, 40))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_plan_of_nothing_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(Invalid, match="at least 1"):
        plan_batch(*sizes)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_order_of_whole_batches_gives_each_step_its_own_samples_on_any_number_of_ranks(ranks: int) -> None:
    samples, batch, seed = 41, 12, 5
    plan = plan_batch(batch, micro_batch_per_rank=3, ranks=ranks)
    order = SampleOrder(samples, seed, batch)
    for epoch in range(2):
        order.set_epoch(epoch)
        micro_batches = list(BatchSampler(order, plan.micro_batch_per_rank, drop_last=False))
        per_step = ranks * plan.accumulation_steps
        steps = [list(chain(*micro_batches[at : at + per_step])) for at in range(0, len(micro_batches), per_step)]
        whole = sample_order(seed, epoch, samples).tolist()
        assert steps == [whole[:12], whole[12:24], whole[24:36]]


def test_order_leaves_out_different_samples_in_each_epoch() -> None:
    order = SampleOrder(41, 5, 12)
    left_out = []
    for epoch in range(2):
        order.set_epoch(epoch)
        left_out.append(set(range(41)) - set(order))
    assert len(order) == 36
    assert left_out[0] != left_out[1]


def test_order_of_less_than_one_batch_is_refused() -> None:
    with pytest.raises(Invalid, match="11 samples do not fill a global batch of 12"):
        SampleOrder(11, 5, 12)
