"""Screenshots of the health of a run in the console: light and dark, on a desktop and on a phone.

`python -m tests.ui.health.screens FOLDER` writes them in about two minutes. It needs Chromium. The training and its
alerts are real, the control server is; ranks and gateway run in one process.
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.ui.conftest import CHROMIUM, CHROMIUM_FLAGS, RunningConsole
from tests.ui.fake_cluster import FakeCluster
from tests.ui.health.measured_run import MeasuredTrainer

RUN, STEPS, BEGAN_S_AGO = "mlp-fp16-3b07", 382, 60.0
STEPS_PER_S = 0.1
WINDOWS = {"desktop": (1200, 1000), "phone": (390, 844)}
PATIENCE_MS = 120_000
FULL = "() => document.querySelector('[data-testid=stMain]').scrollHeight"


def shoot(browser: Browser, console: RunningConsole, folder: Path) -> None:
    """Write a screenshot of the window, and one of the whole page, for each theme and size."""
    for theme in ("light", "dark"):
        for name, (width, height) in WINDOWS.items():
            options = {"viewport": {"width": width, "height": height}, "color_scheme": theme}
            page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
            page.set_default_timeout(PATIENCE_MS)
            page.goto(console.link(f"/run?run={RUN}&signs=hooks"))
            page.locator(".echarts-container canvas").nth(1).wait_for()
            page.wait_for_timeout(4000)
            page.screenshot(path=folder / f"health-{theme}-{name}.png")
            page.set_viewport_size({"width": width, "height": page.evaluate(FULL) + 300})
            page.wait_for_timeout(2500)
            page.screenshot(path=folder / f"health-{theme}-{name}-whole.png")
            page.context.close()


def main() -> None:
    """Write the screenshots."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with FakeCluster() as cluster, tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        made = cluster.create(
            RUN, "mlp-fp16", BEGAN_S_AGO, rank_0=MeasuredTrainer, ranks=2, total_steps=2000, save_every=60
        )
        cluster.train(made, STEPS)
        cluster.go_on(made, STEPS_PER_S)
        console = RunningConsole(cluster.environment, Path(home))
        try:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
            shoot(browser, console, folder)
            browser.close()
        finally:
            console.end()


if __name__ == "__main__":
    main()
