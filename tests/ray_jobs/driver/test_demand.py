"""Demand of a config on a cluster: GPUs wherever the cluster declares one, and Ray Train's part of the demand."""

from typing import Any

import pytest

from control_plane.actor.cluster_state import ClusterReader, groups_in, once_by_name
from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.core.rules.capacity import Node, NodeGroup, reason_never_fits
from ray_jobs import launch
from ray_jobs.config.demand import demand_of, uses_gpus
from ray_jobs.config.run_config import load
from ray_jobs.rank.shared_nodes import describe_shared
from tests.ray.cluster import REPOSITORY

CPUS = {"CPU": 8.0}
GPUS = {"CPU": 8.0, "GPU": 1.0}


def config(*overrides: str) -> Any:
    return load(REPOSITORY / "configs/gpt2-local.yaml", overrides)


def node(resources: dict[str, float], alive: bool = True, name: str = "a") -> Node:
    return Node(name, resources, resources if alive else {}, {}, alive)


@pytest.mark.parametrize(
    ("nodes", "groups", "expected"),
    [
        ([], [], False),
        ([node(CPUS), node(CPUS)], [], False),
        ([node(CPUS), node(GPUS)], [], True),
        ([node(CPUS), node(GPUS, alive=False)], [], True),  # a node that is down
        ([node(CPUS)], [NodeGroup("pool", GPUS, 4)], True),  # a pool at 0 nodes
        ([node(CPUS)], [NodeGroup("pool", GPUS, -1)], True),  # a pool without a bound
        ([node(CPUS)], [NodeGroup("pool", GPUS, 0)], False),  # a pool that may have no node
        ([node(CPUS)], [NodeGroup("pool", CPUS, 4)], False),
        ([node(CPUS)], [NodeGroup("pool", {"CPU": 8, "GPU": 0}, 4)], False),
    ],
)
def test_auto_means_gpus_wherever_any_is_declared(nodes: list[Node], groups: list[NodeGroup], expected: bool) -> None:
    assert uses_gpus(config(), nodes, groups) is expected
    assert not uses_gpus(config("scaling.use_gpu=false"), nodes, groups)
    assert uses_gpus(config("scaling.use_gpu=true"), nodes, groups)


def test_groups_are_read_as_rays_autoscaler_reports_them() -> None:
    from ray.core.generated import autoscaler_pb2

    cluster = autoscaler_pb2.ClusterConfig()  # type: ignore[attr-defined]
    group = cluster.node_group_configs.add(name="gpu-pool", min_count=0, max_count=4)
    group.resources.update({"CPU": 8, "GPU": 1})
    assert groups_in(cluster) == [NodeGroup("gpu-pool", {"CPU": 8.0, "GPU": 1.0}, 4)]
    assert groups_in(None) == []


def test_a_node_that_has_come_back_counts_once() -> None:
    old, new, other = node(GPUS, alive=False), node(GPUS), node(CPUS, alive=False, name="b")
    assert once_by_name([old, new, old, other, other]) == [new, other]


def test_a_ray_that_does_not_report_its_nodes_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(reader: ClusterReader) -> None:
        raise Unavailable("the Ray cluster does not report its resources: gone")

    monkeypatch.setattr(ClusterReader, "read", silent)
    assert launch.read_cluster().nodes == ()


def test_the_scaling_config_says_what_the_run_asks_for() -> None:
    settings = config(
        "scaling.ranks=3",
        "scaling.cpus_per_rank=2",
        "scaling.placement=spread",
        "scaling.strict=true",
        "scaling.labels={zone: 'in(a, b)'}",
        "scaling.accelerator_type=H100",
        "scaling.resources_per_rank={tape: 0.5}",
    )
    demand = demand_of(settings, gpu=True)
    assert demand.per_rank == {"CPU": 2.0, "GPU": 1.0, "tape": 0.5, "accelerator_type:H100": 0.001}
    scaling = launch.scaling_of(demand, settings)
    assert scaling.placement_strategy == "STRICT_SPREAD"
    # What Ray Train gives to its placement group.
    assert scaling._resources_per_worker_not_none == demand.per_rank
    assert scaling._label_selector_per_worker(3) == [{"zone": "in(a, b)"}] * 3
    assert scaling.num_workers == 3
    elastic = config("scaling.min_ranks=1", "scaling.max_ranks=2")
    plain = launch.scaling_of(demand_of(elastic, gpu=False), elastic)
    assert (plain.num_workers, plain.placement_strategy, plain.label_selector) == ((1, 2), "PACK", None)
    assert plain._resources_per_worker_not_none == {"CPU": 1}


def test_capacity_knows_the_accelerator_of_a_config() -> None:
    demand = demand_of(config("scaling.accelerator_type=H100", "scaling.use_gpu=true"), gpu=True)
    nodes = [Node("a", {"CPU": 8.0, "GPU": 8.0, "accelerator_type:A100": 1.0}, {}, {})]
    assert reason_never_fits(demand, nodes, []) == "needs accelerators of type H100; the cluster's types: A100"


@pytest.mark.parametrize(
    "selector", ["a", "!a", "in(a)", "in(a, b)", "!in(a,b)", "in()", "in(a", "!!a", "-a", "a b", "in(a,"]
)
def test_selectors_have_the_syntax_of_ray(selector: str) -> None:
    from ray._private.label_utils import validate_label_selector_value

    try:
        config(f"scaling.labels={{zone: '{selector}'}}")
        accepted = True
    except Invalid:
        accepted = False
    assert accepted is (validate_label_selector_value(selector) is None)


def test_ranks_that_share_a_node_are_named() -> None:
    assert describe_shared(["a", "b"]) is None
    assert describe_shared(["a", "a"]) == "2 ranks on 1 node: ranks 0, 1 on a"
    assert describe_shared(["a", "b", "a"]) == "3 ranks on 2 nodes: ranks 0, 2 on a"
