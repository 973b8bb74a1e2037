"""Proposals answered in a real browser, with screenshots: light and dark, on a desktop and on a phone.

`python -m tests.ui.agent.screens FOLDER` approves, edits and rejects, lets one expire and one be done at once, and
writes what the page shows. It needs Chromium. Control server and console are real; ranks and gateway run in one
process.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.ui.agent.test_proposals import proposals, propose, told
from tests.ui.conftest import CHROMIUM, CHROMIUM_FLAGS, RunningConsole
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer

RUN, STEPS = "gpt2-agent-7c21", 220
WINDOWS = {"desktop": (1200, 1000), "phone": (390, 844)}
PATIENCE_MS = 120_000
DEADLINE_S = 75.0
FULL = "() => document.querySelector('[data-testid=stMain]').scrollHeight"


def waits_for(cluster: FakeCluster, trainer: FakeTrainer, verdict: str) -> None:
    """Assert the verdict of the newest proposal."""
    assert proposals(cluster, trainer)[-1].verdict == verdict, proposals(cluster, trainer)[-1]


def answer(cluster: FakeCluster, trainer: FakeTrainer, page: Page) -> None:
    """Approve, edit and reject in the browser; one is done at once; and one more is left to its deadline."""
    rate: dict[str, Any] = {"kind": "set_learning_rate"}
    propose(cluster, trainer, rate | {"factor": 4.0})
    page.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    waits_for(cluster, trainer, "approved")
    propose(cluster, trainer, rate | {"factor": 10.0})
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Do this instead").fill("set lr*=1.5")
    page.get_by_label("Do this instead").press("Enter")
    page.get_by_role("button", name="Approve this").click()
    expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    waits_for(cluster, trainer, "edited")
    propose(cluster, trainer, {"kind": "stop"})
    page.get_by_role("button", name="Reject").click()
    page.get_by_label("Why").fill("the evaluation comes first")
    page.get_by_label("Why").press("Enter")
    page.get_by_role("button", name="Reject it").click()
    expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    waits_for(cluster, trainer, "rejected")
    propose(cluster, trainer, rate | {"factor": 0.5})
    waits_for(cluster, trainer, "automatic")


def shoot(page: Page, folder: Path, name: str, width: int) -> None:
    """Write a screenshot of the window, and one of the whole page."""
    page.wait_for_timeout(4000)
    page.screenshot(path=folder / f"{name}.png")
    page.set_viewport_size({"width": width, "height": page.evaluate(FULL) + 300})
    page.wait_for_timeout(2500)
    page.screenshot(path=folder / f"{name}-whole.png")


def main() -> None:
    """Answer proposals and write the screenshots."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with FakeCluster() as cluster, tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        trainer = cluster.create(RUN, "gpt2-local", total_steps=2000)
        cluster.train(trainer, STEPS)
        cluster.go_on(trainer, 1.0)
        settings = {"policy": "rule", "deadline_s": DEADLINE_S}
        told(cluster, trainer, "operator", "ann", {"kind": "start_agent", "settings": settings})
        console = RunningConsole(cluster.environment, Path(home))
        try:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
            page = browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.goto(console.link(f"/run?run={RUN}"))
            page.get_by_text("guarded, started by ann").wait_for()
            answer(cluster, trainer, page)
            propose(cluster, trainer, {"kind": "set_learning_rate", "factor": 8.0})
            page.get_by_role("button", name="Approve", exact=True).wait_for()
            page.get_by_text("made at once").wait_for(state="attached")
            for theme in ("light", "dark"):
                for window, (width, height) in WINDOWS.items():
                    options: dict[str, Any] = {"viewport": {"width": width, "height": height}, "color_scheme": theme}
                    own = browser.new_context(**options).new_page()
                    own.set_default_timeout(PATIENCE_MS)
                    own.goto(console.link(f"/run?run={RUN}"))
                    own.locator(".echarts-container canvas").first.wait_for()
                    shoot(own, folder, f"proposals-{theme}-{window}", width)
                    own.context.close()
            expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0, timeout=PATIENCE_MS)
            waits_for(cluster, trainer, "expired")
            print([view.verdict for view in proposals(cluster, trainer)])
            browser.close()
        finally:
            console.end()


if __name__ == "__main__":
    main()
