"""Spending of a series of rounds on its model, counted in this process, within a limit of calls and tokens."""

from dataclasses import dataclass

MAX_CALLS = 2000
MAX_TOKENS = 5_000_000


@dataclass(slots=True)
class Reserved:
    """Most that a call can take, in tokens and money."""

    tokens: int
    cost: float


class Tally:
    """Budget of a series in memory; a call counts with the most that it can take until its usage is known."""

    def __init__(self, prices: tuple[float, float] | None = None) -> None:
        """Start at nothing. `prices`: of a million tokens of prompt and of answers; None: not known."""
        self._prices = prices
        self._calls = self._tokens = 0
        self._cost = 0.0
        self.reason: str | None = None

    def reserve(self, max_prompt_tokens: int, max_completion_tokens: int) -> Reserved | None:
        """Return a reservation, or None: a limit is reached, and `reason` says which."""
        tokens = max_prompt_tokens + max_completion_tokens
        if self._calls >= MAX_CALLS or self._tokens + tokens > MAX_TOKENS:
            self.reason = f"the limit of {MAX_CALLS} calls or {MAX_TOKENS} tokens a series is reached"
            return None
        self._calls += 1
        self._tokens += tokens
        cost = self._price(max_prompt_tokens, max_completion_tokens)
        self._cost += cost
        return Reserved(tokens, cost)

    def settle(self, reservation: Reserved, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Replace a reservation by the reported usage."""
        if prompt_tokens is None or completion_tokens is None:
            return
        self._tokens += prompt_tokens + completion_tokens - reservation.tokens
        self._cost += self._price(prompt_tokens, completion_tokens) - reservation.cost

    def spent(self) -> tuple[int, float | None]:
        """Return tokens, and the cost if prices are known; nothing costs nothing."""
        if self._prices is None:
            return self._tokens, 0.0 if self._calls == 0 else None
        return self._tokens, self._cost

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        if self._prices is None:
            return 0.0
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / 1e6
