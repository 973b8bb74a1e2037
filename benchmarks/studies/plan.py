"""Plan of the agent's study: arms, starts, seeds, the budget of tuning, and the guard that all arms pass."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import benchmarks.studies
from control_plane.agent import rules
from control_plane.agent.policy import AgentBounds
from control_plane.core.model.intents.grants import Grants, KnobGrant

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
STEPS, BATCH, WARM_UP_STEPS = 200, 16, 20
EVALUATE_EVERY_STEPS = 10
CURVE_EVERY_STEPS = 5
COOL_DOWN_STEPS = 3

STARTS = (0.01, 0.1, 1.0, 10.0, 30.0, 100.0)
"""Learning rates that the runs begin with, as multiples of the tuned one."""

BAD_STARTS = (0.01, 0.1, 10.0, 30.0, 100.0)
PUBLISHED_START = 5e-3
"""Start of the published study (Interactive Training 2), as a rate."""

SWEEP = (1e-3, 3e-3, 6e-3, 1e-2, 3e-2)
"""Peaks of a cosine schedule that the tuned rate is chosen from."""

SEEDS = tuple(range(100, 108))
"""Seeds of the study; what was tuned or learned was tuned or learned on others."""

TUNING_SEEDS = (1, 2)
"""Of the sweep; the options of rules are chosen on the first one."""

TUNING_STARTS = (0.01, 10.0, 100.0)
FIRST_LEARNING_SEED = 1000

GUARD = AgentBounds(
    min_lr=1e-6, max_lr=1.0, max_drop=1e6, cooldown_steps=COOL_DOWN_STEPS, max_changes=STEPS // COOL_DOWN_STEPS
)
"""Wider than the autopilot's own bounds, which would forbid the way back from a start that is 100 times too high."""

GRANTS = Grants(
    knobs={
        "lr": KnobGrant(max_factor=1000, min=GUARD.min_lr, max=GUARD.max_lr, cool_down_steps=COOL_DOWN_STEPS),
        "gradient_clipping": KnobGrant(max_factor=100, min=1e-3, max=1e3, cool_down_steps=COOL_DOWN_STEPS),
    }
)

Schedule = Literal["constant", "cosine"]
Options = Mapping[str, float | int | bool]


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm. `rule`: the rule of the autopilot, None without one; `every`: steps from one look to the next.

    `evaluates`: whether the run evaluates as it trains, which takes time; the end is evaluated in any case.
    `configs`: options of the rule that are tried on the tuning seeds, the first being the rule's own; `module`: the
    file of the rule, whose text is part of the version of the results.
    """

    name: str
    label: str
    rule: str | None = None
    every: int = 1
    schedule: Schedule = "constant"
    module: str = ""
    configs: tuple[Options, ...] = ({},)
    evaluates: bool = False


def _greedy(factor: float, patience: int, window_size: int) -> Options:
    return {"factor": factor, "patience": patience, "window_size": window_size}


ARMS = {
    arm.name: arm
    for arm in (
        Arm("nothing", "do nothing: constant from the start"),
        Arm("cosine", "cosine from the start", schedule="cosine"),
        Arm(
            "greedy-shipped",
            "GreedyLR as Transformers ships it, at evaluations",
            "greedy-shipped",
            1,
            module="greedy",
            evaluates=True,
        ),
        Arm(
            "greedy-published",
            "GreedyLR as published, every step, tuned",
            "greedy-published",
            1,
            module="greedy",
            configs=(
                _greedy(0.95, 10, 50),
                _greedy(0.8, 10, 50),
                _greedy(0.5, 10, 50),
                _greedy(0.8, 4, 10),
                _greedy(0.5, 4, 10),
                _greedy(0.5, 4, 25),
            ),
        ),
        Arm(
            "plateau",
            "reduce on plateau, at evaluations, tuned",
            "plateau",
            1,
            module="plateau",
            evaluates=True,
            configs=(
                {"factor": 0.1, "patience": 10},
                {"factor": 0.1, "patience": 2},
                {"factor": 0.1, "patience": 1},
                {"factor": 0.5, "patience": 2},
                {"factor": 0.5, "patience": 1},
                {"factor": 0.5, "patience": 0},
            ),
        ),
        Arm("zclip", "adaptive clipping only (ZClip)", "zclip", 5, module="zclip"),
        Arm("random", "random double, halve, keep", "random", 10, module="simple"),
        Arm("learned", "learned linear policy", "learned", 10, module="learned"),
        Arm("guarded", "our guarded rule (`--policy rule`)", "guarded", 10, module="guarded"),
        Arm(
            "probing",
            "our probing rule, tuned",
            "probing",
            4,
            module="probing",
            configs=(
                {"multiple": 8.0, "fall": 0.1, "up": 2.0},
                {"multiple": 4.0, "fall": 0.1, "up": 2.0},
                {"multiple": 8.0, "fall": 0.06, "up": 2.0},
                {"multiple": 16.0, "fall": 0.06, "up": 2.0},
                {"multiple": 4.0, "fall": 0.1, "up": 3.0},
                {"multiple": 8.0, "fall": 0.1, "up": 3.0},
            ),
        ),
    )
}

CHOSEN: Mapping[str, Options] = {
    "greedy-published": _greedy(0.5, 10, 50),
    "plateau": {"factor": 0.5, "patience": 2},
    "probing": {"multiple": 4.0, "fall": 0.1, "up": 3.0},
}
"""Options that the last whole study has chosen: what `--quick` takes instead of tuning."""

MODEL = Arm("model", "a language model, double, halve, keep", "model", 25, evaluates=True)
ORACLE = Arm("oracle", "oracle: cosine from the tuned rate", schedule="cosine")


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: an arm from a learning rate, by a seed. `options`: of its rule; `explores`: a learner draws actions."""

    arm: str
    rate: float
    seed: int
    options: Options = field(default_factory=dict)
    steps: int = STEPS
    explores: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the trial as JSON."""
        return asdict(self)

    @property
    def of(self) -> Arm:
        """Return its arm."""
        return arm_of(self.arm)

    @property
    def key(self) -> str:
        """Return what identifies its result: arm, rate, seed, length, options, and the version of the code."""
        options = json.dumps(dict(self.options), sort_keys=True)
        return "/".join(
            [self.arm, f"{self.rate:.6g}", str(self.seed), str(self.steps), options, version(self.arm, self.explores)]
        )


def arm_of(name: str) -> Arm:
    """Return an arm by its name."""
    return {**ARMS, MODEL.name: MODEL, ORACLE.name: ORACLE}[name]


@cache
def version(name: str, explores: bool = False) -> str:
    """Return a hash of the code that an arm's results depend on: the training, the pilot and the rule."""
    arm = arm_of(name)
    own, of_rules = Path(benchmarks.studies.__file__).parent, Path(rules.__file__).parent
    files = [own / "corpus.py", own / "pilot.py", own / "agent_rank.py"]
    if arm.module:
        files += [of_rules / "rule.py", of_rules / f"{arm.module}.py"]
    if arm.name == "learned" and not explores:
        files.append(of_rules / "learned.json")
    facts = json.dumps([STEPS, BATCH, WARM_UP_STEPS, EVALUATE_EVERY_STEPS, COOL_DOWN_STEPS, arm.every])
    digest = hashlib.sha256(facts.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
