"""Up and down: what is refused before anything starts, and one real cluster."""

import contextlib
import importlib
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import certifi
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cluster.environment import MARK, cluster_environment, ray_environment
from cluster.keeper import PartView, read_parts
from cluster.local import down, up
from cluster.parts import answers
from cluster.processes import ProcessMark, find_members
from cluster.record import ClusterRecord, cluster_lock, make_home, read_record, utc_now, write_record
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.console_login import Login, log_in_with_key
from control_plane.core.model.errors import Conflict, Damaged, Invalid, SteerwayError, Unavailable
from control_plane.gateway.proxy import middlewares


def record(where: Settings, **changes: object) -> ClusterRecord:
    body = {
        "cluster": "0123456789abcdef",
        "started_at": utc_now(),
        "ready": True,
        "temp_dir": "/nowhere/steerway-test",
        "gateway_url": where.gateway_url,
        "console_url": where.console_url,
        "dashboard_url": where.dashboard_url,
        "ray_address": where.ray_address,
        "ports": {},
        "ray_environment": {},
    }
    return ClusterRecord.model_validate(body | changes)


def test_up_with_a_port_in_use_names_it_and_starts_nothing(where: Settings) -> None:
    with (
        socket.create_server(("127.0.0.1", where.dashboard_port)),
        pytest.raises(
            SteerwayError, match=rf"port {where.dashboard_port} \(dashboard\).*STEERWAY_DASHBOARD_PORT"
        ) as no,
    ):
        up(where)
    assert no.value.exit_code == 1
    assert read_record(where) is None


def test_up_with_one_port_for_two_is_refused(where: Settings) -> None:
    twice = where.model_copy(update={"console_port": where.gateway_port})
    with pytest.raises(Invalid, match="gateway and console both have port"):
        up(twice)


def test_up_on_a_foreign_address_is_refused(where: Settings) -> None:
    with pytest.raises(Invalid, match="STEERWAY_HOST"):
        up(where.model_copy(update={"host": "203.0.113.7"}))


def test_up_while_one_is_up_is_a_conflict(where: Settings) -> None:
    make_home(where)
    write_record(where, record(where, processes={"ray": ProcessMark.of(os.getppid())}))
    with pytest.raises(Conflict, match="a cluster is already up") as no:
        up(where)
    assert no.value.exit_code == 5


def test_up_while_another_is_at_work_is_a_conflict(where: Settings) -> None:
    with cluster_lock(where), pytest.raises(Conflict, match="is running on"):
        up(where)


def test_down_without_a_cluster_does_nothing_twice(where: Settings) -> None:
    assert down(where) is None
    assert down(where) is None


def test_down_removes_the_record_of_dead_processes(where: Settings) -> None:
    make_home(where)
    write_record(where, record(where, processes={"ray": ProcessMark(pid=os.getpid(), created_s=1.0)}))
    assert down(where) is not None
    assert not where.cluster_file.exists()


def test_damaged_record_is_said_and_kept(where: Settings) -> None:
    make_home(where)
    where.cluster_file.write_text("{")
    with pytest.raises(Damaged, match=r"cluster\.json"):
        down(where)
    assert where.cluster_file.exists()


def test_record_is_private(where: Settings) -> None:
    make_home(where)
    write_record(where, record(where))
    assert where.cluster_file.stat().st_mode & 0o777 == 0o600


def test_environment_holds_no_token_of_the_caller(where: Settings) -> None:
    callers = {"STEERWAY_TOKEN": "canary", "RAY_ADDRESS": "elsewhere:1", "PATH": "/bin"}
    environment = cluster_environment(where, "0123456789abcdef", callers)
    assert "canary" not in environment.values()
    assert "RAY_ADDRESS" not in environment
    assert (environment["PATH"], environment[MARK]) == ("/bin", "0123456789abcdef")


def test_proxy_of_serve_finds_what_it_is_told_to_call(where: Settings) -> None:
    environment = cluster_environment(where, "0123456789abcdef", {})
    module, _, name = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is middlewares


def test_ray_outside_the_loopback_is_not_told_to_stay_there(where: Settings) -> None:
    outside = where.model_copy(update={"host": "192.0.2.1"})
    assert set(ray_environment(where)) - set(ray_environment(outside)) == {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}


def niceness(found: ClusterRecord, title: str) -> int:
    """Of the one process of this cluster that has this in its title."""
    values = list[int]()
    for process in find_members(found.cluster, found.processes.values()):
        with contextlib.suppress(psutil.Error):
            values += [process.nice()] if title in " ".join(process.cmdline()) else []
    assert len(values) == 1, (title, values)
    return values[0]


def wait_until(ready: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "steerway-test")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key


def console_stream_status(where: Settings, host: str, login: Login | None = None) -> int:
    """The status that the console's WebSocket answers a page which was loaded from `host`."""
    shown = (
        f"Cookie: steerway_console_{where.console_port}={login.cookie}\r\n"
        f"Sec-WebSocket-Protocol: streamlit, steerway.{login.secret}\r\n"
        if login
        else ""
    )
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\nUpgrade: websocket\r\n{shown}"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    tls = ssl.create_default_context(cafile=str(where.tls_cert))
    with (
        socket.create_connection((where.host, where.console_port), timeout=20) as plain,
        tls.wrap_socket(plain, server_hostname=where.host) as connection,
    ):
        connection.sendall(request.encode())
        return int(connection.recv(1024).split()[1])


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_cluster_comes_up_with_tls_and_leaves_nothing_behind(where: Settings) -> None:
    certificate, key = self_signed(where.home.parent)
    where = where.model_copy(update={"tls_cert": certificate, "tls_key": key})

    def cluster(verb: str) -> "subprocess.CompletedProcess[str]":
        environment = dict(os.environ) | where.environment()
        command = [sys.executable, "-m", "cluster.local", verb]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)

    try:
        started = cluster("up")
        assert started.returncode == 0, started.stderr
        found = read_record(where)
        assert found is not None
        assert found.ready
        token = (where.home / "ray-token").read_text()
        assert token not in started.stdout + started.stderr
        assert cluster("status").returncode == 0
        # Ray makes its own folder writable for everybody; nobody else gets there, because the one above it is private.
        assert os.stat(found.temp_dir).st_mode & 0o777 == 0o700
        assert os.path.isdir(f"{found.temp_dir}/n1")
        link = started.stdout.split()[1]
        assert link.startswith(f"{where.console_url}/login#key=")
        login = log_in_with_key(where, link.partition("#key=")[2])
        assert console_stream_status(where, f"{where.host}:{where.console_port}", login) == 101
        assert console_stream_status(where, f"{where.host}:{where.console_port}") == 403
        assert console_stream_status(where, f"evil.example:{where.console_port}", login) == 403
        assert link.partition("#key=")[2] not in (where.home / "logs" / "console.log").read_text()
        for process in find_members(found.cluster, found.processes.values()):
            if process.cmdline()[1:] == ["-P", "-m", "ui"]:
                process.kill()
        wait_until(lambda: read_parts(where).get("console", PartView(up=False, since="")).restarts == 1)
        wait_until(lambda: answers(where.own_console_health_url))
        own = f"{where.host}:{where.console_port}"
        assert console_stream_status(where, own, login) == 101, "a console that was started again knows its sessions"
        with SteerwayClient.from_settings(where) as client:
            assert client.runs() == []
        with (
            SteerwayClient.from_settings(where.model_copy(update={"ca": Path(certifi.where())})) as distrustful,
            pytest.raises(Unavailable, match="certificate"),
        ):
            distrustful.runs()
        assert not answers(where.own_gateway_health_url.replace("https://", "http://"))
        again = cluster("up")
        assert (again.returncode, "already up" in again.stderr) == (5, True)
        # Serve has called what stands in the proxy: it gives way, as the app does, and Serve's controller does not.
        assert min(niceness(found, "ProxyActor"), niceness(found, "ServeReplica")) > niceness(found, "ServeController")
    finally:
        ended = cluster("down")
    assert ended.returncode == 0, ended.stderr
    assert find_members(found.cluster, found.processes.values(), found.temp_dir) == []
    assert not os.path.exists(found.temp_dir)
    assert cluster("down").returncode == 0
