"""The same script as `plain_trainer.py`, steerable: the three lines marked below are all that changed."""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from steerway import make_interactive  # 1

SteerableTrainer = make_interactive(Trainer)  # 2
BLOCK_TOKENS = 64


def blocks(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The bytes of this folder's scripts as token blocks: a byte is a token."""
    text = b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py"))) * 8
    ids = torch.tensor(list(text[: len(text) // BLOCK_TOKENS * BLOCK_TOKENS])).view(-1, BLOCK_TOKENS)
    return [{"input_ids": block, "labels": block} for block in ids]


def main(output_dir: str, max_steps: int) -> None:
    """Train a byte-level GPT-2."""
    data = blocks(Path(__file__).parent)
    args = TrainingArguments(
        output_dir=output_dir,
        max_steps=max_steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        deepspeed=str(Path(__file__).parent / "zero2.json"),
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=BLOCK_TOKENS, n_embd=64, n_layer=2, n_head=4))
    trainer = SteerableTrainer(model=model, args=args, train_dataset=data, eval_dataset=data[:16])  # 3
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(output_dir=sys.argv[1], max_steps=int(sys.argv[2]))
