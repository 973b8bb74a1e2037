"""Spending of a series of rounds on its model, in a ledger beside the memory: it holds over calls and crashes."""

from pathlib import Path

from control_plane.agent.ledger import Ledger

SUFFIX = ".ledger.jsonl"


def ledger_of(memory: Path) -> Path:
    """Return the file of the ledger that belongs to this memory."""
    return memory.absolute().with_name(memory.name + SUFFIX)


def spent_of(ledger: Ledger | None) -> tuple[int, float | None]:
    """Return tokens, and the cost if prices are known, of a series so far; without a model nothing was spent."""
    if ledger is None:
        return 0, 0.0
    spent, budgets = ledger.spent(), ledger.budgets
    has_prices = budgets.prompt_price is not None and budgets.completion_price is not None
    return spent.tokens, spent.cost if has_prices or not spent.calls else None
