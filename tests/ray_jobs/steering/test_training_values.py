"""Values under `training:` are what they mean to TrainingArguments, by each argument's own type, or are refused."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import load
from ray_jobs.config.training_keys import OWN_TRAINING_KEYS, check_training_keys

GOOD = Path(__file__).parents[3] / "configs" / "gpt2-local.yaml"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.bf16=no", "but TrainingArguments takes bool; write true or false."),
        ("training.activation_checkpointing=off", "takes bool | None; write true or false."),
        ("training.torch_compile='false'", "takes bool; write true or false."),
        ("training.include_num_input_tokens_seen=off", "takes str | bool; write true or false."),
        ("training.liger_kernel_config={rope: n}", "takes dict[str, bool] | None"),
        ("training.dataloader_num_workers='2'", "takes int; write numbers without quotes."),
        ("training.label_smoothing_factor='0.1'", "takes float; write numbers without quotes."),
        ("training.neftune_noise_alpha='5'", "takes float | None; write numbers without quotes."),
    ],
)
def test_values_that_would_mean_something_else_are_refused(override: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_training_keys(load(GOOD, [override]))
    assert words in refused.value.reason


@pytest.mark.parametrize(
    "override",
    [
        "training.eval_strategy=no",
        "training.include_num_input_tokens_seen=no",
        "training.label_smoothing_factor=1",
        "training.bf16=false",
        "training.debug=[underflow_overflow]",
        "training.lr_scheduler_kwargs={num_cycles: 2}",
    ],
)
def test_training_values_of_the_arguments_own_type_are_taken(override: str) -> None:
    check_training_keys(load(GOOD, [override]))


def test_no_switch_of_the_training_takes_text() -> None:
    """Text is true, whatever it says."""
    from transformers import TrainingArguments

    switches = [
        name
        for name, field in TrainingArguments.__dataclass_fields__.items()
        if field.init and field.type in (bool, bool | None) and name not in OWN_TRAINING_KEYS
    ]
    assert len(switches) > 20
    for name in switches:
        with pytest.raises(Invalid, match=f"training.{name} is 'no'"):
            check_training_keys(load(GOOD, [f"training.{name}=no"]))
