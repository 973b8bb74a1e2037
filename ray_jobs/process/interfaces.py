"""Network interfaces of gloo and NCCL: the one with the address by which Ray knows this node.

Left alone, gloo binds to what the host's own name resolves to, which on Debian and Ubuntu is 127.0.1.1 by a line of
`/etc/hosts`: then ranks on two machines cannot connect ("connectFullMesh failed"). NCCL takes the first interface that
looks usable, which on machines with several networks, or with Docker, may be a wrong one.
"""

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping

import psutil

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str, interfaces: Mapping[str, Iterable[str]]) -> str | None:
    """Return the interface that has the address, or None. `interfaces`: addresses by the name of the interface."""
    return next((name for name, addresses in sorted(interfaces.items()) if address in addresses), None)


def addresses_by_interface() -> dict[str, list[str]]:
    """Return the IP addresses of each network interface of this machine, without IPv6 scopes."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }


def choose_interface(address: str, environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Set the variables for gloo and NCCL from this node's address; return a reason if none has it.

    Variables that are set already stay: the run's `env:`, or the administrator's on that node.
    """
    missing = [name for name in VARIABLES if not environ.get(name)]
    if not missing:
        return None
    interface = interface_of(address, addresses_by_interface())
    if interface is None:
        return (
            f"no network interface of {socket.gethostname()} has the address {address}, by which Ray knows this node: "
            f"gloo and NCCL choose one themselves; set {' and '.join(missing)} under env: if ranks cannot connect"
        )
    for name in missing:
        # NCCL takes a prefix, unless told otherwise: `eth1` would also mean `eth10`. Gloo takes the name as it is.
        environ[name] = f"={interface}" if name.startswith("NCCL") else interface
    return None
