"""What a loss of power may leave: only what was synced is certain, and names may arrive before the data they name."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Node:
    """A file: what was written to it, and how much of that is certain."""

    data: bytes = b""
    synced: bytes = b""


@dataclass
class Disk:
    """Names and what they name, as programs see them (`names`) and as a loss of power leaves them (`certain`)."""

    names: dict[Path, Node | None] = field(default_factory=dict)
    certain: dict[Path, Node | None] = field(default_factory=dict)

    def sync_folder(self, folder: Path) -> None:
        here = {path: node for path, node in self.names.items() if path.parent == folder}
        self.certain = {path: node for path, node in self.certain.items() if path.parent != folder} | here


class Power:
    """Logs the file operations below a folder, and rebuilds the folder for a loss of power after any of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, list[tuple[Any, ...]]()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Log what happens in this block."""
        real = {name: getattr(os, name) for name in ("open", "write", "fsync", "rename", "mkdir")}
        try:
            for name, logging in self._logging(real).items():
                setattr(os, name, logging)
            yield
        finally:
            for name, operation in real.items():
                setattr(os, name, operation)

    def _logging(self, real: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        opened = dict[int, Path]()

        def open_(path: Any, flags: int, *args: Any, **named: Any) -> int:
            descriptor = int(real["open"](path, flags, *args, **named))
            opened[descriptor] = Path(path)
            if flags & os.O_CREAT:
                self.log.append(("create", Path(path)))
            return descriptor

        def write(descriptor: int, data: Any) -> int:
            count = int(real["write"](descriptor, data))
            self.log.append(("write", opened[descriptor], bytes(data)[:count]))
            return count

        def fsync(descriptor: int) -> None:
            real["fsync"](descriptor)
            self.log.append(("fsync", opened[descriptor]))

        def rename(old: Any, new: Any) -> None:
            real["rename"](old, new)
            self.log.append(("rename", Path(old), Path(new)))

        def mkdir(path: Any, *args: Any, **named: Any) -> None:
            real["mkdir"](path, *args, **named)
            self.log.append(("mkdir", Path(path)))

        return {"open": open_, "write": write, "fsync": fsync, "rename": rename, "mkdir": mkdir}

    def losses(self, after: Path) -> Iterator[tuple[int, Path]]:
        """Per number of operations done: what is left if only synced names are, and if all names arrived early."""
        for number in range(len(self.log) + 1):
            disk = self._disk(number)
            for kind, names in (("certain", disk.certain), ("early", disk.names)):
                yield number, self._rebuild(names, after / f"{number}-{kind}")

    def certain(self, after: Path) -> Path:
        """What is left if power is lost after everything."""
        return self._rebuild(self._disk(len(self.log)).certain, after)

    def _disk(self, number: int) -> Disk:
        disk = Disk()
        for kind, path, *more in self.log[:number]:
            if kind == "create":
                disk.names[path] = Node()
            elif kind == "mkdir":
                disk.names[path] = None
            elif kind == "write":
                node = disk.names[path]
                assert node is not None
                node.data += more[0]
            elif kind == "rename":
                disk.names[more[0]] = disk.names.pop(path)
            elif node := disk.names.get(path):
                node.synced = node.data
            else:
                disk.sync_folder(path)
        return disk

    def _rebuild(self, names: dict[Path, Node | None], place: Path) -> Path:
        place.mkdir(parents=True)
        for path, node in sorted(names.items()):
            target = place / path.relative_to(self.folder) if path != self.folder else place
            reachable = all(
                folder in names
                for folder in path.parents
                if folder.is_relative_to(self.folder) and folder != self.folder
            )
            if not reachable:
                continue
            if node is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(node.synced)
        return place
