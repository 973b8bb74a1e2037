"""Turn dates into numbers with a small T5, in the style of Transformers' translation example: with `generate`."""

import random
import sys
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import Fuse
from transformers import (
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from ray_jobs.trainer import make_interactive  # 1

MONTHS = ["january", "february", "march", "april", "may", "june", "july"]
MONTHS += ["august", "september", "october", "november", "december"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-, "


@dataclass
class DataTrainingArguments:
    """Sizes of the data."""

    max_source_length: int = 24
    max_target_length: int = 12
    train_samples: int = 96
    eval_samples: int = 8


def dates(size, seed):
    rng = random.Random(seed)
    pairs = [(rng.randint(1, 28), rng.randrange(12), rng.randint(1900, 2099)) for _ in range(size)]
    written = [f"{MONTHS[month]} {day}, {year}" for day, month, year in pairs]
    return Dataset.from_dict({"text": written, "number": [f"{year}-{m + 1:02}-{day:02}" for day, m, year in pairs]})


def build_tokenizer():
    vocab = {each: index for index, each in enumerate(["<pad>", "</s>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def main():
    parser = HfArgumentParser((DataTrainingArguments, Seq2SeqTrainingArguments))
    data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    tokenizer = build_tokenizer()

    def preprocess_function(examples):
        inputs = tokenizer(examples["text"], max_length=data_args.max_source_length, truncation=True)
        targets = tokenizer(text_target=examples["number"], max_length=data_args.max_target_length, truncation=True)
        inputs["labels"] = targets["input_ids"]
        return inputs

    with training_args.main_process_first(desc="dataset map pre-processing"):
        train_dataset = dates(data_args.train_samples, 0).map(preprocess_function, batched=True)
        eval_dataset = dates(data_args.eval_samples, 1).map(preprocess_function, batched=True)

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = T5ForConditionalGeneration(config)

    def compute_metrics(eval_preds):
        preds, labels = (np.where(each == -100, tokenizer.pad_token_id, each) for each in eval_preds)
        preds = tokenizer.batch_decode(preds, skip_special_tokens=True)
        labels = tokenizer.batch_decode(labels, skip_special_tokens=True)
        exact = [pred.strip() == label.strip() for pred, label in zip(preds, labels, strict=True)]
        return {"exact": float(np.mean(exact)), "gen_len": float(np.mean([len(pred) for pred in preds]))}

    SteerableTrainer = make_interactive(Seq2SeqTrainer)  # 2
    trainer = SteerableTrainer(  # 3
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
        compute_metrics=compute_metrics,
    )
    train_result = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", train_result.metrics)

    predict_results = trainer.predict(eval_dataset, metric_key_prefix="predict", max_length=12, num_beams=2)
    trainer.save_metrics("predict", predict_results.metrics)
    if trainer.is_world_process_zero():
        tokens = np.where(predict_results.predictions == -100, tokenizer.pad_token_id, predict_results.predictions)
        with open(f"{training_args.output_dir}/generated_predictions.txt", "w") as writer:
            writer.write("\n".join(tokenizer.batch_decode(tokens, skip_special_tokens=True)))


if __name__ == "__main__":
    sys.exit(main())
