"""A gateway in a thread, a console in a process, a browser without a window."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from control_plane.config import Settings
from control_plane.console_login import SessionRecord, create_link
from tests.ports import free_port
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
CONSOLE = Path(__file__).resolve().parents[2] / "ui" / "console.py"
START_WITHIN_S = 40.0
Visit = Callable[..., AppTest]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """A gateway without runs."""
    with FakeCluster() as made:
        yield made


@pytest.fixture
def visit(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Visit:
    """Opens the console at an address, as a reader of that gateway."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    session = SessionRecord(secret_sha256="", expires_at=float("inf"), role="operator")
    monkeypatch.setattr("ui.gateway.read_session", lambda *_: session)

    def open_at(**query: str | list[str]) -> AppTest:
        app = AppTest.from_file(str(CONSOLE), default_timeout=60)
        for name, value in query.items():
            app.query_params[name] = value
        return app.run()

    return open_at


@pytest.fixture
def trainer(cluster: FakeCluster) -> FakeTrainer:
    """A run of 500 steps that has made 50 of them and makes the next one when it is told to."""
    made = cluster.create("gpt2-1", "gpt2-local", total_steps=500)
    cluster.train(made, 50)
    return made


class RunningConsole:
    """A console in a process of its own, as `steer up` starts it."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.where = Settings(home=folder / "home", console_port=free_port())
        self._environment = os.environ | environment | self.where.environment() | environment
        self._log = folder / "console.log"
        self.start()

    @property
    def url(self) -> str:
        """Its address, without a way in."""
        return self.where.console_url

    def link(self, page: str = "") -> str:
        """A link that logs in, once, and goes on to `page`."""
        return create_link(self.where, page=page)

    def start(self) -> None:
        """Returns when it answers."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ui"], env=self._environment, stdout=output, stderr=output
            )
        _wait_for(f"{self.url}/_stcore/health", self._process, self._log)

    def end(self) -> None:
        """End it; what it knows of logins stays on the disk."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture
def console(cluster: FakeCluster, tmp_path: Path) -> Iterator[RunningConsole]:
    """The console of that gateway."""
    started = RunningConsole(cluster.environment, tmp_path)
    try:
        yield started
    finally:
        started.end()


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    pytest.fail(f"the console did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright. Fails, never skips, where it is not installed."""
    if not CHROMIUM.is_file():
        pytest.fail(f"there is no {CHROMIUM}: install it with `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        yield opened
        opened.close()
