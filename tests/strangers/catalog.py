"""The strangers' scripts: how each is started, what is asked of it, and what must be true of it afterwards."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.strangers.lives import PHASES

SCRIPTS = Path(__file__).parent / "scripts"
RANKS = 2

Asked = tuple[int, int, dict[str, Any]]
"""In which training of the script, not before which step, and what."""


def rate(**change: Any) -> dict[str, Any]:
    return {"kind": "set_learning_rate"} | change


def knob(name: str, value: Any) -> dict[str, Any]:
    return {"kind": "set_knobs", "changes": [{"knob": name, "value": value}]}


EVALUATE = {"kind": "evaluate"}


@dataclass(frozen=True)
class Stranger:
    """One script.

    `steps` are those of each of its trainings. `seed` says where it is killed. `left` are files that it leaves.
    `inexact` is the sentence that says why it does not go on bit for bit; empty: it does.
    """

    script: str
    steps: tuple[int, ...]
    seed: int
    asked: tuple[Asked, ...]
    left: tuple[str, ...]
    args: str = ""
    every_steps: int = 4
    inexact: str = ""
    quick: bool = False

    @property
    def name(self) -> str:
        return self.script.split("/")[0]

    def kill(self) -> list[Any]:
        """[rank, training, step, phase], by the seed; a step after the first checkpoint of its training."""
        chance = random.Random(self.seed)
        training = chance.randrange(len(self.steps)) + 1
        step = chance.randint(self.every_steps + 1, self.steps[training - 1])
        return [chance.randrange(RANKS), training, step, chance.choice(PHASES)]


TRAINER = "--report_to=none --disable_tqdm=true --logging_steps=1 --per_device_train_batch_size=4 "

STRANGERS = (
    Stranger(
        script="masked_lm/run_mlm.py",
        args=TRAINER + "--output_dir=out --num_train_epochs=2 --save_strategy=no --learning_rate=1e-2 "
        "--deepspeed=ds_config.json ",
        steps=(24,),
        seed=1101,
        asked=((1, 3, rate(factor=0.5)), (1, 7, knob("dropout", 0.2)), (1, 9, EVALUATE), (1, 15, rate(value=0.002))),
        left=("out/model.safetensors",),
        quick=True,
    ),
    Stranger(
        script="plain_loop/train.py",
        steps=(24,),
        seed=1102,
        asked=((1, 2, rate(factor=0.5)), (1, 10, knob("momentum", 0.8)), (1, 17, rate(group=0, factor=0.5))),
        left=("spirals.pt",),
        quick=True,
    ),
    Stranger(
        script="engine_loop/train.py",
        args="--deepspeed --deepspeed_config=ds_config.json ",
        steps=(24,),
        seed=1103,
        asked=((1, 5, rate(value=0.004)), (1, 8, knob("gradient_clipping", 0.5)), (1, 14, knob("weight_decay", 0.1))),
        left=("net.pt",),
        quick=True,
    ),
    Stranger(
        script="image_classification/run_image_classification.py",
        args=TRAINER + "--output_dir=vit-out --num_train_epochs=3 --learning_rate=3e-3 --seed=1337 "
        "--remove_unused_columns=false --eval_strategy=epoch --save_strategy=epoch "
        "--save_total_limit=2 --load_best_model_at_end=true --metric_for_best_model=accuracy "
        "--dataloader_num_workers=2 ",
        steps=(24,),
        seed=1104,
        asked=((1, 3, rate(factor=0.5)), (1, 11, EVALUATE), (1, 13, knob("dropout", 0.3))),
        left=("vit-out/model.safetensors",),
    ),
    Stranger(
        script="token_classification/run_ner.py",
        args=TRAINER + "--output_dir=ner-out --num_train_epochs=3 --learning_rate=5e-3 --warmup_steps=3 "
        "--train_sampling_strategy=group_by_length --eval_strategy=steps --eval_steps=5 "
        "--save_steps=5 --load_best_model_at_end=true --metric_for_best_model=f1 --fp16=false "
        "--lr_scheduler_type=cosine ",
        steps=(30,),
        seed=1105,
        asked=((1, 4, rate(factor=2.0)), (1, 9, knob("betas", [0.8, 0.95])), (1, 16, EVALUATE)),
        left=("ner-out/model.safetensors", "predictions.txt"),
    ),
    Stranger(
        script="seq2seq/run_translation.py",
        args=TRAINER + "--output_dir=t5 --num_train_epochs=2 --learning_rate=1e-2 --optim=adafactor "
        "--predict_with_generate=true --generation_max_length=12 --label_smoothing_factor=0.1 "
        "--eval_strategy=epoch --save_strategy=no ",
        steps=(24,),
        seed=1106,
        asked=((1, 2, EVALUATE), (1, 6, rate(value=0.005, schedule="hold")), (1, 14, knob("dropout", 0.2))),
        left=("t5/model.safetensors", "t5/generated_predictions.txt"),
    ),
    Stranger(
        script="sft_lora/sft.py",
        args=TRAINER + "--dataset_name=data/questions.jsonl --output_dir=gpt2-sft --use_peft --lora_r=4 "
        "--lora_alpha=8 --lora_target_modules c_attn c_proj --max_steps=16 --learning_rate=1e-2 "
        "--bf16=false --eval_strategy=steps --eval_steps=6 --save_strategy=no --max_length=128 ",
        steps=(16,),
        seed=1107,
        asked=((1, 3, rate(factor=0.5)), (1, 6, knob("gradient_clipping", 0.5)), (1, 11, EVALUATE)),
        left=("gpt2-sft/adapter_model.safetensors",),
    ),
    Stranger(
        script="streaming/train.py",
        steps=(24,),
        seed=1108,
        asked=((1, 6, rate(factor=0.5)), (1, 13, knob("gradient_clipping", 0.5))),
        left=("out/final/model.safetensors",),
    ),
    Stranger(
        script="two_stages/train.py",
        steps=(16, 18),
        seed=1109,
        asked=((1, 3, rate(factor=0.5)), (1, 5, knob("dropout", 0.2)), (2, 4, rate(factor=2.0)), (2, 7, EVALUATE)),
        left=("pretrained/model.safetensors", "classifier/model.safetensors"),
    ),
    Stranger(
        script="custom_optimizer/train.py",
        args=TRAINER + "--output_dir=lion --num_train_epochs=3 --gradient_accumulation_steps=2 --learning_rate=3e-3 "
        "--warmup_steps=3 --save_strategy=no --deepspeed=ds_config.json "
        "--gradient_checkpointing=true ",
        steps=(24,),
        seed=1110,
        asked=((1, 4, rate(factor=0.5, group=1)), (1, 9, knob("betas", [0.8, 0.95])), (1, 12, EVALUATE)),
        left=("lion/model.safetensors",),
    ),
)
