"""Public API of Steerway; every other package may change between releases.

    from steerway import make_interactive      steer a Hugging Face Trainer
    from steerway import TrainingSession       steer any other training loop
    from steerway import SampleOrder           order of its samples, the same on any number of ranks
    from steerway import mixture               samples drawn from the run's sources, whose weights and data change live
    from steerway import Client, errors        send commands to a running gateway

Names are imported when they are first used: `Client` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

from control_plane.api.versions import release
from control_plane.core.model import errors

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient as Client
    from ray_jobs.data.mixture.dataset import mixture
    from ray_jobs.data.sample_order import SampleOrder
    from ray_jobs.hf.trainer import InteractiveTrainer, make_interactive
    from ray_jobs.loop.session import TrainingSession

__all__ = [
    "Client",
    "InteractiveTrainer",
    "SampleOrder",
    "TrainingSession",
    "__version__",
    "errors",
    "make_interactive",
    "mixture",
]

_HOMES = {
    "Client": ("control_plane.client", "SteerwayClient"),
    "InteractiveTrainer": ("ray_jobs.hf.trainer", "InteractiveTrainer"),
    "SampleOrder": ("ray_jobs.data.sample_order", "SampleOrder"),
    "TrainingSession": ("ray_jobs.loop.session", "TrainingSession"),
    "make_interactive": ("ray_jobs.hf.trainer", "make_interactive"),
    "mixture": ("ray_jobs.data.mixture.dataset", "mixture"),
}

__version__ = release(not_installed="0+unknown")


def __getattr__(name: str) -> object:
    """Import a public name on first use. Raises ImportError with the extra to install if packages are missing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steerway' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"steerway.{name} needs the package {missing.name!r}, which is not installed: pip install 'steerway[train]'"
        ) from missing
