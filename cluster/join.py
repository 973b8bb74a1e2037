"""`ray start` for one more node on a machine whose cluster stays on the loopback.

    python -m cluster.join start --address=127.0.0.1:6379 --block ...

Ray keeps to the loopback only while multi-node clusters are switched off (see `ray_environment`), and `ray start
--address` refuses to work while they are. Both questions are asked of the same variable, so the second is answered
here, for this process alone: the raylet and everything that it starts still find it switched off.
"""

import sys
from types import ModuleType


def _as_given(host: str) -> str:
    """A loopback address is meant as it stands; Ray would put a network interface's in its place."""
    return host


def permit(constants: ModuleType, services: ModuleType) -> None:
    """Let a node join on the loopback. Raises `AttributeError` if Ray no longer knows these two by their names."""
    for module, name, value in (
        (constants, "ENABLE_RAY_CLUSTER", True),
        (services, "resolve_ip_for_localhost", _as_given),
    ):
        getattr(module, name)
        setattr(module, name, value)


def main() -> None:
    """Be `ray`, with leave to join."""
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main as ray

    permit(ray_constants, services)
    sys.argv[0] = "ray"
    ray()


if __name__ == "__main__":
    main()
