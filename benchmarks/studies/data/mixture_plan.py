"""Plan of the study of automatic mixtures: two texts, the model, the arms, seeds and lengths, set before its runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.studies.human.texts import WIKITEXT
from control_plane import config_text
from control_plane.agent.rules import mixture, mixture_formulas, power_law
from control_plane.core.model.errors import NotFound

ARMS = {
    "ado": "ADO",
    "odm": "ODM (EXP3)",
    "natural": "natural: shares of the texts' sizes",
    "uniform": "uniform",
}
SEEDS = (1, 2, 3, 4, 5)
"""Seeds of weights, data order and the noisy text's words. Seed 0 was used to choose the length, and is not counted."""

CLEAN, NOISY = "clean", "noisy"
NOISY_COPIES = 3
"""The noisy text is so many times as long as the clean one: the natural shares are 0.25 and 0.75."""

RECORD_WORDS = 32
HELD_OUT_BYTES = 60_000
RANKS, SAMPLES_PER_RANK = 2, 8
EVALUATE_EVERY, MEASURED_EVERY = 100, 10

MODEL = {"n_layer": 2, "n_head": 4, "n_embd": 64, "dropout": 0.0}
DATA = {"source": "wikitext2", "block_size": 64, "vocab_size": 1024, "max_eval_bytes": HELD_OUT_BYTES}
TRAINING = {
    "per_device_train_batch_size": SAMPLES_PER_RANK,
    "per_device_eval_batch_size": 32,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "logging_steps": MEASURED_EVERY,
    "eval_strategy": "steps",
    "eval_steps": EVALUATE_EVERY,
}


@dataclass(frozen=True)
class Size:
    """Length of a run, and the settings of the policies that are scaled to it."""

    steps: int
    every_steps: int
    least_batches: int
    fit_every_steps: int

    def agent(self, arm: str) -> dict[str, Any]:
        """Return the section `agent` of an arm's config."""
        mixing = {"least_batches": self.least_batches, "fit_every_steps": self.fit_every_steps}
        return {"policy": arm, "every_steps": self.every_steps, "mixing": mixing}


WHOLE = Size(steps=500, every_steps=20, least_batches=40, fit_every_steps=80)
QUICK = Size(steps=120, every_steps=10, least_batches=20, fit_every_steps=40)


def key_of(arm: str, seed: int, size: Size) -> str:
    """Return the key of a run's result: arm, seed, length, and the version of what results depend on."""
    return f"{arm} {seed} {size} {version()}"


@cache
def version() -> str:
    """Return a hash of this plan and of the rules."""
    digest = hashlib.sha256()
    for path in (__file__, mixture.__file__, mixture_formulas.__file__, power_law.__file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:12]


def words_of(split: str) -> list[str]:
    """Return the words of `valid` or `test`. Raises `NotFound` without Wikitext-2."""
    path = WIKITEXT / f"{split}.txt"
    if not path.is_file():
        raise NotFound(f"the study trains on Wikitext-2, and there is no {path}")
    return path.read_text(encoding="utf-8").split()


def noisy_words(words: list[str], seed: int) -> list[str]:
    """Return the same words in a random order, by the seed: every word as frequent as it is, and nothing else."""
    mixed = list(words)
    Random(f"noisy {seed}").shuffle(mixed)
    return mixed


def write(folder: Path, arm: str, seed: int, size: Size) -> Path:
    """Write the texts and the config of a run; return the config's path."""
    clean = words_of("valid")
    noisy = [word for copy in range(NOISY_COPIES) for word in noisy_words(clean, NOISY_COPIES * seed + copy)]
    for name, words in ((CLEAN, clean), (NOISY, noisy)):
        (folder / f"{name}.jsonl").write_text(_records(words), encoding="utf-8")
    # The tokenizer is trained on the clean text; the model is evaluated on another one of its kind.
    (folder / "train.txt").write_text(" ".join(clean), encoding="utf-8")
    (folder / "valid.txt").write_text(" ".join(words_of("test")), encoding="utf-8")
    (folder / "zero2.json").write_text(json.dumps(DEEPSPEED), encoding="utf-8")
    path = folder / "mixture.yaml"
    path.write_text(config_text.to_yaml(config_of(folder, arm, seed, size)), encoding="utf-8")
    return path


def _records(words: list[str]) -> str:
    starts = range(0, len(words) - RECORD_WORDS + 1, RECORD_WORDS)
    return "".join(json.dumps({"text": " ".join(words[at : at + RECORD_WORDS])}) + "\n" for at in starts)


DEEPSPEED = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 1},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
    },
    "steps_per_print": 1_000_000,
}


def config_of(folder: Path, arm: str, seed: int, size: Size) -> Mapping[str, Any]:
    """Return the config of a run whose texts lie in `folder`."""
    weights = {CLEAN: 1 / (1 + NOISY_COPIES), NOISY: NOISY_COPIES / (1 + NOISY_COPIES)}
    return {
        "name": f"mixture-{arm}-{seed}",
        "seed": seed,
        "scaling": {"ranks": RANKS, "cpus_per_rank": 1, "use_gpu": False},
        "workload": {"kind": "gpt2"},
        "model": dict(MODEL),
        "data": DATA | {"path": str(folder)},
        "training": TRAINING | {"max_steps": size.steps},
        "deepspeed": "zero2.json",
        "checkpoint": {"every_steps": 0},
        # On a busy machine a slow rank is no dead one.
        "recovery": {"hang_after_s": 120, "start_timeout_s": 300, "spares": 0},
        "sources": {
            name: {"format": "jsonl", "path": f"{name}.jsonl", "weight": weight, "fields": {"text": "text"}}
            for name, weight in weights.items()
        },
        "limits": {"mixture/*": {"roles": ["operator", "admin", "agent"]}},
        "agent": size.agent(arm),
    }
