"""The network interface for gloo and NCCL: by the node's address, and never over what somebody has set."""

import socket

from ray_jobs.process.interfaces import addresses_by_interface, choose_interface, interface_of

MACHINE = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "eth1": ["10.77.0.2", "fe80::1"]}


def test_the_interface_is_that_of_the_address() -> None:
    assert interface_of("10.77.0.2", MACHINE) == "eth1"
    assert interface_of("127.0.0.1", MACHINE) == "lo"
    assert interface_of("127.0.1.1", MACHINE) is None


def test_gloo_and_nccl_are_told_of_it() -> None:
    environ: dict[str, str] = {}
    assert choose_interface("127.0.0.1", environ) is None
    loopback = next(name for name, addresses in addresses_by_interface().items() if "127.0.0.1" in addresses)
    assert environ == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}


def test_what_is_set_stays() -> None:
    environ = {"NCCL_SOCKET_IFNAME": "ib0"}
    assert choose_interface("127.0.0.1", environ) is None
    assert environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert "GLOO_SOCKET_IFNAME" in environ
    both = {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth7"}
    assert choose_interface("192.0.2.1", dict(both)) is None


def test_an_address_of_no_interface_is_said_and_sets_nothing() -> None:
    environ: dict[str, str] = {}
    reason = choose_interface("192.0.2.1", environ)
    assert reason is not None
    assert "192.0.2.1" in reason
    assert socket.gethostname() in reason
    assert environ == {}
