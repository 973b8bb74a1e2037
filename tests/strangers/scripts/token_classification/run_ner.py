"""Find names of people and places with a small BERT, in the style of Transformers' token-classification example.

Samples of like length are batched together, and training ends early when the F1 of the evaluation no longer grows.
"""

import random
import sys

import numpy as np
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    EarlyStoppingCallback,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ray_jobs.trainer import make_interactive  # 1

LABELS = ["O", "B-PER", "I-PER", "B-LOC"]
FIRST = ["Anna", "Boris", "Clara", "David", "Edith", "Frank"]
LAST = ["Miller", "Novak", "Olsen", "Petrov"]
PLACES = ["Bergen", "Lisbon", "Prague", "Vienna", "Oslo"]
PATTERNS = [
    ["PER", "lives", "in", "LOC"],
    ["on", "monday", "PER", "went", "from", "LOC", "to", "LOC", "with", "PER"],
    ["LOC", "is", "where", "PER", "was", "born"],
    ["PER", "and", "PER", "met", "again", "after", "many", "years", "near", "the", "harbour", "of", "LOC"],
    ["nobody", "knows", "why"],
]


def sentence(rng):
    tokens, tags = [], []
    for word in rng.choice(PATTERNS):
        if word == "PER":
            tokens += [rng.choice(FIRST), rng.choice(LAST)]
            tags += [1, 2]
        elif word == "LOC":
            tokens.append(rng.choice(PLACES))
            tags.append(3)
        else:
            tokens.append(word)
            tags.append(0)
    return tokens, tags


def load(size, seed):
    rng = random.Random(seed)
    tokens, tags = zip(*(sentence(rng) for _ in range(size)), strict=True)
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=LABELS))})
    return Dataset.from_dict({"tokens": list(tokens), "ner_tags": list(tags)}, features=features)


def build_tokenizer():
    """Words are cut into known pieces: first letters, and letters that go on."""
    letters = sorted(set("".join([*FIRST, *LAST, *PLACES, *(word for each in PATTERNS for word in each)])))
    pieces = ["[PAD]", "[UNK]", *letters, *(f"##{letter}" for letter in letters), *sorted(FIRST)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def compute_metrics(p):
    """F1 of all tags but `O`."""
    predictions = np.argmax(p.predictions, axis=2)
    seen = p.label_ids != -100
    found = (predictions == p.label_ids) & seen & (p.label_ids > 0)
    guessed, there = ((predictions > 0) & seen).sum(), ((p.label_ids > 0) & seen).sum()
    return {"f1": float(2 * found.sum() / max(guessed + there, 1))}


def main():
    (training_args,) = HfArgumentParser((TrainingArguments,)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    tokenizer = build_tokenizer()

    def tokenize_and_align_labels(examples):
        tokenized = tokenizer(examples["tokens"], truncation=True, max_length=64, is_split_into_words=True)
        labels = []
        for i, label in enumerate(examples["ner_tags"]):
            previous_word_idx, label_ids = None, []
            for word_idx in tokenized.word_ids(batch_index=i):
                label_ids.append(-100 if word_idx is None or word_idx == previous_word_idx else label[word_idx])
                previous_word_idx = word_idx
            labels.append(label_ids)
        tokenized["labels"] = labels
        return tokenized

    with training_args.main_process_first(desc="dataset map pre-processing"):
        train_dataset, eval_dataset = (
            each.map(tokenize_and_align_labels, batched=True, remove_columns=each.column_names)
            for each in (load(80, 0), load(24, 1))
        )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=len(LABELS),
    )
    trainer = make_interactive(Trainer)(  # 2
        model=BertForTokenClassification(config),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    predictions = trainer.predict(eval_dataset).predictions.argmax(axis=2)
    if trainer.is_world_process_zero():
        np.savetxt("predictions.txt", predictions, fmt="%d")


if __name__ == "__main__":
    sys.exit(main())
