"""What every process of one machine's cluster finds in its environment."""

import os
from collections.abc import Mapping
from pathlib import Path

from control_plane.addresses import is_loopback
from control_plane.config import Settings

MARK = "STEERWAY_CLUSTER"
"""Names the cluster that a process belongs to. A job's driver leaves its parents' sessions, but not this."""

NODE_MARK = "STEERWAY_NODE"
"""Names the Ray node that a process belongs to, inside its cluster."""

NOT_INHERITED = ("STEERWAY_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", MARK, NODE_MARK)
"""The caller's own token is none of the workers' business; another cluster's address would lead them astray."""

HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "200",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}
"""How the GCS notices that a raylet is gone; `RAY_` variables reach it, being read by every one of Ray's programs.

A raylet that was killed refuses the connection at once: 5 checks, 0.2 s apart, about 1 s. One that is only silent is
given 5 answers' time, about 11 s: on two cores under load a raylet may well take a second or two to answer, and to
declare a living node dead costs every rank on it, which is worse than to learn of a death later.
"""

SERVE_HEALTH_CHECK = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
}
"""How Serve's controller notices that its proxy is gone: after three checks in a row, so within 2 s.

By default they are 10 s apart, and nobody is served for half a minute. A silent proxy has three times 5 s to answer.
"""

PROXY_CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "control_plane.gateway.proxy.middlewares"}
"""What Ray Serve asks for each of its proxies. It has no other way in: a proxy is started by Serve's controller."""


def ray_token_file(settings: Settings) -> Path:
    """Where the token of Ray's own interfaces lies, mode 0600. Whoever reads it may run code on the cluster."""
    return settings.home / "ray-token"


def ray_environment(settings: Settings) -> dict[str, str]:
    """What Ray must find in the environment of every process that talks to this cluster, before it is imported.

    The loopback is shared by all users of a machine, and Ray's Jobs API runs whatever it is sent: so every
    interface of Ray asks for a token. Ray replaces a loopback address of a node by that of a network interface
    unless clusters are switched off by the variable that was made for desktops; then GCS, raylet, workers and agents
    all bind to the loopback.
    """
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token_file(settings)),
        # Parts of Ray look for "the" cluster of the machine by its processes, and give up when they find two.
        "RAY_API_SERVER_ADDRESS": settings.dashboard_url,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ranks say nearly the same at the same time; a log that leaves one of them out misleads.
        "RAY_DEDUP_LOGS": "0",
        # After SIGTERM Ray drains a node for 30 s. Journal and checkpoints are made to survive a kill.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    } | HEALTH_CHECK
    if is_loopback(settings.host):
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return variables


def cluster_environment(settings: Settings, cluster: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process of the cluster `cluster`."""
    inherited = {name: value for name, value in environ.items() if name not in NOT_INHERITED}
    return (
        inherited
        | settings.environment()
        | ray_environment(settings)
        | SERVE_HEALTH_CHECK
        | PROXY_CALLBACK
        | {MARK: cluster}
    )


def node_environment(cluster: Mapping[str, str], node: str) -> dict[str, str]:
    """The environment of a process of the Ray node `node`, from that of its cluster."""
    return dict(cluster) | {NODE_MARK: node}
