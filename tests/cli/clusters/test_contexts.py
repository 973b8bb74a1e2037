"""Contexts: which gateway a command talks to, from the flag, the environment, the file, in this order."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from control_plane.cli.errors import UsageError, take_context
from control_plane.config import Settings, settings
from control_plane.contexts import Context, ContextBook, chosen_settings, use_local
from control_plane.core.model.errors import Damaged, Invalid, NotFound
from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, TOKENS, LiveGateway, live_gateway


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home, and no variable of ours but that."""
    with patch.dict(os.environ):  # `--context` changes the environment of its process, which is this one here
        for name in Settings.model_fields:
            os.environ.pop(f"STEERWAY_{name.upper()}", None)
        os.environ["STEERWAY_HOME"] = str(tmp_path / "home")
        yield tmp_path / "home"


@pytest.fixture
def two_gateways(home: Path, tmp_path: Path) -> Iterator[tuple[LiveGateway, LiveGateway]]:
    with live_gateway(tmp_path / "one") as one, live_gateway(tmp_path / "two") as two:
        yield one, two


def add(steer: Steer, tmp_path: Path, name: str, url: str) -> None:
    token = tmp_path / f"{name}.token"
    token.write_text(TOKENS["operator"] + "\n")
    answer = steer("context", "add", name, "--url", url, "--token-file", str(token))
    assert answer.exit_code == 0, answer.stderr


def environ() -> dict[str, str]:
    return dict(os.environ)


def test_commands_go_to_the_context_that_was_chosen(
    steer: Steer, home: Path, tmp_path: Path, two_gateways: tuple[LiveGateway, LiveGateway]
) -> None:
    one, two = two_gateways
    add(steer, tmp_path, "one", one.url)
    add(steer, tmp_path, "two", two.url)
    assert (home / "contexts.json").stat().st_mode & 0o777 == 0o600
    assert chosen_settings(environ()).url == two.url, "the one that was added last is in use"
    assert steer("context", "use", "one").exit_code == 0
    assert chosen_settings(environ()).url == one.url
    assert chosen_settings(environ() | {"STEERWAY_CONTEXT": "two"}).url == two.url
    assert chosen_settings(environ() | {"STEERWAY_CONTEXT": "two", "STEERWAY_URL": "http://localhost:9"}).url != two.url
    listed = json.loads(steer("context", "list", "--json").stdout)
    assert [(row["name"], row["used"]) for row in listed] == [("one", True), ("two", False)]
    assert TOKENS["operator"] not in steer("context", "list").stdout + steer("settings").stdout
    assert steer("runs", "--context", "two").stdout.count(RUN) == 1


@pytest.mark.usefixtures("impatient")
def test_flag_counts_more_than_the_environment(
    steer: Steer, home: Path, tmp_path: Path, two_gateways: tuple[LiveGateway, LiveGateway]
) -> None:
    add(steer, tmp_path, "one", two_gateways[0].url)
    os.environ |= {"STEERWAY_URL": "http://127.0.0.1:9", "STEERWAY_TOKEN": "of-another-gateway"}
    assert steer("status", RUN).exit_code == 1
    os.environ |= {"STEERWAY_URL": "http://127.0.0.1:9", "STEERWAY_TOKEN": "of-another-gateway"}
    answer = steer("--context=one", "status", RUN)
    assert answer.exit_code == 0, answer.stderr


@pytest.mark.usefixtures("impatient")
def test_errors_name_the_context(steer: Steer, home: Path) -> None:
    book = ContextBook(current="gone", contexts=(Context(name="gone", url="http://127.0.0.1:9", token="a"),))
    book.write(home / "contexts.json")
    answer = steer("runs")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "http://127.0.0.1:9 (context gone)" in answer.stderr
    assert "no context 'other'; there are: gone" in steer("runs", "--context", "other").stderr


def test_file_that_others_can_read_is_refused(home: Path) -> None:
    ContextBook(contexts=(Context(name="a", url="http://127.0.0.1:9", token="secret"),)).write(home / "contexts.json")
    (home / "contexts.json").chmod(0o640)
    with pytest.raises(Damaged, match=r"other users have access .* chmod 600"):
        chosen_settings(environ())


def test_context_over_plain_http_to_another_machine_is_refused(steer: Steer, home: Path) -> None:
    answer = steer("context", "add", "lab", "--url", "http://10.0.0.1:8700", "--token-file", "/dev/null")
    assert answer.exit_code == 6
    assert "--insecure" in answer.stderr
    assert not (home / "contexts.json").exists()


def test_token_is_not_an_argument(steer: Steer, home: Path) -> None:
    answer = steer("context", "add", "lab", "--url", "https://lab.example", "--token", "abc")
    assert answer.exit_code == 2


def test_own_cluster_is_found_by_a_shell_without_its_settings(home: Path) -> None:
    started_with = settings(environ() | {"STEERWAY_GATEWAY_PORT": "18799", "STEERWAY_PUBLIC_NAMES": "a.example"})
    assert use_local(started_with) is None
    found = chosen_settings(environ())
    assert (found.gateway_port, found.url, found.context) == (18799, None, "local")
    assert found.public_names == ("a.example",)
    assert chosen_settings(environ() | {"STEERWAY_GATEWAY_PORT": "18800"}).gateway_port == 18800


def test_starting_a_cluster_leaves_another_context_in_use(home: Path) -> None:
    ContextBook(current="lab", contexts=(Context(name="lab", url="https://lab.example", token="a"),)).write(
        home / "contexts.json"
    )
    assert use_local(settings(environ())) == "lab"
    assert chosen_settings(environ()).url == "https://lab.example"
    assert chosen_settings(environ() | {"STEERWAY_CONTEXT": "local"}).url is None


@pytest.mark.parametrize(
    ("args", "chosen", "left"),
    [
        (["--context", "a", "runs"], "a", ["runs"]),
        (["set", "lr=1", "--context=a"], "a", ["set", "lr=1"]),
        (["action", "--", "--context", "b"], None, ["action", "--", "--context", "b"]),
    ],
)
def test_context_is_taken_from_anywhere(args: list[str], chosen: str | None, left: list[str]) -> None:
    assert take_context(args) == (chosen, left)


@pytest.mark.parametrize("args", [["runs", "--context"], ["--context=", "runs"], ["--context=a", "--context=b"]])
def test_context_without_one_name_is_refused(args: list[str]) -> None:
    with pytest.raises(UsageError, match="steer context list"):
        take_context(args)


def test_unknown_context_names_the_known_ones(home: Path) -> None:
    with pytest.raises(NotFound, match="there are: none"):
        chosen_settings(environ() | {"STEERWAY_CONTEXT": "lab"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PUBLIC_NAMES", "https://a.example", "without scheme"),
        ("PUBLIC_NAMES", "a.example:8700", "without scheme, port"),
        ("TLS_CERT", "/a.pem", "tls_cert and tls_key belong together"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        settings({f"STEERWAY_{name}": value})


def test_every_setting_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
    missing = [name for name in Settings.model_fields if f"`STEERWAY_{name.upper()}`" not in text]
    assert not missing, f"docs/cluster.md does not name {missing}"


def test_bind_address_names_and_links_are_separate() -> None:
    where = settings({"STEERWAY_HOST": "0.0.0.0", "STEERWAY_PUBLIC_NAMES": "lab.example, 10.0.0.7"})
    assert where.host_names == ("127.0.0.1", "localhost", "::1", "lab.example", "10.0.0.7")
    assert where.own_gateway_url == "http://127.0.0.1:8700"
    assert where.ray_address == "127.0.0.1:6379"
    assert where.console_url == "http://lab.example:8701"
    assert "https://lab.example" in where.origins
    apart = settings({"STEERWAY_RAY_HOST": "10.0.0.7", "STEERWAY_DASHBOARD_HOST": "127.0.0.1"})
    assert (apart.ray_address, apart.dashboard_url) == ("10.0.0.7:6379", "http://127.0.0.1:8265")
    assert settings(apart.environment()) == apart


def test_gateway_is_reached_through_a_forwarded_port(
    steer: Steer, home: Path, tmp_path: Path, two_gateways: tuple[LiveGateway, LiveGateway]
) -> None:
    inside = two_gateways[0].url.rpartition(":")[2]
    with socket.create_server(("127.0.0.1", 0)) as tunnel:
        threading.Thread(target=forward, args=(tunnel, int(inside)), daemon=True).start()
        add(steer, tmp_path, "tunnel", f"http://localhost:{tunnel.getsockname()[1]}")
        answer = steer("status", RUN)
    assert answer.exit_code == 0, answer.stderr


def forward(tunnel: socket.socket, port: int) -> None:
    """Connect whoever connects to another port, like `ssh -L`."""
    while True:
        try:
            client, _ = tunnel.accept()
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", port))
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=copy, args=(source, target), daemon=True).start()


def copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
