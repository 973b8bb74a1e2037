"""Conversion of logged and kept values to JSON: NumPy numbers and tensors of one element become plain numbers.

number(value)                the number that this is, or None
plain(state, left_out)       lists, mappings, text and numbers; what is none of them is left out, by its name
"""

from typing import Any

import numpy
import torch


def number(value: object) -> int | float | None:
    """The number, of NumPy or in a tensor of one element too; None for anything else, and for truth values."""
    if isinstance(value, numpy.generic):
        value = value.item()
    elif isinstance(value, numpy.ndarray | torch.Tensor):
        count = value.numel() if isinstance(value, torch.Tensor) else value.size
        value = value.item() if count == 1 else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def plain(value: object, left_out: set[str], name: str = "") -> Any:
    """The same as plain values. What JSON has no words for is None, or not there in a mapping; its name is put down."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        parts = {str(key): plain(part, left_out, str(key)) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None or value.get(key, key) is None}
    if isinstance(value, list | tuple):
        return [plain(part, left_out, name) for part in value]
    if isinstance(value, numpy.bool_):
        return bool(value)
    known = number(value)
    if known is None:
        left_out.add(name)
    return known
