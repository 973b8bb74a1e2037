"""Environment variables of the processes of one machine's cluster."""

import os
from collections.abc import Mapping
from pathlib import Path

from control_plane.addresses import is_loopback
from control_plane.api import head_variables
from control_plane.config import Settings

MARK = "STEERWAY_CLUSTER"
"""Variable with the cluster of a process. A job's driver leaves its parents' sessions, but keeps this."""

NODE_MARK = "STEERWAY_NODE"
"""Variable with the Ray node of a process, inside its cluster."""

NOT_INHERITED = ("STEERWAY_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", MARK, NODE_MARK)
"""Variables that are not passed on: the caller's own token, and addresses of other clusters."""

SERVE_HEALTH_CHECK = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
}
"""Health checks of the proxy by Serve's controller: a dead proxy is detected after three checks, so within 2 s.

By default they are 10 s apart: half a minute without service. A silent proxy has three times 5 s to answer.
"""

PROXY_CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "control_plane.gateway.proxy.middlewares"}
"""Middlewares of Ray Serve's proxies. There is no other way to set them: Serve's controller starts the proxies."""


def ray_token_file(settings: Settings) -> Path:
    """Return the path of the token for Ray's own interfaces, mode 0600. It allows to run code on the cluster."""
    return settings.home / "ray-token"


def ray_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that every client process of this cluster must have before it imports Ray.

    All users of a machine share the loopback, and Ray's Jobs API runs what it is sent: so every interface of Ray
    requires a token. Ray replaces a loopback address of a node by that of a network interface unless clusters are
    disabled by the variable that was made for desktops; then GCS, raylet, workers and agents all bind to the loopback.
    """
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token_file(settings)),
        # Parts of Ray look for "the" cluster of the machine by its processes, and fail if there are two.
        "RAY_API_SERVER_ADDRESS": settings.dashboard_url,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ranks log nearly the same at the same time; a log without one of them is misleading.
        "RAY_DEDUP_LOGS": "0",
        # By default Ray drains a node for 30 s after SIGTERM. Journal and checkpoints survive a kill.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    } | head_variables.environment()
    if is_loopback(settings.head_host):
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return variables


def cluster_environment(settings: Settings, cluster: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a process of the cluster `cluster`."""
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
    """Return the environment of a process of the Ray node `node`, from that of its cluster."""
    return dict(cluster) | {NODE_MARK: node}
