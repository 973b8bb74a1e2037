"""`use_gpu: auto` means GPUs wherever the cluster declares one, however many there are at this moment."""

from types import SimpleNamespace

import pytest
from ray._private import state, worker

from ray_jobs import launch
from ray_jobs.driver import devices
from ray_jobs.driver.devices import declares_gpus

CPUS = {"CPU": 8.0}
GPUS = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "groups", "expected"),
    [
        ([], [], False),
        ([CPUS, CPUS], [], False),
        ([CPUS, GPUS], [], True),
        ([CPUS], [(GPUS, 4)], True),  # a pool at 0 nodes
        ([CPUS], [(GPUS, -1)], True),  # a pool without a bound
        ([CPUS], [(GPUS, 0)], False),  # a pool that may have no node
        ([CPUS], [(CPUS, 4)], False),
        ([CPUS], [({"CPU": 8, "GPU": 0}, 4)], False),
    ],
)
def test_any_declared_gpu_counts(
    nodes: list[dict[str, float]], groups: list[tuple[dict[str, float], int]], expected: bool
) -> None:
    assert declares_gpus(nodes, groups) is expected


def test_auto_means_gpus_also_where_there_are_fewer_than_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(scaling=SimpleNamespace(use_gpu="auto", bounds=(8, 8)))
    monkeypatch.setattr(launch, "node_groups", list)
    monkeypatch.setattr(launch, "known_nodes", lambda: [GPUS])
    assert launch.use_gpu(settings)  # type: ignore[arg-type]
    monkeypatch.setattr(launch, "known_nodes", lambda: [CPUS])
    assert not launch.use_gpu(settings)  # type: ignore[arg-type]
    monkeypatch.setattr(launch, "node_groups", lambda: [(GPUS, 2)])
    assert launch.use_gpu(settings)  # type: ignore[arg-type]
    settings.scaling.use_gpu = False
    assert not launch.use_gpu(settings)  # type: ignore[arg-type]


def test_groups_are_read_as_rays_autoscaler_reports_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.core.generated import autoscaler_pb2

    cluster = autoscaler_pb2.ClusterConfig()  # type: ignore[attr-defined]
    group = cluster.node_group_configs.add(name="gpu-pool", min_count=0, max_count=4)
    group.resources.update({"CPU": 8, "GPU": 1})
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: cluster)
    assert devices.node_groups() == [({"CPU": 8, "GPU": 1}, 4)]
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: None)
    assert devices.node_groups() == []


def test_a_ray_that_does_not_tell_its_groups_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed() -> None:
        raise AttributeError("get_cluster_config")

    monkeypatch.setattr(state.state, "get_cluster_config", renamed)
    assert devices.node_groups() == []


def test_a_node_that_is_down_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "up": SimpleNamespace(state=0, resources_total=CPUS),
        "down": SimpleNamespace(state=1, resources_total=GPUS),
    }
    client = SimpleNamespace(get_all_node_info=lambda: told)
    monkeypatch.setattr(worker.global_worker, "gcs_client", client, raising=False)
    assert devices.known_nodes() == [CPUS, GPUS]
    monkeypatch.setattr(client, "get_all_node_info", None)
    monkeypatch.setattr("ray.nodes", lambda: [{"Resources": CPUS}])
    assert devices.known_nodes() == [CPUS]
