"""The audit of the pins against a source of advisories on a socket: found, accepted, clean, and not to be had."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.advisories import ACCEPTED, KNOWN_BAD, ROOT, report

ADVISORY = {
    "id": "PYSEC-2019-217",
    "aliases": ["CVE-2019-10906", "GHSA-462w-v97r-4m45"],
    "summary": "Sandbox escape through str.format_map",
    "published": "2019-04-07T00:29:00Z",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}],
        }
    ],
}
SAFE, PLANTED = "Jinja2==3.1.6\nidna==3.20\n", "Jinja2==2.4.1\nidna==3.20\n"
Answer = Callable[[dict[str, Any], int], tuple[int, bytes]]


def osv(query: dict[str, Any], count: int) -> tuple[int, bytes]:
    """What osv.dev answers, as far as these two packages go."""
    bad = query == KNOWN_BAD
    return 200, json.dumps({"vulns": [ADVISORY]} if bad else {}).encode()


class Source:
    """A source of advisories on a socket."""

    def __init__(self) -> None:
        self.answer: Answer = osv
        self.asked: list[dict[str, Any]] = []
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                source.asked.append(query)
                status, body = source.answer(query, len(source.asked))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/query"


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    serving = threading.Thread(target=made.server.serve_forever)
    serving.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    serving.join()


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text(PLANTED)
    return path


def test_an_advisory_fails_the_check_and_says_which_version_is_fixed(source: Source, pins: Path) -> None:
    command = [sys.executable, "-m", "tests.architecture.advisories", str(pins), "--source", source.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    for words in ("jinja2 2.4.1", "PYSEC-2019-217", "CVE-2019-10906", "fixed in 2.10.1"):
        assert words in done.stderr


def test_versions_without_an_advisory_pass(source: Source, pins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pins.write_text("# a comment\n" + SAFE)
    assert report(pins, source.url) == 0
    assert [query["package"]["name"] for query in source.asked] == ["jinja2", "jinja2", "idna"]
    assert "no advisory" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["PYSEC-2019-217", "CVE-2019-10906"])
def test_an_accepted_advisory_passes_and_its_reason_is_told(
    name: str, source: Source, pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(pins, source.url, {name: "no template of a stranger is rendered"}) == 0
    assert "Accepted: no template of a stranger is rendered" in capsys.readouterr().out


def test_an_exception_that_nothing_needs_any_more_fails(
    source: Source, pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins.write_text(SAFE)
    assert report(pins, source.url, {"PYSEC-2019-217": "no template of a stranger is rendered"}) == 1
    assert "PYSEC-2019-217 is accepted and no longer found" in capsys.readouterr().err


def test_every_exception_has_a_reason() -> None:
    assert [name for name, reason in ACCEPTED.items() if len(reason.split()) < 3] == []


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, b"busy"), (404, b""), (200, b"<html>sign in</html>"), (200, b"{}"), (200, b"[]")],
)
def test_a_source_without_advisories_is_said_in_one_line_and_fails_nothing(
    status: int, body: bytes, source: Source, pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.answer = lambda query, count: (status, body)
    assert report(pins, source.url) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert len(printed.out.splitlines()) == 1
    assert "was not looked up" in printed.out


def test_without_a_network_it_says_so_in_one_line_and_fails_nothing(pins: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: the connection is refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/query"
        command = [sys.executable, "-m", "tests.architecture.advisories", str(pins), "--source", address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert "ConnectError" in done.stdout


def test_a_source_that_goes_away_during_the_audit_is_one_that_is_not_there(
    source: Source, pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.answer = lambda query, count: osv(query, count) if count == 1 else (503, b"")
    assert report(pins, source.url) == 0
    assert "was not looked up" in capsys.readouterr().out


def test_pins_that_cannot_be_audited_fail_beside_a_source_that_answers(
    source: Source, pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins.write_text("idna>=3\n")
    assert report(pins, source.url) == 2
    assert "audit of constraints.txt failed" in capsys.readouterr().err
