"""One real cluster for every test in this folder: bringing it up costs more than they do."""

from collections.abc import Iterator

import pytest

from control_plane.client import SteerwayClient
from tests.ray.cluster import Cluster, running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("home")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Iterator[SteerwayClient]:
    with cluster.client() as client:
        yield client
