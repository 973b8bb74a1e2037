"""Files that a config names: beside it on this machine, or sent with it by a client."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from control_plane import config_text
from control_plane.core.model.errors import Invalid


class ConfigFiles(Protocol):
    """Source of the files that a config names."""

    def text(self, name: str, source: str) -> str:
        """Return the text of a file. Raises `Invalid`, naming `source`."""
        ...

    def place(self, path: str, key: str) -> str:
        """Return the path of the setting `key` as the run uses it. Raises `Invalid`."""
        ...


@dataclass(frozen=True, slots=True)
class FilesBeside:
    """Files of this machine; relative paths are relative to `folder`. Implements `ConfigFiles`."""

    folder: Path

    def text(self, name: str, source: str) -> str:
        """See `ConfigFiles.text`."""
        path = self.folder / Path(name).expanduser()
        return config_text.read_text(path, f"{source} names {path}, which")

    def place(self, path: str, key: str) -> str:
        """See `ConfigFiles.place`."""
        return str(self.folder / Path(path).expanduser())


@dataclass(frozen=True, slots=True)
class SentFiles:
    """Files that a client has sent with the config's text. Implements `ConfigFiles`.

    A relative path is one inside the code bundle. Without a bundle it is refused: the client's folder is not here. An
    absolute path is one on the cluster.
    """

    texts: Mapping[str, str]
    has_bundle: bool = False

    def text(self, name: str, source: str) -> str:
        """See `ConfigFiles.text`."""
        if name not in self.texts:
            raise Invalid(f"{source} names {name}, which was not sent with the config.")
        return self.texts[name]

    def place(self, path: str, key: str) -> str:
        """See `ConfigFiles.place`."""
        expanded = Path(path).expanduser() if path.startswith("~/") else Path(path)
        if not expanded.is_absolute() and not self.has_bundle:
            raise Invalid(
                f"{key} is {path}, which is relative to a folder that the cluster does not see: give an absolute path "
                "on the cluster, or send the folder as a code bundle."
            )
        return str(expanded)
