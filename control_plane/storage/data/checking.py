"""Check of one record against a source's schema.

A record is a mapping of plain JSON values, or of NumPy arrays where the schema has arrays. What is returned holds the
schema's fields in its order, with arrays of exactly its type. Nothing is converted that would lose something. Reasons
name the schema's fields and the kinds of values, never what was sent: it may hold a secret.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from control_plane.core.model.data import FieldSchema

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Schema = Mapping[str, FieldSchema]

WHOLE = 2**63

_KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class BadRecord(ValueError):
    """Record that breaks the schema, with the reason as a sentence's part: `field 'text' is missing`."""


def check_record(record: object, schema: Schema) -> dict[str, Any]:
    """Return the record by the schema. Raises `BadRecord`."""
    if not isinstance(record, Mapping):
        raise BadRecord(f"it is not an object with the fields {', '.join(schema)}")
    unknown = sum(name not in schema for name in record)
    if unknown:
        raise BadRecord(f"{unknown} of its fields are not in the schema, whose fields are {', '.join(schema)}")
    checked: dict[str, Any] = {}
    for name, field in schema.items():
        value = record.get(name)
        if value is None:
            if field.required:
                raise BadRecord(f"field {name!r} is {'null' if name in record else 'missing'}")
            continue
        checked[name] = check_value(name, value, field)
    return checked


def check_value(name: str, value: object, field: FieldSchema) -> Any:
    """Return one field's value. Raises `BadRecord`."""
    match field.type:
        case "text":
            return _text(name, value)
        case "integer" if isinstance(value, int) and not isinstance(value, bool) and -WHOLE <= value < WHOLE:
            return value
        case "number" if isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) <= 1.7976931348623157e308:
                raise BadRecord(f"field {name!r} is not a finite number")
            return value
        case "boolean" if isinstance(value, bool):
            return value
        case "array":
            return check_array(name, value, field)
        case "image" if isinstance(value, bytes):
            return value
    raise BadRecord(f"field {name!r} is {_kind(value)}, and the schema wants {_article(field.type)}")


def check_array(name: str, value: object, field: FieldSchema) -> "Array":
    """Return a value as an array of the schema's type and shape. Raises `BadRecord`.

    Lists may have numbers of any kind that the type holds exactly; an array that comes as one must have that type.
    """
    import numpy as np

    if isinstance(value, np.ndarray):
        given = value
        if given.dtype != np.dtype(field.dtype):
            raise BadRecord(f"field {name!r} is an array of {given.dtype}, and the schema wants {field.dtype}")
    elif isinstance(value, list):
        given = _of_lists(name, value, field)
    else:
        raise BadRecord(f"field {name!r} is {_kind(value)}, and the schema wants an array")
    shape = field.shape
    fits = shape is None or (
        len(shape) == given.ndim and all(want in (-1, has) for want, has in zip(shape, given.shape, strict=True))
    )
    if not fits:
        raise BadRecord(f"field {name!r} has the shape {list(given.shape)}, and the schema wants {list(shape or ())}")
    if given.dtype.kind == "f" and not bool(np.isfinite(given).all()):
        raise BadRecord(f"field {name!r} holds NaN or an infinity")
    return given


def _of_lists(name: str, value: list[Any], field: FieldSchema) -> "Array":
    import numpy as np

    try:
        given = np.asarray(value)
    except (ValueError, OverflowError):
        raise BadRecord(f"field {name!r} is not a rectangular array") from None
    wanted: Any = np.dtype(field.dtype)
    if given.size == 0:
        return given.astype(wanted)
    if given.dtype.kind not in "iuf":
        raise BadRecord(f"field {name!r} holds something that is no number")
    if wanted.kind in "iu":
        bounds = np.iinfo(wanted)
        if given.dtype.kind == "f" or given.min() < bounds.min or given.max() > bounds.max:
            raise BadRecord(f"field {name!r} holds a number that is no {field.dtype}")
    return given.astype(wanted)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"field {name!r} is {_kind(value)}, and the schema wants a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"field {name!r} holds half of a surrogate pair, which is no text") from None
    return value


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "of another type")
