"""The console's login in a real browser: the link, a reload, a second tab, a restart, and what others are shown."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.ui.conftest import RunningConsole
from tests.ui.fake_cluster import FakeCluster

pytestmark = pytest.mark.browser

PATIENCE_MS = 20_000
RUN = "gpt2-secret-run"

OPENS_STREAM = """([url, protocols]) => new Promise((resolve) => {
  const stream = new WebSocket(url, protocols);
  stream.onopen = () => resolve('open');
  stream.onclose = (closed) => resolve('closed ' + closed.code);
})"""


@pytest.fixture
def tab(browser: Any) -> Page:
    """The first tab of a browser that has never seen the console."""
    return new_tab(browser.new_context())


def new_tab(context: BrowserContext) -> Page:
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    return page


@pytest.fixture
def other_server() -> Iterator[tuple[str, list[str]]]:
    """A server on another port of this machine, somebody else's; and the cookies that it was shown."""
    shown: list[str] = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Cookie") or "")
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html><body>another server</body></html>")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", shown
    server.shutdown()


def shows_runs(page: Page) -> None:
    expect(page.get_by_text(RUN).first).to_be_visible(timeout=PATIENCE_MS)


def shows_the_login(page: Page) -> None:
    expect(page.get_by_label("Token")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text(RUN)).to_have_count(0)


def test_link_logs_in_once_and_stays_logged_in(
    cluster: FakeCluster, console: RunningConsole, tab: Page, browser: Any
) -> None:
    cluster.create(RUN, "gpt2-local", total_steps=500)
    tab.goto(console.url)
    shows_the_login(tab)

    link = console.link()
    tab.goto(link)
    shows_runs(tab)
    assert "key" not in tab.url

    tab.reload()
    shows_runs(tab)
    second = new_tab(tab.context)
    second.goto(f"{console.url}/")
    shows_runs(second)

    replayed = new_tab(browser.new_context())
    replayed.goto(link)
    expect(replayed.get_by_text("already used")).to_be_visible()
    shows_the_login(replayed)

    console.end()
    console.start()
    tab.reload()
    shows_runs(tab)


def test_another_page_of_this_machine_is_nobody(
    cluster: FakeCluster, console: RunningConsole, tab: Page, browser: Any, other_server: tuple[str, list[str]]
) -> None:
    cluster.create(RUN, "gpt2-local", total_steps=500)
    tab.goto(console.link())
    shows_runs(tab)
    secret = tab.evaluate("sessionStorage.getItem('steerway-secret')")
    stream = console.url.replace("http", "ws") + "/_stcore/stream"
    protocols = ["streamlit", "x", "y"]
    assert tab.evaluate(OPENS_STREAM, [stream, protocols]) == "open"

    address, shown = other_server
    foreign = new_tab(tab.context)
    foreign.goto(address)
    assert "steerway_console_" in shown[-1], "the cookie alone is known to every server of this machine"
    assert foreign.evaluate("sessionStorage.getItem('steerway-secret')") is None
    for tried in (protocols, [*protocols, f"steerway.{secret}"]):
        assert foreign.evaluate(OPENS_STREAM, [stream, tried]).startswith("closed")
    foreign.evaluate(
        "(url) => { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }", console.url
    )
    foreign.wait_for_timeout(1500)
    assert all(RUN not in frame.content() for frame in foreign.frames)

    stolen = browser.new_context()  # the cookie in another browser, without the secret
    stolen.add_cookies(tab.context.cookies())
    thief = new_tab(stolen)
    thief.goto(console.url)
    shows_the_login(thief)


def test_foreign_name_of_this_machine_gets_403(console: RunningConsole, tab: Page) -> None:
    refused: list[int] = []
    tab.on("response", lambda answer: refused.append(answer.status))
    tab.goto(console.url.replace("127.0.0.1", "evil.localhost"))
    assert refused == [403]
    expect(tab.get_by_text("not served under this name")).to_be_visible()


def test_token_of_a_user_logs_in(cluster: FakeCluster, console: RunningConsole, tab: Page) -> None:
    cluster.create(RUN, "gpt2-local", total_steps=500)
    tab.goto(console.url)
    tab.get_by_label("Token").fill("not-a-token")
    tab.get_by_role("button", name="Log in").click()
    expect(tab.get_by_text("is unknown, expired or revoked")).to_be_visible()
    tab.get_by_label("Token").fill(cluster.environment["STEERWAY_TOKEN"])
    tab.get_by_role("button", name="Log in").click()
    shows_runs(tab)

    tab.goto(f"{console.url}/login")
    tab.get_by_role("button", name="Log out").click()
    shows_the_login(tab)
    tab.goto(console.url)
    shows_the_login(tab)
