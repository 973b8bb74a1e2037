"""Sentences about values of a config that cannot be used: what each setting wants, by the kind of pydantic's error."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from control_plane.config_text import shown
from ray_jobs.config.sections import ACCELERATOR_TYPE, LABEL_SELECTOR


def unusable_values(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the error of each value that no setting can have: NaN, infinities, other types."""
    if isinstance(value, dict):
        for name, below in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                yield inner, f"{inner} has the key {shown(name)}, but keys must be text"
            yield from unusable_values(below, inner)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from unusable_values(below, f"{key}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, f"{key} is {value}, but must be a finite number"
    elif value is not None and not isinstance(value, str | int | float):
        yield (
            key,
            f"{key} is {shown(value)}, but must be text, a number, true, false, null, a list or a mapping",
        )


_NAME = "1 to 64 of a-z, 0-9, '_' and '-', the first a letter or a digit"
_PATTERNS = {
    LABEL_SELECTOR: "a label's value, '!value', 'in(a, b)' or '!in(a, b)'",
    ACCELERATOR_TYPE: "a type of accelerator as Ray names it, such as A100",
}

WANTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "an integer",
    "float_type": lambda _: "a number",
    "bool_type": lambda _: "true or false",
    "string_type": lambda _: "text",
    **dict.fromkeys(("list_type", "tuple_type"), lambda _: "a list"),
    "too_short": lambda context: f"a list of at least {context['min_length']}",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), lambda _: "a mapping of keys to values"),
    "literal_error": lambda context: f"one of {context['expected']}",
    "greater_than": lambda context: f"greater than {context['gt']}",
    "greater_than_equal": lambda context: f"at least {context['ge']}",
    "less_than": lambda context: f"less than {context['lt']}",
    "less_than_equal": lambda context: f"at most {context['le']}",
    "string_pattern_mismatch": lambda context: _PATTERNS.get(context["pattern"], _NAME),
}
