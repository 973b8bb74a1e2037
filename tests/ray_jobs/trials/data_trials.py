"""A script whose data draws at random wherever data can: in its collator, its sampler, its stream."""

import random
from typing import Any

import numpy
import torch
from transformers import Trainer, TrainerCallback

from tests.ray_jobs.trials.trials import Blocks


class Masks:
    """Masks as those of a masked language model: from each of the global generators."""

    def __init__(self) -> None:
        self.own = numpy.random.default_rng(7)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.stack([row["input_ids"] for row in rows])
        labels = ids.clone()
        labels[torch.rand(ids.shape) >= 0.6] = -100
        labels[:, numpy.random.randint(16)] = -100
        labels[:, random.randrange(16)] = -100
        return {"input_ids": ids, "labels": labels}


class Lengths(Trainer):
    """With a sampler of its own, which shuffles by a global generator."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Shuffled(len(self.train_dataset))


class Shuffled(torch.utils.data.Sampler):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        order = list(range(self.size))
        random.shuffle(order)
        yield from order


class Stream(torch.utils.data.IterableDataset):
    """21 samples in an order that is drawn anew in each pass: five steps, and a batch and a half more."""

    def __iter__(self) -> Any:
        blocks = Blocks(21)
        for index in torch.randperm(21).tolist():
            yield blocks[index]


def library_stream() -> Any:
    from datasets import IterableDataset

    rows = [{key: value.tolist() for key, value in Blocks(21)[index].items()} for index in range(21)]
    return IterableDataset.from_generator(lambda: iter(rows)).shuffle(seed=3, buffer_size=8).with_format("torch")


class Seen(TrainerCallback):
    """What each step logged as its loss, to the last bit, in this life."""

    def __init__(self) -> None:
        self.losses = dict[int, float]()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses[state.global_step] = logs["loss"]


def draws(stage: Any) -> None:
    """Two epochs and a half of ten steps, or three passes of a stream, with whatever draws at random in the data."""
    spec, given, seen = stage.spec, dict[str, Any](), Seen()
    if spec.get("stream"):
        given["data"] = library_stream() if spec["stream"] == "library" else Stream()
    if spec.get("tail"):
        given |= {
            "data": Blocks(21),
            "num_train_epochs": 2,
            "max_steps": -1,
        }  # five steps of an epoch, and a smaller one
    trainer = stage.trainer(
        made_from=Lengths if spec.get("sampler") == "own" else Trainer,
        max_steps=given.pop("max_steps", 24 if "data" not in given else 14),
        gradient_accumulation_steps=2,
        dataloader_num_workers=spec.get("workers", 0),
        train_sampling_strategy="group_by_length" if spec.get("sampler") == "lengths" else "random",
        callbacks=[seen],
        **given,
    )
    trainer.data_collator = Masks()
    stage.run(trainer)
    stage.note_commands()
    stage.noted |= {
        "losses": seen.losses,
        "weights": float(sum(float(each.double().sum()) for each in trainer.model.parameters())),
    }
