"""Two stages: a small GPT-2 learns the language of a corpus, is saved, and becomes a classifier of its sentences."""

import sys
from pathlib import Path

import click
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ray_jobs.trainer import make_interactive  # 1

Trainer = make_interactive(Trainer)  # 2


def build_tokenizer(sentences):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for sentence in sentences for word in sentence.lower().rstrip(".").split()})
    vocab = {word: index for index, word in enumerate(["<pad>", "<unk>", ".", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def arguments(output_dir, **given):
    return TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=3,
        **given,
    )


def pretrain(sentences, tokenizer, output):
    data = Dataset.from_dict({"text": sentences})
    data = data.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    shape = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    trainer = Trainer(
        model=GPT2LMHeadModel(shape),
        args=arguments("stage1-logs", num_train_epochs=2, learning_rate=5e-3),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(output)
    trainer.accelerator.wait_for_everyone()


def classify(sentences, tokenizer, pretrained, output):
    """Whether a sentence says where it was: by its preposition."""
    labels = [int(any(f" {word} " in sentence for word in ("by", "near", "at"))) for sentence in sentences]
    data = Dataset.from_dict({"text": sentences, "label": labels})
    data = data.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    data = data.train_test_split(test_size=0.25, seed=3)
    model = GPT2ForSequenceClassification.from_pretrained(pretrained, num_labels=2)
    trainer = Trainer(
        model=model,
        args=arguments("stage2-logs", num_train_epochs=3, learning_rate=1e-3, eval_strategy="epoch"),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model(output)


@click.command()
@click.option("--corpus", default="data/corpus.txt")
@click.option("--pretrained", default="pretrained")
@click.option("--output", default="classifier")
def main(corpus, pretrained, output):
    set_seed(3)
    sentences = Path(corpus).read_text().splitlines()
    tokenizer = build_tokenizer(sentences)
    pretrain(sentences, tokenizer, pretrained)
    classify(sentences, tokenizer, pretrained, output)


if __name__ == "__main__":
    sys.exit(main())
