"""Random numbers of data loading: a function of the seed, the epoch and the batch, and nothing of the training's."""

import functools
import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from ray_jobs.data.generators import seed_of, seeded
from ray_jobs.data.seeded_loading import LoaderSeeds
from ray_jobs.rank.inexact import own_generators


def draw() -> tuple[float, ...]:
    """From each generator; an odd number of normal ones, of which two are made at a time."""
    return random.random(), random.gauss(0, 1), numpy.random.normal(), float(torch.rand(()))


def test_generators_are_set_aside_and_put_back_to_the_last_number_that_was_kept() -> None:
    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    expected = [draw() for _ in range(7)]
    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    found, inside = [], set()
    for _ in range(7):
        with seeded(seed_of(1)):
            inside.add(draw())
            with seeded(seed_of(2)):
                draw()
            inside.add(draw())
        found.append(draw())
        with seeded(seed_of(1)):
            pass
    assert found == expected
    assert len(inside) == 2


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, random.random()


def collate(rows: Any) -> list[Any]:
    return [*rows, float(torch.rand(()))]


def loaded(epoch: int, first: int = 0, rank: int = 0, seed: int = 7, loader: Any = None, **given: Any) -> list[Any]:
    draws = LoaderSeeds(seed, rank)
    loader = loader if loader is not None else DataLoader(Rows(), batch_size=3, collate_fn=collate, **given)
    assert draws.attach(loader) == []
    draws.begin(epoch, first)
    return list(loader)


def test_batch_draws_what_belongs_to_its_place_and_training_draws_as_if_there_was_no_loading() -> None:
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()  # what any iterator of PyTorch draws
    expected = draw()[-1]
    torch.manual_seed(3)
    first = loaded(epoch=2)
    assert draw()[-1] == expected
    assert loaded(epoch=2) == first
    for other in (loaded(3), loaded(2, rank=1), loaded(2, seed=8), loaded(2, first=1)):
        assert not {str(batch) for batch in other} & {str(batch) for batch in first}


@pytest.mark.parametrize("kept", [False, True])
def test_workers_draw_what_the_process_itself_would_draw(kept: bool) -> None:
    loader = DataLoader(Rows(), batch_size=3, collate_fn=collate, num_workers=2, persistent_workers=kept)
    draws, training = LoaderSeeds(7, 0), torch.get_rng_state()
    draws.attach(loader)
    for epoch in (4, 5):
        draws.begin(epoch, 0)
        assert list(loader) == loaded(epoch)
    if kept:  # one iterator, or two after a restart: none of them draws from training's generator
        torch.set_rng_state(training)
        draws.begin(6, 0)
        next(iter(loader))
        assert torch.equal(torch.get_rng_state(), training)


def test_shuffled_order_is_that_of_the_epoch() -> None:
    def order(epoch: int) -> list[int]:
        sampler = RandomSampler(Rows())
        return [row[0] for batch in loaded(epoch, sampler=sampler) for row in batch[:-1]]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(12))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(numpy.random.permutation(6).tolist())


def test_stream_is_shuffled_alike_on_all_ranks_and_collated_with_other_numbers() -> None:
    found = [loaded(1, rank=rank, loader=DataLoader(Stream(), batch_size=3, collate_fn=collate)) for rank in (0, 1)]
    assert [batch[:-1] for batch in found[0]] == [batch[:-1] for batch in found[1]]
    assert [batch[-1] for batch in found[0]] != [batch[-1] for batch in found[1]]


def test_loader_that_is_none_of_pytorchs_is_named() -> None:
    inexact = LoaderSeeds(7, 0).attach(iter(()))  # type: ignore[arg-type]
    assert inexact == ["the order and the random numbers of the data loader, a tuple_iterator"]


class Holds:
    def __init__(self, value: Any) -> None:
        self.value = value

    def call(self) -> None:
        """Does nothing."""


RNG = random.Random(3)


class ByGlobal(Rows):
    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, RNG.random()


@pytest.mark.parametrize(
    "held",
    [
        Holds(torch.Generator()),
        Holds([Holds({"a": numpy.random.default_rng(1)})]),
        Holds(random.Random(1)).call,
        functools.partial(collate, Holds(numpy.random.RandomState(1))),
        ByGlobal(),
        lambda made=None, rng=random.Random(1): rng,
        (lambda rng: lambda: rng)(numpy.random.default_rng(1)),
    ],
)
def test_generator_of_a_dataset_or_collator_is_found(held: Any) -> None:
    assert len(own_generators(held, "data_collator")) == 1


def test_what_holds_no_generator_is_not_named() -> None:
    circle = Holds(Rows())
    circle.value = [circle, torch.nn.Dropout(), "text", numpy.zeros(3)]
    assert own_generators(circle, "train_dataset") == []
