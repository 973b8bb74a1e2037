"""The console in a real browser: what no test without a canvas can see."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from control_plane.core.model.commands import SaveCheckpoint
from tests.ui.conftest import RunningConsole
from tests.ui.fake_cluster import FakeCluster

pytestmark = pytest.mark.browser

PATIENCE_MS = 20_000
CHART = ".echarts-container"

INK = """(selector) => {
  const canvas = document.querySelector(selector + ' canvas');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) seen.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
  return [...seen];
}"""
"""Every colour on the canvas."""

STEP_IS_BEYOND = "(n) => Number(document.body.innerText.match(/step ([\\d,]+) of/)[1].replace(',', '')) > n"
RANGE_IS = "([selector, test]) => new Function('a', 'b', 'return ' + test)"
RANGE_IS += "(...(document.querySelector(selector).dataset.range || '0 0').split(' ').map(Number))"


def open_page(browser: Any, complaints: list[str], **options: Any) -> Page:
    """A page that writes down what the browser complains about."""
    page: Page = browser.new_context(viewport={"width": 1500, "height": 1000}, **options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"no answer from {request.url}"))
    page.on("console", lambda said: complaints.append(f"{said.text} {said.location}") if said.type == "error" else None)
    return page


def serious(complaints: list[str]) -> list[str]:
    """Without those about Streamlit's own probing for its base path, which a page below `/` answers with 404.

    Nor about the login page's icon, which the browser gives up when it goes on to the console.
    """
    harmless = ("_stcore/health", "_stcore/host-config", "/login/icon.svg")
    return [said for said in complaints if not any(each in said for each in harmless)]


def shown_range(page: Page) -> tuple[float, float]:
    """The range of x that the charts show."""
    low, high = page.locator(CHART).get_attribute("data-range").split(" ")
    return float(low), float(high)


def wait_for_range(page: Page, test: str) -> None:
    """Wait until the range from `a` to `b` passes this test (a JavaScript expression)."""
    page.wait_for_function(RANGE_IS, arg=[CHART, test])


def halve_the_range(page: Page) -> None:
    """Drag the slider's right handle to the middle."""
    box = page.locator(CHART).bounding_box()
    assert box is not None
    y, left, right = box["y"] + box["height"] - 17, box["x"] + 56, box["x"] + box["width"] - 16
    page.mouse.move(right, y)
    page.mouse.down()
    page.mouse.move((left + right) / 2, y, steps=4)
    page.mouse.up()


def test_live_run_in_a_browser_is_steered_and_keeps_its_zoom(
    cluster: FakeCluster, console: RunningConsole, browser: Any
) -> None:
    complaints: list[str] = []
    trainer = cluster.create("gpt2-1", "gpt2-local", total_steps=5000)
    cluster.train(trainer, 300)
    cluster.go_on(trainer, steps_per_s=10)
    page = open_page(browser, complaints, color_scheme="light")

    page.goto(console.link("/run?run=gpt2-1&smooth=0.3"))
    page.wait_for_selector(f"{CHART} canvas")
    wait_for_range(page, "b > 300")
    before_change = set(page.evaluate(INK, CHART))
    assert len(before_change) > 20, "the canvas is as good as empty"
    _, end = shown_range(page)
    wait_for_range(page, f"b > {end}")  # not zoomed: the charts follow the run

    page.get_by_label("Value", exact=True).fill("1e-4")
    halve_the_range(page)
    wait_for_range(page, "b < 260")
    zoomed = shown_range(page)

    expect(page.get_by_label("Value", exact=True)).to_have_value("1e-4")  # refreshes do not touch what is being typed
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("applied at step").first).to_be_visible()
    expect(page.get_by_text("on 4 of 4 ranks").first).to_be_visible()
    expect(page.get_by_text("read back on every rank").first).to_be_visible()

    seen_to = trainer.done
    page.wait_for_function(
        "(n) => Number(document.body.innerText.match(/step ([\\d,]+) of/)[1].replace(',', '')) > n", arg=seen_to + 50
    )
    assert shown_range(page) == zoomed, "the zoom did not outlive the refreshes"

    page.locator(CHART).dblclick(position={"x": 200, "y": 120})
    wait_for_range(page, f"b > {seen_to}")
    red = {(0xBE << 16) | (0x12 << 8) | 0x3C}
    assert red <= set(page.evaluate(INK, CHART)) - before_change, "there is no mark of the intervention"
    assert serious(complaints) == []


def test_live_run_that_loses_its_trainers_says_so_and_shows_the_way_back(
    cluster: FakeCluster, console: RunningConsole, browser: Any
) -> None:
    complaints: list[str] = []
    trainer = cluster.create("gpt2-1", "gpt2-local", total_steps=5000)
    cluster.train(trainer, 250, {200: (SaveCheckpoint(), "")})
    cluster.go_on(trainer, steps_per_s=10)
    page = open_page(browser, complaints, color_scheme="light")
    page.goto(console.link("/run?run=gpt2-1"))
    page.wait_for_selector(f"{CHART} canvas")
    wait_for_range(page, "b > 250")

    cluster.do(trainer.lose([1], "its process ended"))
    expect(page.get_by_text("re-form and load").first).to_be_visible()
    expect(page.get_by_text("recovering").first).to_be_visible()

    cluster.do(trainer.come_back())
    expect(page.get_by_text("restored step-00000200-g1 (step 200) · 4 ranks as before").first).to_be_visible()
    expect(page.get_by_text("re-form and load").first).to_be_hidden()
    wait_for_range(page, "b > 255")
    assert serious(complaints) == []


def test_live_run_is_taken_back_to_a_checkpoint_and_shows_both_branches(
    cluster: FakeCluster, console: RunningConsole, browser: Any
) -> None:
    complaints: list[str] = []
    trainer = cluster.create("gpt2-1", "gpt2-local", total_steps=5000, save_every=100)
    cluster.train(trainer, 250)
    cluster.go_on(trainer, steps_per_s=10)
    page = open_page(browser, complaints, color_scheme="light")
    page.goto(console.link("/run?run=gpt2-1"))
    page.wait_for_selector(f"{CHART} canvas")
    wait_for_range(page, "b > 250")
    expect(page.get_by_text("Branches", exact=True)).to_be_hidden()

    page.get_by_role("button", name="Roll back here").last.click()
    expect(page.get_by_text("Roll back to step 100")).to_be_visible()
    page.get_by_label("Name of the branch").fill("calm")
    page.get_by_label("Learning rate from there on").fill("1e-4")
    page.wait_for_function(STEP_IS_BEYOND, arg=trainer.done + 20)
    expect(page.get_by_label("Name of the branch")).to_have_value("calm")  # the page lives on, the dialog stays
    page.get_by_role("button", name="Roll back", exact=True).click()

    expect(page.get_by_text("from step 100 of main to step").first).to_be_visible()
    expect(page.get_by_text("began with lr = 0.0001").first).to_be_visible()
    expect(page.get_by_role("button", name="Switch to this branch")).to_have_count(1)
    assert (trainer.branch, trainer.done < 250) == ("calm", True)
    expect(page.get_by_text("Roll back to step 100")).to_be_hidden()
    page.wait_for_function(STEP_IS_BEYOND, arg=trainer.done + 20)
    assert serious(complaints) == []
