"""Drawing for the pages of studies: matplotlib without a screen, and curves of several seeds."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.catalogue import Say


def open_pyplot(say: Say) -> Any:
    """Return matplotlib's pyplot, which draws into files, the same file for the same results; None without it."""
    try:
        import matplotlib
    except ImportError:
        say("no figure is drawn: matplotlib is not installed (it comes with steerway[dev])")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "steerway"
    return pyplot


def mean_and_range(axes: Any, curves: Sequence[Sequence[Sequence[float]]], *, label: str, color: str) -> None:
    """Draw the mean of curves of (step, value), one a seed and all at the same steps, and their range as a band."""
    steps = [int(step) for step, _ in curves[0]]
    values = list(zip(*([value for _, value in curve] for curve in curves), strict=True))
    axes.plot(steps, [fmean(each) for each in values], color=color, label=label, linewidth=1.3)
    axes.fill_between(steps, [min(each) for each in values], [max(each) for each in values], color=color, alpha=0.2)
