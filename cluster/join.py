"""`ray start` for a further node of a cluster on the loopback interface.

    python -m cluster.join start --address=127.0.0.1:6379 --block ...

Ray binds to the loopback only while multi-node clusters are disabled (see `ray_environment`), and `ray start
--address` fails while they are. Both read the same variable, so the second check is patched here, in this process only:
the raylet and everything that it starts still see it disabled.
"""

import sys
from types import ModuleType


def _as_given(host: str) -> str:
    """Return the host unchanged; Ray would replace a loopback address by that of a network interface."""
    return host


def permit(constants: ModuleType, services: ModuleType) -> None:
    """Patch Ray so that a node can join on the loopback. Raises `AttributeError` if Ray has renamed the two."""
    for module, name, value in (
        (constants, "ENABLE_RAY_CLUSTER", True),
        (services, "resolve_ip_for_localhost", _as_given),
    ):
        getattr(module, name)
        setattr(module, name, value)


def main() -> None:
    """Run the `ray` command line with the patch."""
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main as ray

    permit(ray_constants, services)
    sys.argv[0] = "ray"
    ray()


if __name__ == "__main__":
    main()
