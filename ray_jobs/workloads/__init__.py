"""Models and data of the shipped configs.

`build(config)` runs in every worker process. Torch and transformers are imported by the call.
"""

from pathlib import Path

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import RunConfig
from ray_jobs.workloads.workload import Workload

__all__ = ["Workload", "build"]


def build(config: RunConfig, folder: Path | None = None) -> Workload:
    """Build the model and the data of a config. `folder` holds the shards of live sources.

    Raises `Invalid` for a script workload, or unusable data.
    """
    if config.workload.kind != "gpt2":
        raise Invalid(f"{config.name}: workload.kind is {config.workload.kind}, which builds its own model and data.")
    from ray_jobs.workloads import gpt2

    return gpt2.build(config, folder)
