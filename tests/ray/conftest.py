"""One real cluster for every test in this folder: bringing it up costs more than they do."""

import json
from collections.abc import Iterator

import pytest

from control_plane.client import SteerwayClient
from tests.gateway.health.receiver import Receiver, receiving
from tests.ray.cluster import Cluster, running

WEBHOOK_SECRET = "canary-secret-of-a-webhook"


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """The service that the cluster's webhooks tell of alerts."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    webhooks = [
        {"name": "ops", "url": f"{receiver.url}/ops", "secret": WEBHOOK_SECRET},
        {"name": "chat", "url": f"{receiver.url}/chat", "format": "slack"},
    ]
    (home / "webhooks.json").write_text(json.dumps(webhooks))
    (home / "webhooks.json").chmod(0o600)
    with running(home) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Iterator[SteerwayClient]:
    with cluster.client() as client:
        yield client
