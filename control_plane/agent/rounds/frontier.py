"""Frontier of a series of rounds: the best score so far, round by round, as a table and as a figure."""

from collections.abc import Sequence
from pathlib import Path

from control_plane.agent.rounds.memory import REFERENCE, Round
from control_plane.core.model.errors import Invalid, Unavailable


def frontier(rounds: Sequence[Round]) -> list[float | None]:
    """Return the best score up to each round; None until one has a score."""
    best: float | None = None
    bests = []
    for each in rounds:
        if each.score is not None:
            best = each.score if best is None else min(best, each.score)
        bests.append(best)
    return bests


def table(rounds: Sequence[Round]) -> list[str]:
    """Return the rounds as lines: score, best so far, plan, changes by the agent, tokens, cost, seconds."""
    lines = [f"{'round':>5}  {'score':>9}  {'best':>9}  {'changes':>7}  {'tokens':>7}  {'cost':>8}  {'time':>6}  plan"]
    for each, best in zip(rounds, frontier(rounds), strict=True):
        ended = each.ended
        assert ended is not None
        cost = "?" if ended.cost is None else f"{ended.cost:.4f}"
        lines.append(
            f"{each.begun.round:>5}  {_number(each.score):>9}  {_number(best):>9}  {ended.actions:>7}  "
            f"{ended.tokens:>7}  {cost:>8}  {ended.seconds:>5.0f}s  {each.begun.plan.describe()} ({each.begun.planner})"
        )
    return lines


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def draw(rounds: Sequence[Round], file: Path) -> None:
    """Draw the frontier into a PNG or SVG file.

    Raises `Invalid` if matplotlib is not installed or the format is another one, `Unavailable` if it cannot be written.
    """
    if file.suffix not in (".png", ".svg"):
        raise Invalid(f"{file} is neither .png nor .svg")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise Invalid("a figure needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(7, 4), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scored = [(each.begun.round, each.score) for each in rounds if each.score is not None]
    failed = [each.begun.round for each in rounds if each.score is None]
    bests = [(each.begun.round, best) for each, best in zip(rounds, frontier(rounds), strict=True) if best is not None]
    axes.plot(*zip(*scored, strict=True), "o", color="#6b7280", label="score of a round") if scored else None
    axes.step(*zip(*bests, strict=True), where="post", color="#2563eb", label="best so far") if bests else None
    reference = next((each.score for each in rounds if each.begun.round == REFERENCE), None)
    if reference is not None:
        axes.axhline(reference, color="#d97706", linestyle="--", linewidth=1, label="reference")
    if failed and scored:
        top = max(score for _, score in scored if score is not None)
        axes.plot(failed, [top] * len(failed), "x", color="#dc2626", label="diverged or failed")
    metric = next((each.ended.metric for each in rounds if each.ended and each.ended.metric), "score")
    axes.set_xlabel("round")
    axes.set_ylabel(f"{metric} at the end (lower is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    figure.tight_layout()
    try:
        figure.savefig(file)
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror or error}") from None
