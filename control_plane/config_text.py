"""Strict parsing of config text: YAML (core schema of 1.2) and JSON.

Stricter than YAML at large: `1e-4` is a number, `yes` and dates are text, aliases and duplicate keys are errors. All
errors are `Invalid`.
"""

import json
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from control_plane.core.model.errors import Invalid

LARGEST_FILE_BYTES = 1 << 18  # a config is written by hand; more than this is the wrong file, and takes seconds to read


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        """Reject aliases: with them a small file can expand to an endless one."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=True)
        if len(mapping) < len(node.value):
            mark = node.start_mark
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice in this mapping", mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_CORE_SCHEMA = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
]
for _yaml in (_Loader, _Dumper):
    _yaml.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _CORE_SCHEMA:
        _yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


class _TextLoader(_Loader):
    """Every scalar is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def read_text(path: Path, source: str) -> str:
    """Return the text of a file. `source` names it in an `Invalid`."""
    try:
        if path.is_dir():
            raise Invalid(f"{source} is a folder, but must be a file.")
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise Invalid(f"{source} is larger than {LARGEST_FILE_BYTES} bytes, which no config file is.")
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise Invalid(f"{source} does not exist; give the path of a config file.") from None
    except UnicodeDecodeError:
        raise Invalid(f"{source} is not text in UTF-8.") from None
    except (OSError, ValueError) as error:
        raise Invalid(f"{source} cannot be read: {error}.") from None


def from_yaml(text: str, source: str, as_text: bool = False) -> Any:
    """Return the value of a YAML document, safe for untrusted text. Raises `Invalid`, naming `source`.

    Args:
        as_text: return every scalar as its text.
    """
    return _loaded(text, source, lambda: yaml.load(text, Loader=_TextLoader if as_text else _Loader))


def compose(text: str, source: str) -> yaml.Node | None:
    """Return the nodes of a YAML document, with their line numbers. As strict as `from_yaml`. Raises `Invalid`."""
    node: yaml.Node | None = _loaded(text, source, lambda: yaml.compose(text, Loader=_Loader))
    return node


def _loaded(text: str, source: str, load: Callable[[], Any]) -> Any:
    if len(text) > LARGEST_FILE_BYTES:
        raise Invalid(f"{source} is larger than {LARGEST_FILE_BYTES} bytes, which no config file is.")
    try:
        return load()
    except RecursionError:
        raise Invalid(f"{source} is not usable YAML: it is nested too deeply.") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        complaint = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise Invalid(f"{source} is not usable YAML{place}: {complaint}.") from None


def to_yaml(value: Any) -> str:
    """Return YAML text that `from_yaml` parses to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False)


def from_json(text: str, source: str) -> Any:
    """Return the value of a JSON document. `source` names it in an `Invalid`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{source} is not JSON: {error}.") from None


def shown(value: object) -> str:
    """Return a value, shortened, with its type for an error message: `'two' (text)`."""
    if value is None:
        return "empty (null)"
    kinds = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        dict: "a mapping",
        list: "a list",
    }
    return f"{reprlib.repr(value)} ({kinds.get(type(value), type(value).__name__)})"
