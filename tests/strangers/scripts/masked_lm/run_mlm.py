"""Train a small BERT to fill in masked words, in the style of Transformers' language-modeling examples."""

import logging
import math
import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from steerway import make_interactive  # 1

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model, from scratch."""

    tokenizer_name: str = "tokenizer"
    hidden_size: int = 16
    num_hidden_layers: int = 2


@dataclass
class DataTrainingArguments:
    """The text, and how it is cut and masked."""

    train_file: str = "data/train.txt"
    validation_file: str = "data/validation.txt"
    max_seq_length: int = 16
    mlm_probability: float = field(default=0.15, metadata={"help": "Ratio of tokens to mask."})


def main() -> int:
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(sys.stdout)])
    set_seed(training_args.seed)

    files = {"train": data_args.train_file, "validation": data_args.validation_file}
    raw_datasets = load_dataset("text", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name)

    def tokenize_function(examples):
        return tokenizer(
            examples["text"], truncation=True, max_length=data_args.max_seq_length, return_special_tokens_mask=True
        )

    with training_args.main_process_first(desc="dataset map tokenization"):
        tokenized = raw_datasets.map(tokenize_function, batched=True, remove_columns=["text"])

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=model_args.hidden_size,
        num_hidden_layers=model_args.num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    model = BertForMaskedLM(config)

    InteractiveTrainer = make_interactive(Trainer)  # 2
    trainer = InteractiveTrainer(  # 3
        model=model,
        args=training_args,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=data_args.mlm_probability),
    )

    train_result = trainer.train()
    trainer.save_model()
    metrics = train_result.metrics
    metrics["train_samples"] = len(tokenized["train"])
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()

    metrics = trainer.evaluate()
    metrics["perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
