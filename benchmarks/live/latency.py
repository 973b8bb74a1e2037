"""Latency from the gateway's 202 to the live optimizer, in steps and milliseconds, and equality of the ranks.

A full local cluster of its own (Ray, gateway, console) runs `scripts/witnessed.py` on two CPU ranks, as a user's own
script: first a model with steps of milliseconds, then the model of the shipped config. Learning rates are sent over
HTTP at random moments. See `latency_evidence` for the definition of the figures.
"""

from pathlib import Path

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import diaries, own_cluster, send, settled, start, wait_closed, wait_running
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.live.latency_evidence import Evidence
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.commands import Stop

MEAN_GAP_S = {"small": 0.08, "default": 0.15}
DEFAULT_SHARE = 5
"""The shipped model, whose steps are slow, gets one command for every five of the small one."""

TARGETS: dict[str, Bound] = {
    f"{figure}{suffix}": {"max": most}
    for suffix in ("", "_default_model")
    for figure, most in {
        "steps_p99": 2,
        "commands_not_applied": 0,
        "values_not_used": 0,
        "steps_where_ranks_differ": 0,
    }.items()
}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` commands to the small model, and a fifth of it to the shipped one.

    Raises `SteerwayError` if the cluster or the run does not start, or a run does not end.
    """
    phases = {"small": n, "default": max(2, n // DEFAULT_SHARE)}
    with own_cluster(say) as where, SteerwayClient.from_settings(where) as client:
        by_shape = {shape: _phase(where, client, shape, count, say).figures() for shape, count in phases.items()}
    small, default = by_shape["small"], by_shape["default"]
    figures = small | {f"{name}_default_model": value for name, value in default.items()}
    rows = tuple((name, f"{small[name]:.4g}", f"{default[name]:.4g}") for name in small)
    return Result(figures, TARGETS, n, (Table("latency", ("small model", "shipped model"), rows),))


def _phase(where: Settings, client: SteerwayClient, shape: str, count: int, say: Say) -> Evidence:
    """Start a run, send commands to it, stop it, and return its evidence."""
    folder: Path = where.home / "diaries"
    folder.mkdir(exist_ok=True)
    run = start(where, shape, folder)
    wait_running(client, run)
    say(f"latency: {count} commands to the {shape} model")
    sent = send(client, run, count, MEAN_GAP_S[shape])
    outcomes = settled(client, run, sent)
    client.submit(run, Stop())
    wait_closed(client, run)
    return Evidence(sent, outcomes, diaries(folder, shape))
