"""Plan of the study of interventions: model, arms, rates, seeds, and the interventions that were recorded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ray_jobs.config.run_config import ModelSettings

HERE = Path(__file__).parent
RECORDED = HERE / "interventions.json"

SHAPE = ModelSettings(n_layer=2, n_head=4, n_embd=96, dropout=0.1)
VOCABULARY, BLOCK_TOKENS, BATCH = 1024, 64, 16
STEPS = 300
EVALUATE_EVERY_STEPS, CURVE_EVERY_STEPS = 25, 5
EVALUATED_BLOCKS, FINAL_BLOCKS = 64, 512
WEIGHT_DECAY, CLIPPING = 0.01, 1.0

PRETRAINING_STEPS, PRETRAINING_RATE, PRETRAINING_SEED = 1500, 2e-3, 1
PRETRAINING_BYTES = 6_000_000

START = 1e-5
"""Learning rate that the runs with interventions begin with: of published fine-tunings of GPT-2, too low here."""

SWEEP = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Peaks of a linear decay that the tuned rate is chosen from."""

RECORDED_SEED, TUNING_SEED = 11, 21
SEEDS = (200, 201, 202, 203, 204, 205)
"""Seeds of the study; neither the interventions nor the tuned rate have seen them."""

ARMS = {
    "static": "linear decay from 1e-5, left alone",
    "steered": "linear decay from 1e-5, with the recorded interventions",
    "tuned": "linear decay from the tuned rate, left alone",
}

CODE = ("plan.py", "texts.py", "weights.py", "script.py", "human_rank.py")
"""Files of this package that results depend on."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: an arm from a learning rate, by a seed, from pre-trained weights that are known by their digest."""

    arm: str
    rate: float
    seed: int
    weights: str
    steps: int = STEPS

    def spec(self) -> dict[str, Any]:
        """Return the trial as JSON."""
        return asdict(self)

    @property
    def is_steered(self) -> bool:
        """Return whether the recorded interventions are sent."""
        return self.arm == "steered"

    @property
    def key(self) -> str:
        """Return what identifies its result: the trial, the weights, and the version of the code."""
        return "/".join(
            [
                self.arm,
                f"{self.rate:.6g}",
                str(self.seed),
                str(self.steps),
                self.weights[:12],
                version(self.is_steered),
            ]
        )


@cache
def version(with_interventions: bool = False) -> str:
    """Return a hash of the code that results depend on, and of the interventions if they are sent."""
    digest = hashlib.sha256()
    for name in CODE:
        digest.update((HERE / name).read_bytes())
    if with_interventions:
        digest.update(json.dumps(recorded()["interventions"], sort_keys=True).encode())
    return digest.hexdigest()[:12]


@cache
def recorded() -> Mapping[str, Any]:
    """Return what was recorded: who or what intervened, when, on which seed, and each intervention as a command."""
    read: Mapping[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return read
