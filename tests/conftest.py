"""Fast tests first: whoever waits for a failure should not wait for the clusters."""

import pytest

SLOWNESS = ("jobs", "browser", "ray", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def slowness(item: pytest.Item) -> int:
        return max((SLOWNESS.index(mark) + 1 for mark in SLOWNESS if item.get_closest_marker(mark)), default=0)

    items.sort(key=slowness)
