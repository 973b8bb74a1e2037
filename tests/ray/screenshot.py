"""Screenshot of the console for README: a real run on two CPU ranks, with interventions and a rollback.

`python -m tests.ray.screenshot` writes docs/console.png in about three minutes. It needs Chromium.
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from control_plane.client import SteerwayClient
from control_plane.console_login import create_link
from control_plane.core.model.commands import Intent, SaveCheckpoint, SetLearningRate
from control_plane.core.model.intents import Rollback, SetKnobs
from control_plane.core.model.values import Change
from tests.ray.cluster import REPOSITORY, Cluster, running, wait_for_step
from tests.ui.conftest import CHROMIUM, CHROMIUM_FLAGS

TARGET = REPOSITORY / "docs" / "console.png"
WIDTH, HEIGHT = 1500, 1060
MAX_BYTES = 300_000
LABEL = "before the experiment"


def steer(cluster: Cluster, client: SteerwayClient) -> str:
    """Start a run, change it at several steps, and return its id while it is still training."""
    run = cluster.submit(str(REPOSITORY / "configs/gpt2-local.yaml"))

    def send(step: int, intent: Intent, reason: str) -> None:
        wait_for_step(cluster, client, run, step)
        client.wait_settled(run, client.submit(run, intent, reason=reason).uuid, 60)

    send(130, SetLearningRate(factor=0.5), "loss is bouncing")
    send(200, SaveCheckpoint(label=LABEL, pin=True), "a state to return to")
    send(230, SetKnobs(changes=(Change(knob="weight_decay", value=0.1),)), "gap to the evaluation loss")
    send(260, SetLearningRate(value=1e-2), "an experiment")
    saved = next(found for found in client.snapshot(run).checkpoints if found.label == LABEL)
    lower = SetLearningRate(value=6e-4)
    send(330, Rollback(checkpoint=saved.checkpoint, first=(lower,)), "too fast: back, with a lower rate")
    wait_for_step(cluster, client, run, 420)
    return run


def show(page: Page, cluster: Cluster, run: str) -> None:
    """Open the page of the run, and return when its charts are drawn."""
    page.goto(create_link(cluster.settings, page=f"/run?run={run}&smooth=0.3"))
    page.wait_for_selector(".echarts-container canvas", timeout=60_000)
    page.wait_for_timeout(6_000)


def main() -> None:
    """Write the screenshot. Fails if it is larger than README may load."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=TARGET)
    target = parser.parse_args().output
    with (
        tempfile.TemporaryDirectory() as home,
        running(Path(home) / "home") as cluster,
        cluster.client() as client,
        sync_playwright() as playwright,
    ):
        run = steer(cluster, client)
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        show(page, cluster, run)
        page.screenshot(path=target)
        browser.close()
    if target.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{target} has {target.stat().st_size} bytes; README's limit is {MAX_BYTES}")


if __name__ == "__main__":
    main()
