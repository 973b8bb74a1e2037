"""Spending of a run's agent on its model: the budgets, what was spent, and the lines of the ledger that says so.

The agent writes the ledger (`control_plane.agent.ledger`), the gateway reads it. Both fold the same lines: a call is
first reserved with the most that it can cost, then settled with what the endpoint reported. A call that was never
settled counts in full.
"""

import json
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, ValidationError

from control_plane.config import Settings
from control_plane.core.model.errors import Damaged
from control_plane.core.model.intent_base import Message

MAX_TOKENS_OF_A_CALL = 10**9
PER_TOKENS = 1_000_000
"""Prices are for so many tokens, as providers quote them."""


class Budgets(Message):
    """Budgets of one run's agent over all its starts. None: no budget of this kind, or, of a price, not known.

    max_cost: in the currency of the prices; kept only where both prices are known.
    prompt_price, completion_price: for a million tokens.
    """

    max_calls: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    max_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    prompt_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    completion_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what a call costs; 0.0 where the prices are not known."""
        if self.prompt_price is None or self.completion_price is None:
            return 0.0
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / PER_TOKENS

    def reason_against(self, spent: "Spent", prompt_tokens: int, completion_tokens: int) -> str | None:
        """Return why a call of at most so many tokens would exceed a budget, or None."""
        if self.max_calls is not None and spent.calls + 1 > self.max_calls:
            return f"the budget of {self.max_calls} calls is used up"
        tokens = prompt_tokens + completion_tokens
        if self.max_tokens is not None and spent.tokens + tokens > self.max_tokens:
            return (
                f"the budget of {self.max_tokens} tokens is used up ({spent.tokens} spent, a call takes up to {tokens})"
            )
        cost = self.cost(prompt_tokens, completion_tokens)
        if self.max_cost is not None and spent.cost + cost > self.max_cost:
            return (
                f"the budget of {self.max_cost:g} for the model is used up ({spent.cost:.4f} spent, a call costs up to "
                f"{cost:.4f})"
            )
        return None


class Spent(Message):
    """Spending of an agent on its model. `open`: calls without a reported usage, counted in full."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    open: int = 0


class LedgerLine(Message):
    """One line of a ledger. `call` numbers the calls of a run, from 1."""

    type: Literal["reserved", "settled"]
    call: int = Field(ge=1)
    prompt_tokens: int = Field(ge=0, le=MAX_TOKENS_OF_A_CALL)
    completion_tokens: int = Field(ge=0, le=MAX_TOKENS_OF_A_CALL)
    cost: float = Field(ge=0, allow_inf_nan=False)

    def text(self) -> str:
        """Return the line as it stands in the file."""
        return json.dumps(self.model_dump(), separators=(",", ":")) + "\n"


def fold_ledger(lines: Iterable[str], where: str) -> Spent:
    """Return what the lines of a ledger say was spent.

    Raises `Damaged` if a line cannot be read or contradicts those before it: no call is made on a guess.
    """
    calls: dict[int, LedgerLine] = {}
    for number, text in enumerate(lines, start=1):
        try:
            line = LedgerLine.model_validate_json(text)
        except ValidationError:
            raise Damaged(f"{where}: line {number} cannot be read; no further call is made on this ledger") from None
        before = calls.get(line.call)
        is_next = line.call == len(calls) + 1 if line.type == "reserved" else before is not None
        if not is_next or (before is not None and before.type == "settled"):
            raise Damaged(f"{where}: line {number} contradicts those before it; no further call is made on this ledger")
        calls[line.call] = line
    return Spent(
        calls=len(calls),
        tokens=sum(line.prompt_tokens + line.completion_tokens for line in calls.values()),
        cost=sum(line.cost for line in calls.values()),
        open=sum(1 for line in calls.values() if line.type == "reserved"),
    )


def complete_lines(content: bytes) -> list[str]:
    """Return the complete lines of a ledger: a last one without its end was never durable, and no call followed it."""
    return content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()


def budgets_of(where: Settings) -> Budgets:
    """Return the budgets that these settings give every run's agent."""
    prompt, completion = where.agent_prices or (None, None)
    return Budgets(
        max_calls=where.agent_max_calls,
        max_tokens=where.agent_max_tokens,
        max_cost=where.agent_cost_limit,
        prompt_price=prompt,
        completion_price=completion,
    )
