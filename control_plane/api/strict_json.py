"""Strict JSON, by RFC 8259: what Python's parser accepts beyond it is refused with a reason."""

import json
import math
from typing import Any, NoReturn


def parse_strictly(body: bytes) -> Any:
    """Parse JSON strictly by RFC 8259. Raises `json.JSONDecodeError`."""

    def refuse(reason: str) -> NoReturn:
        raise json.JSONDecodeError(reason, "", 0)

    def no_constant(name: str) -> NoReturn:
        refuse(f"{name} is not valid in JSON; use a finite number")

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse("a number is too large; use a finite number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        return members if len(members) == len(pairs) else refuse("duplicate key in an object")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=no_constant, parse_float=finite, object_pairs_hook=once)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        refuse("not UTF-8")
    except RecursionError:
        refuse("nested too deeply")
    except ValueError:
        refuse("an integer has too many digits")
