"""Sources that a run's config declares, read from its folder."""

from pydantic import TypeAdapter, ValidationError

from control_plane.config_text import from_yaml
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.errors import Damaged, Invalid
from control_plane.storage.layout import RunFiles
from control_plane.storage.regular import read_regular

_SOURCES = TypeAdapter(dict[str, SourceSettings])


def declared_sources(files: RunFiles) -> dict[str, SourceSettings]:
    """Return the sources in a run's resolved config; none if it has no such section. Raises `Damaged`."""
    try:
        raw = from_yaml(read_regular(files.config).decode(), str(files.config))
        section = raw.get("sources") if isinstance(raw, dict) else None
        return _SOURCES.validate_python(section or {})
    except Invalid as error:
        raise Damaged(f"the sources in {files.config} cannot be read: {error.reason}") from None
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise Damaged(f"the sources in {files.config} cannot be read ({type(error).__name__})") from None
