"""A user's project as it lies on a laptop, and its way to a cluster by the gateway."""

from pathlib import Path

from control_plane.api.launching import LaunchRequest
from control_plane.client import SteerwayClient
from control_plane.storage.code.packing import packed
from tests.ray.cluster import REPOSITORY

USES = """
import cluster
import ui

Path("seen.txt").write_text(f"{cluster.__file__} and {ui.__file__}: {cluster.NUMBERS}")
"""
"""Modules of the user's with names of ours, and a data file by a relative path."""

CONFIG = """
name: sent
seed: 1
scaling: {{ranks: 2, cpus_per_rank: 1, use_gpu: auto}}
workload: {{kind: script, path: /nowhere/on/the/cluster.py, args: [trainer-output, "{steps}"]}}
checkpoint: {{every_steps: 50, keep_last: 3}}
"""


def write_project(folder: Path) -> None:
    """Write the README's script with two modules and a data file."""
    (folder / "ui").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "numbers.csv").write_text("1,2,3")
    (folder / "ui" / "__init__.py").write_text("")
    (folder / "cluster.py").write_text('NUMBERS = open("data/numbers.csv").read()\n')
    (folder / "zero2.json").write_text((REPOSITORY / "examples" / "zero2.json").read_text())
    head, marker, rest = (REPOSITORY / "examples" / "steerable_trainer.py").read_text().partition("SteerableTrainer = ")
    (folder / "train.py").write_text(head + USES + marker + rest)


def launch(client: SteerwayClient, folder: Path, steps: int, more: str = "") -> str:
    """Send the project and begin a run of it."""
    with packed(folder) as bundle:
        sha256 = client.upload_bundle(bundle.path)
    request = LaunchRequest(config=CONFIG.format(steps=steps) + more, bundle=sha256, script="train.py")
    return client.launch(request).runs[0].run
