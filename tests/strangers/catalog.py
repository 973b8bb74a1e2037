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
    args: tuple[str, ...] = ()
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


TRAINER = ("--report_to=none", "--disable_tqdm=true", "--logging_steps=1", "--per_device_train_batch_size=4")

STRANGERS = (
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
        args=("--deepspeed", "--deepspeed_config=ds_config.json"),
        steps=(24,),
        seed=1103,
        asked=((1, 5, rate(value=0.004)), (1, 8, knob("gradient_clipping", 0.5)), (1, 14, knob("weight_decay", 0.1))),
        left=("net.pt",),
        quick=True,
    ),
)
