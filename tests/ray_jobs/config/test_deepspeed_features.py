"""What DeepSpeed can do and a run cannot keep is refused by name, when it is submitted or before a step is made."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from control_plane.core.model.errors import Refused
from ray_jobs.config.deepspeed_features import MORE_THAN_ONE, SWITCHED_ON, check, unsupported, unsupported_engine


def config_of(key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    config: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    place = config
    for name in path:
        place = place.setdefault(name, {})
    place[last] = value
    return config


CASES = [
    *((key, 2, 1) for key in MORE_THAN_ONE),
    *((key, True, False) for key in SWITCHED_ON),
    ("zero_optimization.offload_param.device", "nvme", "cpu"),
    ("zero_optimization.offload_optimizer.device", "nvme", "cpu"),
    ("zero_optimization.zenflow", {"topk_ratio": 0.1}, None),
    ("optimizer.type", "OnebitAdam", "AdamW"),
    ("compression_training.weight_quantization.shared_parameters.enabled", True, False),
]


@pytest.mark.parametrize(("key", "refused", "taken"), CASES, ids=[case[0] for case in CASES])
def test_feature_is_refused_by_its_key_and_no_other_value_of_it_is(key: str, refused: Any, taken: Any) -> None:
    (sentence,) = unsupported(config_of(key, refused))
    assert sentence.startswith("compression_training" if key.startswith("compression") else f"{key} is ")
    assert "a run does not support" in sentence
    assert unsupported(config_of(key, taken)) == []


def test_config_of_the_tests_and_auto_are_taken() -> None:
    taken = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": "auto"}}
    more = {"pipeline": {"stages": "auto"}, "activation_checkpointing": {}, "flops_profiler": {"enabled": True}}
    assert unsupported(taken | more) == []


class PipelineEngine:
    """Stands for DeepSpeed's."""


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (PipelineEngine(), "PipelineEngine"),
        (SimpleNamespace(has_moe_layers=True), "experts"),
        (SimpleNamespace(_config=SimpleNamespace(_param_dict={"elasticity": {"enabled": True}})), "scaling.min_ranks"),
    ],
)
def test_engine_that_a_script_has_made_is_refused(engine: Any, said: str) -> None:
    assert said in (unsupported_engine(engine) or "")
    with pytest.raises(Refused, match=said):
        check(torch.nn.Linear(1, 1), engine)


def test_config_and_parallelism_of_a_trainer_are_refused_before_its_engine_is_made() -> None:
    parallel: Any = SimpleNamespace(sp_size=2, tp_size=1)
    with pytest.raises(Refused, match=r"hybrid_engine.enabled is True.*Ulysses"):
        check(torch.nn.Linear(1, 1), None, config_of("hybrid_engine.enabled", True), parallel)
    check(torch.nn.Linear(1, 1), None)
