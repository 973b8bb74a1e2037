"""Fast tests first: whoever waits for a failure should not wait for the clusters."""

import pytest
from hypothesis import settings

# How long an example takes says something about the machine, which is shared and noisy.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

SLOWNESS = ("jobs", "browser", "ray", "gpu", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def slowness(item: pytest.Item) -> int:
        return max((SLOWNESS.index(mark) + 1 for mark in SLOWNESS if item.get_closest_marker(mark)), default=0)

    items.sort(key=slowness)
