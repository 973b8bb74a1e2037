"""Knob specifications: what the trainers announce is what everybody else reads, and malformed ones are rejected."""

import sys
from typing import Any

import pytest

from control_plane.core.model.knobs import MAX_FLOAT, KnobSpec, numbers


@pytest.mark.parametrize(
    "spec",
    [
        KnobSpec("plain"),
        KnobSpec("betas", "numbers", least=0.0, below=1.0, per_group=True, description="Adam's decay rates"),
        KnobSpec("eval_steps", "integer", least=1),
    ],
)
def test_a_specification_is_read_as_it_was_announced(spec: KnobSpec) -> None:
    assert KnobSpec.parse(spec.name, spec.facts()) == spec


def test_facts_leave_out_what_is_not_set() -> None:
    assert KnobSpec("x", least=0.0).facts() == {"per_group": False, "kind": "number", "least": 0.0}


@pytest.mark.parametrize("facts", [None, "text", [], {"kind": "text"}, {"least": "0"}, {"most": float("nan")}])
def test_malformed_facts_are_no_specification(facts: Any) -> None:
    assert KnobSpec.parse("x", facts) is None


def test_numbers_of_nested_lists_leave_out_what_is_none() -> None:
    assert numbers([1, [2.5, None, True], "3", 10**400]) == [1.0, 2.5]
    assert sys.float_info.max == MAX_FLOAT
