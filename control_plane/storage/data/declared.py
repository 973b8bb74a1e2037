"""Sources and generators that a run's config declares, read from its folder."""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from control_plane.config_text import from_yaml
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.rules.agent.generating import GeneratorName, GeneratorSettings
from control_plane.storage.layout import RunFiles
from control_plane.storage.regular import read_regular

T = TypeVar("T")

_GENERATORS = TypeAdapter(dict[GeneratorName, GeneratorSettings])
_SOURCES = TypeAdapter(dict[str, SourceSettings])


def declared_sources(files: RunFiles) -> dict[str, SourceSettings]:
    """Return the sources in a run's resolved config; none if it has no such section. Raises `Damaged`."""
    return _declared(files, "sources", _SOURCES)


def declared_generators(files: RunFiles) -> dict[str, GeneratorSettings]:
    """Return the generators in a run's resolved config; none if it has no such section. Raises `Damaged`."""
    return _declared(files, "generators", _GENERATORS)


def _declared(files: RunFiles, section: str, schema: TypeAdapter[dict[str, T]]) -> dict[str, T]:
    try:
        raw = from_yaml(read_regular(files.config).decode(), str(files.config))
        given = raw.get(section) if isinstance(raw, dict) else None
        return schema.validate_python(given or {})
    except Invalid as error:
        raise Damaged(f"the {section} in {files.config} cannot be read: {error.reason}") from None
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise Damaged(f"the {section} in {files.config} cannot be read ({type(error).__name__})") from None
