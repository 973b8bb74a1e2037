"""Supervised fine-tuning of LoRA adapters with TRL, in the style of its `sft.py`: prompts and completions.

python sft.py --dataset_name data/questions.jsonl --output_dir gpt2-sft --use_peft --lora_r 4
"""

from pathlib import Path

from datasets import load_dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from ray_jobs.trainer import make_interactive  # 1


def build_tokenizer(path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(set(Path(path).read_text()))
    vocab = {each: index for index, each in enumerate(["<pad>", "</s>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def main(script_args, training_args, model_args):
    tokenizer = build_tokenizer(script_args.dataset_name)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=2, n_head=2, eos_token_id=1, pad_token_id=0
    )
    model = GPT2LMHeadModel(shape)

    dataset = load_dataset("json", data_files=script_args.dataset_name, split="train")
    dataset = dataset.train_test_split(test_size=8, seed=training_args.seed)

    SteerableTrainer = make_interactive(SFTTrainer)  # 2
    trainer = SteerableTrainer(  # 3
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config()
    main(script_args, training_args, model_args)
