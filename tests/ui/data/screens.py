"""The Dataset panel in a real browser: `python -m tests.ui.data.screens FOLDER` sends records, and sets weights.

It needs Chromium. Control server, gateway and console are real; the ranks are not.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.ui.conftest import CHROMIUM, CHROMIUM_FLAGS, RunningConsole
from tests.ui.data.mixing_trainer import MixingTrainer
from tests.ui.data.test_dataset import with_files
from tests.ui.fake_cluster import FakeCluster

RUN, STEPS = "gpt2-mix-5a90", 180
WINDOWS = {"desktop": (1280, 1000), "phone": (390, 844)}
PATIENCE_MS = 120_000


def send_records(page: Page) -> None:
    """Send a file of twelve records, and one with a bad record, which is refused."""
    good = "".join(json.dumps({"text": f"what user {n} did"}) + "\n" for n in range(12))
    for name, content in (("more.jsonl", good), ("bad.jsonl", '{"text": 1}\n')):
        page.get_by_role("button", name="Add records").click()
        page.locator("input[type=file]").set_input_files(
            {"name": name, "mimeType": "text/plain", "buffer": content.encode()}
        )
        page.get_by_role("button", name="Send", exact=True).click()
        page.get_by_text("12 new records" if name == "more.jsonl" else "line 1").first.wait_for()
        page.keyboard.press("Escape")


def main() -> None:
    """Send records, set weights, and write the screenshots."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with FakeCluster() as cluster, tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        announcer = with_files(cluster, Path(home) / "runs", RUN)
        trainer = cluster.create(RUN, "gpt2-mix", rank_0=MixingTrainer, total_steps=2000)
        cluster.train(trainer, STEPS)
        cluster.go_on(trainer, 1.0)
        console = RunningConsole(cluster.environment, Path(home))
        try:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1400})
            page.set_default_timeout(PATIENCE_MS)
            page.goto(console.link(f"/run?run={RUN}"))
            page.get_by_text("Dataset", exact=True).wait_for()
            send_records(page)
            announcer.wake(RUN, "fresh")
            for _ in range(20):
                cluster.do(announcer.look())
                page.wait_for_timeout(500)
            expect(page.get_by_text("drawn from step").first).to_be_attached()
            page.get_by_role("button", name="Change weights").click()
            page.wait_for_timeout(1500)
            page.screenshot(path=folder / "weights.png")
            page.keyboard.press("Escape")
            for theme in ("light", "dark"):
                for window, (width, height) in WINDOWS.items():
                    options: dict[str, Any] = {"viewport": {"width": width, "height": height}, "color_scheme": theme}
                    own = browser.new_context(**options).new_page()
                    own.set_default_timeout(PATIENCE_MS)
                    own.goto(console.link(f"/run?run={RUN}"))
                    own.get_by_text("Newest shards").click()
                    own.wait_for_timeout(4000)
                    own.get_by_text("Dataset", exact=True).scroll_into_view_if_needed()
                    own.get_by_text("Newest shards").scroll_into_view_if_needed()
                    own.wait_for_timeout(500)
                    own.screenshot(path=folder / f"dataset-{theme}-{window}.png")
                    own.context.close()
            browser.close()
        finally:
            console.end()


if __name__ == "__main__":
    main()
