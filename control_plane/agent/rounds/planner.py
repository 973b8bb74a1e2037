"""Planner of rounds: a seeded local search over the learning rate and the schedule, or a model that reads the memory.

The search goes from the best round so far: up and down by a factor, which is halved (in the logarithm) when neither was
better; now and then another schedule at the best rate. It follows from the memory and the seed alone, so that a series
that was interrupted continues as it would have.
"""

import math
import random
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field

from control_plane.agent.asking.answers import UNREADABLE, Why, check_no_key_twice
from control_plane.agent.rounds.memory import SCHEDULES, Plan, Round, Schedule
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAX_LEARNING_RATE, Finite

FIRST_FACTOR = 4.0
LEAST_FACTOR = 1.05
SAME = 0.02
"""Difference of the logarithms below which two rates are the same plan."""

MAX_FACTOR = 1000.0
"""A model may plan a rate within this factor of the config's."""

TRIES_SCHEDULE = 0.25
MAX_TOLD = 30
"""Rounds that a model is told of: the best ones and the newest."""

INSTRUCTIONS = """\
You plan training runs of one neural network, one after the other, to reach the lowest score. You choose the learning
rate and the schedule; all else stays. The rounds so far follow, as numbers.
Answer with one JSON object and nothing else:
{"learning_rate": NUMBER, "schedule": "linear" | "cosine" | "constant_with_warmup", "reason": "one short sentence"}"""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "learning_rate": {"type": "number"},
        "schedule": {"type": "string", "enum": list(SCHEDULES)},
        "reason": {"type": "string"},
    },
    "required": ["learning_rate", "schedule", "reason"],
    "additionalProperties": False,
}


class Asked(Protocol):
    """A model that answers a chat, see `model.ChatModel`."""

    @property
    def name(self) -> str:
        """Return the model's name."""
        ...

    def ask(self, chat: list[dict[str, str]], schema: dict[str, Any]) -> str:
        """Return the text of the answer. Raises `ModelUnavailable`."""
        ...


class _Planned(Message):
    learning_rate: Annotated[Finite, Field(gt=0, le=MAX_LEARNING_RATE)]
    schedule: Schedule
    reason: Why = ""


def plan_by_rule(rounds: Sequence[Round], rate: float, schedule: Schedule, seed: int) -> tuple[Plan, str]:
    """Return the next plan of the local search, and why.

    Args:
        rounds: those that have ended, the reference first.
        rate, schedule: of the config, which the reference ran with.
        seed: of the search.
    """
    tried = [(_rate(each, rate), each.begun.plan.schedule or schedule, _cost(each)) for each in rounds]
    best_rate, best_schedule, best = min(tried, key=lambda each: each[2], default=(rate, schedule, math.inf))
    drawn = random.Random(f"{seed}/{len(rounds)}")
    others = [name for name in SCHEDULES if name != best_schedule and not _known(tried, best_rate, name)]
    if len(rounds) > 2 and others and drawn.random() < TRIES_SCHEDULE:
        chosen: Any = drawn.choice(others)
        return Plan(learning_rate=_rounded(best_rate), schedule=chosen), f"{chosen} at the best rate so far"
    factor = FIRST_FACTOR
    # A diverged or failed best says that the rate was too high, so the first way to go is down.
    ways = [1 / factor, factor] if best == math.inf or drawn.random() < 0.5 else [factor, 1 / factor]
    while factor > LEAST_FACTOR:
        for way in ways:
            towards = factor if way > 1 else 1 / factor
            wanted = best_rate * towards
            if wanted <= MAX_LEARNING_RATE and not _known(tried, wanted, best_schedule):
                return (
                    Plan(learning_rate=_rounded(wanted), schedule=best_schedule),
                    f"lr x {towards:.3g} from the best round",
                )
        factor = math.sqrt(factor)
    wanted = best_rate * math.exp(drawn.uniform(-0.2, 0.2))
    return Plan(learning_rate=_rounded(wanted), schedule=best_schedule), "near the best round"


def plan_by_model(model: Asked, rounds: Sequence[Round], rate: float, schedule: Schedule) -> tuple[Plan, str]:
    """Return the plan of a model, and its reason (untrusted text). Raises `Unavailable` without a usable answer."""
    chat = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": describe(rounds, rate, schedule)}]
    text = model.ask(chat, SCHEMA)
    try:
        check_no_key_twice(text)
        planned = _Planned.model_validate_json(text)
    except UNREADABLE:
        raise Unavailable(f"{model.name} did not answer with a plan") from None
    if not rate / MAX_FACTOR <= planned.learning_rate <= rate * MAX_FACTOR:
        raise Unavailable(f"{model.name} planned a learning rate of {planned.learning_rate:g}, which is out of bounds")
    return Plan(learning_rate=float(planned.learning_rate), schedule=planned.schedule), planned.reason


def describe(rounds: Sequence[Round], rate: float, schedule: Schedule) -> str:
    """Return the rounds as lines of numbers, at most `MAX_TOLD`."""
    best = sorted(rounds, key=_cost)[: MAX_TOLD // 2]
    told = [each for i, each in enumerate(rounds) if each in best or i >= len(rounds) - MAX_TOLD // 2]
    return "\n".join(
        f"round {each.begun.round}: lr {_rate(each, rate):.5g}, {each.begun.plan.schedule or schedule}, "
        f"score {'none: it diverged or failed' if each.score is None else f'{each.score:.5g}'}, "
        f"{each.ended.actions if each.ended else 0} changes by its agent"
        for each in told
    )


def _rate(each: Round, rate: float) -> float:
    return each.begun.plan.learning_rate or rate


def _cost(each: Round) -> float:
    return math.inf if each.score is None else each.score


def _known(tried: Sequence[tuple[float, str, float]], rate: float, schedule: str) -> bool:
    return any(name == schedule and abs(math.log(rate / known)) < SAME for known, name, _ in tried)


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")
