"""Samples as columns of Arrow: which types they may have, and how each comes back as it was.

    columns = Columns.of(sample)            # by the first one: {"input_ids": Kind("tensor", "int64", 1)}
    columns.batch(samples)                  # a record batch
    columns.sample(columns.arrays(batch), 3)

Arrays and tensors are stored flat, with their shapes beside them where they have more or fewer axes than one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from control_plane.core.model.errors import Invalid

Sample = dict[str, Any]
Arrays = dict[str, Any]
"""Of each column: values and ends as NumPy arrays, or the values as a list."""

SHAPE = "/shape"
META = b"steerway"

_SCALARS: Mapping[type, str] = {int: "int", float: "float", bool: "bool", str: "str"}
_NUMBERS: Mapping[type, str] = {int: "int64", float: "float64"}


@dataclass(frozen=True, slots=True)
class Kind:
    """Type of one value of a sample: a plain value, a list, an array or a tensor, with its numbers and its axes."""

    is_a: Literal["plain", "list", "array", "tensor"]
    type: str
    axes: int = 1


def kind_of(name: str, value: Any) -> Kind:
    """Return the type of a value. Raises `Invalid` for one that cannot be cached."""
    if type(value) in _SCALARS:
        return Kind("plain", _SCALARS[type(value)])
    if isinstance(value, list) and all(type(one) is int for one in value):
        return Kind("list", "int64")
    if isinstance(value, list) and all(type(one) in _NUMBERS for one in value):
        return Kind("list", "float64")
    if isinstance(value, torch.Tensor) and value.dtype not in (torch.bfloat16,) and not value.is_complex():
        return Kind("tensor", str(value.dtype).removeprefix("torch."), value.dim())
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        return Kind("array", value.dtype.name, value.ndim)
    raise Invalid(
        f"{name!r} of a sample is {type(value).__name__}, which cannot be cached: numbers, texts, lists of numbers, "
        "arrays and tensors can"
    )


@dataclass(frozen=True)
class Columns:
    """Names and types of a sample's values."""

    kinds: Mapping[str, Kind]

    @classmethod
    def of(cls, sample: Any) -> Self:
        """Return those of a sample. Raises `Invalid` if it is no mapping of names to values that can be cached."""
        if not isinstance(sample, Mapping) or not all(isinstance(name, str) for name in sample):
            raise Invalid(f"a sample is {type(sample).__name__}: only a mapping of names to values can be cached")
        return cls({name: kind_of(name, value) for name, value in sample.items()})

    @classmethod
    def of_all(cls, samples: Sequence[Any]) -> Self:
        """Return those of the first sample, with lists of fractions where another one has such: `[]` tells nothing."""
        kinds = dict(cls.of(samples[0]).kinds)
        for other in (cls.of(sample).kinds for sample in samples):
            kinds |= {
                name: kind
                for name, kind in other.items()
                if kind == Kind("list", "float64") and kinds.get(name) == Kind("list", "int64")
            }
        return cls(kinds)

    @classmethod
    def described(cls, metadata: Mapping[bytes, bytes] | None) -> Self:
        """Return those of an Arrow file. Raises `KeyError`, `TypeError`, `ValueError` if it tells none."""
        kinds = json.loads((metadata or {})[META])
        return cls({name: Kind(**kind) for name, kind in kinds.items()})

    def schema(self) -> Any:
        """Return the schema of an Arrow file."""
        import pyarrow

        fields = []
        for name, kind in self.kinds.items():
            fields.append(pyarrow.field(name, _arrow_type(kind)))
            if kind.is_a in ("array", "tensor") and kind.axes != 1:
                fields.append(pyarrow.field(name + SHAPE, pyarrow.large_list(pyarrow.int64())))
        about = json.dumps({name: asdict(kind) for name, kind in self.kinds.items()})
        return pyarrow.schema(fields, metadata={META: about.encode()})

    def batch(self, samples: Sequence[Any]) -> Any:
        """Return a record batch of samples. Raises `Invalid` for one of another type than the first."""
        import pyarrow

        for sample in samples:
            if (other := Columns.of(sample)) != self and not self._fits(other):
                raise Invalid(f"a sample has {dict(other.kinds)}, and the first one {dict(self.kinds)}")
        schema = self.schema()
        columns = []
        for field in schema:
            name = field.name.removesuffix(SHAPE) if field.name not in self.kinds else field.name
            values = [sample[name] for sample in samples]
            kind = self.kinds[name]
            if kind.is_a == "plain":
                columns.append(pyarrow.array(values, type=field.type))
            elif field.name == name:
                columns.append(_lists([_flat(value, kind) for value in values], _dtype(kind)))
            else:
                columns.append(_lists([np.asarray(value.shape, np.int64) for value in values], np.dtype(np.int64)))
        return pyarrow.record_batch(columns, schema=schema)

    def _fits(self, other: "Columns") -> bool:
        """Return whether only lists differ, of which an empty one, or one of whole numbers, is one of any numbers."""
        return self.kinds.keys() == other.kinds.keys() and all(
            mine == theirs or (mine == Kind("list", "float64") and theirs == Kind("list", "int64"))
            for mine, theirs in zip(self.kinds.values(), (other.kinds[name] for name in self.kinds), strict=True)
        )

    def arrays(self, batch: Any) -> Arrays:
        """Return a batch's columns, of lists and arrays without a copy."""
        arrays: Arrays = {}
        for field, column in zip(batch.schema, batch.columns, strict=True):
            kind = self.kinds.get(field.name)
            if kind is not None and kind.is_a == "plain":
                arrays[field.name] = column.to_pylist()
            else:
                values = column.values.to_numpy(zero_copy_only=True)
                arrays[field.name] = values, column.offsets.to_numpy(zero_copy_only=True)
        return arrays

    def sample(self, arrays: Arrays, row: int) -> Sample:
        """Return one sample, as it was made; its arrays are copies."""
        return {name: self._value(arrays, name, kind, row) for name, kind in self.kinds.items()}

    def _value(self, arrays: Arrays, name: str, kind: Kind, row: int) -> Any:
        if kind.is_a == "plain":
            return arrays[name][row]
        values = _row(arrays[name], row)
        if kind.is_a == "list":
            return values.tolist()
        shape = _row(arrays[name + SHAPE], row).tolist() if kind.axes != 1 else [len(values)]
        array = np.array(values.view(_value_dtype(kind))).reshape(shape)
        return torch.from_numpy(array) if kind.is_a == "tensor" else array

    def lengths(self, arrays: Arrays, name: str) -> npt.NDArray[np.int64]:
        """Return the number of values of each row of a list or array."""
        return np.diff(arrays[name][1])


def _row(column: Any, row: int) -> Any:
    values, offsets = column
    return values[offsets[row] : offsets[row + 1]]


def _flat(value: Any, kind: Kind) -> npt.NDArray[Any]:
    array = value.detach().cpu().numpy() if kind.is_a == "tensor" else np.asarray(value, _value_dtype(kind))
    return np.ascontiguousarray(array).reshape(-1).view(_dtype(kind))


def _value_dtype(kind: Kind) -> np.dtype[Any]:
    return np.dtype(kind.type)


def _dtype(kind: Kind) -> np.dtype[Any]:
    """Return the type of stored numbers: booleans are bytes, since Arrow's are bits, which cannot be mapped."""
    return np.dtype(np.uint8) if kind.type == "bool" else _value_dtype(kind)


def _arrow_type(kind: Kind) -> Any:
    import pyarrow

    if kind.is_a == "plain":
        return {"int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "str": pyarrow.string()}[
            kind.type
        ]
    return pyarrow.large_list(pyarrow.from_numpy_dtype(_dtype(kind)))


def _lists(values: Sequence[npt.NDArray[Any]], dtype: np.dtype[Any]) -> Any:
    import pyarrow

    ends = np.cumsum([0, *(len(value) for value in values)], dtype=np.int64)
    flat = np.concatenate(values).astype(dtype, copy=False) if len(values) else np.zeros(0, dtype)
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(ends), pyarrow.array(flat, pyarrow.from_numpy_dtype(dtype)))
