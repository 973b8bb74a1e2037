"""Trials of the health checks: healthy runs, and runs with one planted fault; each by a seed.

A fault is planted at the onset step and stays, unless it is one batch or one step. `LATEST_STEPS` is the bound on the
steps from the onset to the alert, with the settings and intervals of the trials.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from control_plane.core.health.latency import LATEST
from control_plane.core.model.health import AlertKind

STEPS = 640
ONSET = STEPS // 2
"""Half of each run is clean. The onset is this plus up to `ONSET_SPREAD` steps, by the seed."""

ONSET_SPREAD = 40
HOOK_STEPS = 20
EVALUATE_EVERY_STEPS = 20
SAVE_EVERY_STEPS = 40

TUNING_SEEDS = range(200)
"""Seeds that thresholds may be tuned on; figures come from others."""

FIRST_SEED = 200

ModelName = Literal["transformer", "classifier"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. `stage`: ZeRO stage of a DeepSpeed engine; None: a plain loop. `fault`: None for a healthy run."""

    name: str
    model: ModelName
    seed: int
    rate: float
    ranks: int = 1
    stage: int | None = None
    fault: AlertKind | None = None
    onset: int = 0
    steps: int = STEPS

    def spec(self) -> dict[str, Any]:
        """Return the trial as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fault:
    """How a kind of fault is planted. `models`: those that can have it; `ranks`: that it takes; `latest_steps`: the
    bound on the steps from its onset to its alert; `rate` and `stage`: of its runs, if not those of the others."""

    planted: str
    latest_steps: int
    models: tuple[ModelName, ...] = ("transformer", "classifier")
    ranks: int = 1
    stage: int | None = None
    rate: float | None = None
    steps: int = STEPS


GATHER_STEPS = 10
"""Steps between gathers that carry layers' norms."""

ARRIVAL_STEPS = 1
"""Steps from a gather to the boundary that awaits it: what it says is judged with the signs of the next step."""

_EVALUATIONS = LATEST["forgetting"].count * EVALUATE_EVERY_STEPS
_HOOKS = LATEST["dead_units"].count * HOOK_STEPS
_LAYERS = LATEST["vanishing_layer"].count * GATHER_STEPS + ARRIVAL_STEPS

FAULTS: Mapping[AlertKind, Fault] = {
    "non_finite": Fault("one batch holds a NaN", 1, models=("classifier",)),
    "gradient_overflow": Fault("a bf16 engine skips a step: its gradient is infinite", 1, ("transformer",), stage=1),
    "loss_spike": Fault("three batches with labels of other samples, inputs 30 times as large", 2, ("classifier",)),
    "gradient_spike": Fault("the gradients of two steps are 12 times the largest of 128 before", 2),
    "slow_divergence": Fault("the gradient has the wrong sign: the training climbs", 256),
    "plateau": Fault("the learning rate is 0, before the loss is low", 440, ("transformer",), rate=2e-4, steps=960),
    "forgetting": Fault("the data change; the held-out loss is of the old ones", _EVALUATIONS, ("transformer",)),
    "dead_units": Fault("a layer's biases are so low that its units never fire", _HOOKS),
    "vanishing_layer": Fault("the gradient of one block is multiplied by 1e-9", _LAYERS),
    "exploding_layer": Fault(
        "the gradient of one block is 1000 times its median until then, and at least 12 times its largest", _LAYERS
    ),
    "attention_blow_up": Fault("queries and keys of a block are multiplied by 20", _HOOKS, ("transformer",)),
    "straggling_rank": Fault("one rank's forward pass takes 0.1 s longer, for 60 steps", 2 * GATHER_STEPS, ranks=2),
    "stalled_phase": Fault("one evaluation takes 1.5 s", EVALUATE_EVERY_STEPS + 1),
    "data_starvation": Fault("each batch comes 0.08 s late, for 60 steps", LATEST["data_starvation"].count),
    "memory_near_limit": Fault("each step leaks 8 MiB, from 40 MiB below the threshold", 10),
    "checkpoint_too_old": Fault("no save succeeds any more: the disk is full", 3 * SAVE_EVERY_STEPS),
}
"""Kinds that are planted. Not planted: `loss_scale_exhausted` (no fp16 on these CPUs) and `bad_dynamics`."""

RATES: Mapping[ModelName, tuple[float, ...]] = {"transformer": (1e-3, 3e-3, 6e-3), "classifier": (1e-3, 3e-3, 1e-2)}


def faulty(kind: AlertKind, runs: int, first_seed: int = FIRST_SEED) -> list[Trial]:
    """Return the runs of one kind of fault, over models and rates, each with an onset of its own."""
    fault, trials = FAULTS[kind], []
    for seed in range(first_seed, first_seed + runs):
        model = fault.models[seed % len(fault.models)]
        rates = RATES[model]
        onset = ONSET + random.Random(seed).randrange(ONSET_SPREAD)
        rate = fault.rate or rates[seed % len(rates)]
        name = f"{kind}-{seed}"
        trials.append(Trial(name, model, seed, rate, fault.ranks, fault.stage, kind, onset, fault.steps))
    return trials


def healthy(runs: int, first_seed: int = FIRST_SEED) -> list[Trial]:
    """Return healthy runs over models, rates, ZeRO stages 0 to 3 and a plain loop, one and two ranks."""
    trials: list[Trial] = []
    for index in range(runs):
        model: ModelName = ("transformer", "classifier")[index % 2]
        stage = (None, 0, 1, 2, 3)[index // 2 % 5]
        rate = RATES[model][index // 10 % 3]
        ranks = 1 if stage is None else 2
        trials.append(Trial(f"healthy-{first_seed + index}", model, first_seed + index, rate, ranks, stage))
    return trials
