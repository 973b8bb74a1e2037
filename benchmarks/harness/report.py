"""Formatting of a result: the arms side by side, then every figure with its target."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.harness.result import Bound, Result, Verdict

TOLD: dict[Verdict, str] = {
    "met": "every target is met",
    "not met": "not every target is met",
    "not proved": "not proved: no target is shown to be missed, but not every one is shown to be met",
}


def show(name: str, result: Result, console: Console) -> None:
    """Print a result."""
    for table in result.tables:
        console.print(_grid(table.title, ("", *table.arms), table.rows))
    rows = [(figure, f"{value:.4g}", *_verdict(figure, result)) for figure, value in result.figures.items()]
    console.print(_grid(f"{name}, n = {result.n}", ("figure", "value", "target", ""), rows))
    console.print(f"{name}: {TOLD[result.verdict]}")


def _verdict(figure: str, result: Result) -> tuple[str, str]:
    bound = result.targets.get(figure)
    if bound is None:
        return "", ""
    return _wanted(bound), "met" if (verdict := result.verdict_on(figure)) == "met" else verdict.upper()


def _wanted(bound: Bound) -> str:
    ends = {"at least": bound.get("min"), "at most": bound.get("max")}
    return ", ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)


def _grid(title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> RichTable:
    grid = RichTable(title=title, title_justify="left")
    for index, head in enumerate(heads):
        grid.add_column(head, justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    return grid
