"""Seeded data loading: random numbers as a function of (seed, epoch, batch number, rank), in any process.

    draws = LoaderSeeds(seed=7, rank=0)
    inexact = draws.attach(loader)       # a DataLoader, or what accelerate has made of one
    draws.begin(epoch=2, first=5)        # before an epoch's iterator is made; its first five batches are skipped

Around the fetch of a batch (reading its samples and collating them) the process's generators are seeded for that batch.
So prefetching, a restore, and the choice of worker make no difference, and training's own generators are what they
would be without any loading. Samplers draw their order from (seed, epoch) in the same way. For a stream, the seed is
the same on every rank, as it is by hand: ranks that shuffle a stream and share it must shuffle it alike.
"""

from collections.abc import Callable, Iterator, Sized
from itertools import count
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info
from torch.utils.data import dataloader as torch_loader

from ray_jobs.data.generators import seed_all, seed_of, seeded

KNOWN_SAMPLERS = (
    "torch.utils.data",
    "accelerate.",
    "transformers.",
    "ray_jobs.data.sample_order",
    "ray_jobs.data.mixture",
)
"""Modules whose samplers draw only from their own generator, or from a seed and the epoch."""

_theirs: Callable[..., Any] = torch_loader._DatasetKind.create_fetcher


class LoaderSeeds:
    """Seeds of one training's loader. Copies of it go to the loader's workers."""

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self.epoch = self.first = self.iterated = 0
        # Classes of samplers that the script has written, whose order only they know.
        self.own_samplers: tuple[str, ...] = ()
        self._base: DataLoader[Any] | None = None
        self._samplers: list[Any] = []
        self._workers = torch.Generator()

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "rank": self.rank, "epoch": self.epoch, "first": self.first, "iterated": 0}

    def begin(self, epoch: int, first: int) -> None:
        """Prepare for an epoch's iterator; of a sized dataset its batches begin with number `first`, from 0."""
        self.epoch, self.first, self.iterated = epoch, first, 0
        self._workers.manual_seed(seed_of(self.seed, "workers", epoch))
        for sampler in self._samplers:
            # What skips the batches that are done, in the middle of an epoch, hides the sampler from the loader.
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            if isinstance(getattr(sampler, "generator", None), torch.Generator):
                sampler.generator.manual_seed(seed_of(self.seed, "order", epoch))

    def forget_workers(self) -> None:
        """Have the next iterator start new workers: those that are kept count the epochs that they have seen."""
        if self._base is not None:
            self._base._iterator = None

    def iterate(self) -> tuple[int, int]:
        """Return epoch and first batch of a new fetcher. A persistent worker makes one for each epoch."""
        epoch, first = self.epoch + self.iterated, self.first if not self.iterated else 0
        self.iterated += 1
        return epoch, first

    def attach(self, loader: DataLoader[Any]) -> list[str]:
        """Seed this loader from here. Returns what cannot be seeded, in words."""
        base = getattr(loader, "base_dataloader", loader)
        if not isinstance(base, DataLoader) or type(base)._get_iterator is not DataLoader._get_iterator:
            return [f"the order and the random numbers of the data loader, a {type(base).__name__}"]
        self._base, theirs = base, base.collate_fn
        base.collate_fn = SeededCollate(theirs.theirs if isinstance(theirs, SeededCollate) else theirs, self)
        if base.persistent_workers and base.num_workers:
            # A new iterator draws a number; workers that are kept have one iterator, and another one after a restart.
            base.generator = self._workers
        if isinstance(base.dataset, IterableDataset):
            return []
        self._samplers = list(_samplers(base))
        for sampler in self._samplers:
            if getattr(sampler, "generator", self) is None:
                sampler.generator = torch.Generator()
        unknown = (type(one) for one in self._samplers if not type(one).__module__.startswith(KNOWN_SAMPLERS))
        self.own_samplers = tuple(dict.fromkeys(one.__name__ for one in unknown))
        if self.own_samplers:
            name = "batch_sampler" if base.batch_sampler is not None else "sampler"
            vars(base)[name] = SeededOrder(vars(base)[name], self)  # a loader refuses an assignment
        return []


def _samplers(loader: DataLoader[Any]) -> Iterator[Any]:
    waiting, seen = [loader.batch_sampler, loader.sampler], set[int]()
    while waiting:
        sampler = waiting.pop()
        if sampler is None or id(sampler) in seen or isinstance(sampler, SeededOrder):
            continue
        seen.add(id(sampler))
        yield sampler
        waiting += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler", "theirs")]


class SeededCollate:
    """Wrapped collate function; its type marks a loader whose fetchers are seeded.

    It goes wherever the loader's settings go: into its copies, and into its workers.
    """

    def __init__(self, theirs: Callable[[Any], Any], draws: LoaderSeeds) -> None:
        self.theirs, self.draws = theirs, draws

    def __call__(self, samples: list[Any]) -> Any:
        return self.theirs(samples)


class SeededOrder:
    """Wrapper of an unknown sampler or batch sampler: it draws from (seed, epoch, position)."""

    def __init__(self, theirs: Sampler[Any], draws: LoaderSeeds) -> None:
        self.theirs, self._draws = theirs, draws

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["theirs"], name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Return the wrapped class: accelerate asks whether this is a batch sampler."""
        return type(self.theirs)

    def __len__(self) -> int:
        return len(cast(Sized, self.theirs))

    def __iter__(self) -> Iterator[Any]:
        draws = self._draws
        place = (draws.seed, "order", draws.epoch)
        with seeded(seed_of(*place)):
            indices = iter(self.theirs)
        for number in count():
            with seeded(seed_of(*place, number)):
                try:
                    index = next(indices)
                except StopIteration:
                    return
            yield index


class SeededFetcher:
    """Fetcher for one iterator in one process, with the generators seeded for each batch."""

    def __init__(
        self, kind: int, dataset: Dataset[Any], auto_collation: bool, collate: SeededCollate, drop_last: bool
    ) -> None:
        draws, worker = collate.draws, get_worker_info()
        epoch, first = draws.iterate()
        self._in_worker = worker is not None
        worker_id, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        self._collate, self._rank = collate.theirs, draws.rank
        if kind == torch_loader._DatasetKind.Map:
            # Batch k of the epoch goes to worker k modulo their number.
            place: tuple[int | str, ...] = (draws.seed, epoch, draws.rank)
            self._number, self._stride = first + worker_id, workers
            given: Callable[[Any], Any] = self._collate
        else:
            place = (draws.seed, epoch, "worker", worker_id)
            self._number, self._stride = 0, 1
            given = self._collate_of_a_stream
        self._place, self._now = place, self._number
        self._theirs = self._seeded("begin", lambda: _theirs(kind, dataset, auto_collation, given, drop_last))

    def fetch(self, index: object) -> Any:
        """Return the next batch."""
        number, self._number = self._number, self._number + self._stride
        self._now = number
        return self._seeded(number, lambda: self._theirs.fetch(index))

    def _collate_of_a_stream(self, samples: list[Any]) -> Any:
        """Collate with a per-rank seed: samples must be the same on all ranks, but masks may differ."""
        seed_all(seed_of(*self._place, self._now, "rank", self._rank))
        return self._collate(samples)

    def _seeded(self, number: int | str, work: Callable[[], Any]) -> Any:
        seed = seed_of(*self._place, number)
        if self._in_worker:
            seed_all(seed)
            return work()
        with seeded(seed):
            return work()


def _create_fetcher(
    kind: int, dataset: Dataset[Any], auto_collation: bool, collate_fn: Callable[[Any], Any], drop_last: bool
) -> Any:
    if isinstance(collate_fn, SeededCollate):
        return SeededFetcher(kind, dataset, auto_collation, collate_fn, drop_last)
    return _theirs(kind, dataset, auto_collation, collate_fn, drop_last)


# In a worker that was spawned this module is imported with the collate function, before any fetcher is made.
torch_loader._DatasetKind.create_fetcher = staticmethod(_create_fetcher)  # type: ignore[method-assign]
