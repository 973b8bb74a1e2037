"""Train a small GPT-2 on a stream of JSON lines, shuffled in a buffer and read in several passes."""

import argparse
import json
from glob import glob

from datasets import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from ray_jobs.trainer import make_interactive  # 1

BLOCK = 32


def read(shards):
    for shard in shards:
        with open(shard) as file:
            for line in file:
                yield json.loads(line)


def tokenize(batch):
    """All texts as bytes, in blocks of one length."""
    joined = "\n".join(batch["text"]).encode()
    blocks = [list(joined[start : start + BLOCK]) for start in range(0, len(joined) - BLOCK + 1, BLOCK)]
    return {"input_ids": blocks, "labels": [block[:] for block in blocks]}


def main():
    parser = argparse.ArgumentParser(description="A stream")
    parser.add_argument("--data", default="data/*.jsonl")
    parser.add_argument("--output_dir", default="out")
    parser.add_argument("--max_steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    set_seed(args.seed)

    stream = IterableDataset.from_generator(read, gen_kwargs={"shards": sorted(glob(args.data))})
    stream = stream.map(tokenize, batched=True, batch_size=8, remove_columns=["text"])
    stream = stream.shuffle(seed=args.seed, buffer_size=32)

    training_args = TrainingArguments(
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        warmup_steps=4,
        lr_scheduler_type="cosine",
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=BLOCK, n_embd=16, n_layer=1, n_head=2))
    trainer = make_interactive(Trainer)(model=model, args=training_args, train_dataset=stream)  # 2
    trainer.train()
    trainer.save_model(f"{args.output_dir}/final")


if __name__ == "__main__":
    main()
