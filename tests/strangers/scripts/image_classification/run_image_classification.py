"""Train a small vision transformer on generated pictures, in the style of Transformers' image-classification example.

Pictures are cropped and flipped at random by two loader workers; the best model of all epochs is loaded at the end.
"""

import logging
import sys
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from PIL import ImageDraw
from transformers import (
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from ray_jobs.trainer import make_interactive  # 1

logger = logging.getLogger(__name__)

LABELS = ["circle", "square", "cross"]
SIZE = 16


@dataclass
class DataTrainingArguments:
    """How many pictures there are."""

    train_samples: int = 64
    eval_samples: int = 16


def draw(label, rng):
    """A shape in a random place, size and colour."""
    picture = PILImage.new("RGB", (SIZE + 4, SIZE + 4), tuple(rng.integers(0, 80, 3).tolist()))
    pen, colour = ImageDraw.Draw(picture), tuple(rng.integers(120, 256, 3).tolist())
    x, y = rng.integers(1, 9, 2).tolist()
    end = int(rng.integers(6, 10))
    if label == 0:
        pen.ellipse((x, y, x + end, y + end), fill=colour)
    elif label == 1:
        pen.rectangle((x, y, x + end, y + end), fill=colour)
    else:
        pen.line((x, y, x + end, y + end), fill=colour, width=2)
        pen.line((x, y + end, x + end, y), fill=colour, width=2)
    return picture


def pictures(size, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(LABELS), size).tolist()
    features = Features({"image": Image(), "label": ClassLabel(names=LABELS)})
    return Dataset.from_dict({"image": [draw(label, rng) for label in labels], "label": labels}, features=features)


def to_tensor(picture):
    return torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)


def train_transforms(batch):
    """A random crop, and a random flip."""
    tensors = []
    for picture in batch["image"]:
        left, top = np.random.randint(0, 5, 2)
        tensor = to_tensor(picture.convert("RGB").crop((left, top, left + SIZE, top + SIZE)))
        tensors.append(tensor.flip(2) if torch.rand(1) < 0.5 else tensor)
    batch["pixel_values"] = tensors
    return batch


def val_transforms(batch):
    batch["pixel_values"] = [to_tensor(each.convert("RGB").crop((2, 2, SIZE + 2, SIZE + 2))) for each in batch["image"]]
    return batch


def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    labels = torch.tensor([example["label"] for example in examples])
    return {"pixel_values": pixel_values, "labels": labels}


def compute_metrics(p):
    return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}


def main():
    parser = HfArgumentParser((DataTrainingArguments, TrainingArguments))
    data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    dataset = DatasetDict(train=pictures(data_args.train_samples, 0), validation=pictures(data_args.eval_samples, 1))
    dataset["train"].set_transform(train_transforms)
    dataset["validation"].set_transform(val_transforms)

    config = ViTConfig(
        image_size=SIZE,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.1,
        num_labels=len(LABELS),
        label2id={label: i for i, label in enumerate(LABELS)},
        id2label=dict(enumerate(LABELS)),
    )
    trainer = make_interactive(Trainer)(  # 2
        model=ViTForImageClassification(config),
        args=training_args,
        data_collator=collate_fn,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        compute_metrics=compute_metrics,
    )
    train_result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", train_result.metrics)
    trainer.save_metrics("train", train_result.metrics)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    sys.exit(main())
