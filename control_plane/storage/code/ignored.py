"""Files that do not belong in a code bundle: by .gitignore and .rayignore at every level, and by what they are.

A file is left out if either kind of file excludes it, as Ray does when it packs a `working_dir`. Of one kind, the
nearest folder's last matching line decides, as in git; .gitignore files above the packed folder count up to the
repository's root. Not read: .git/info/exclude and a user's global list, which another clone does not have.
"""

from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from control_plane.core.model.errors import Invalid

KINDS = (".gitignore", ".rayignore")
NEVER = frozenset({".git", "__pycache__", ".steerway", ".ipynb_checkpoints", ".mypy_cache", ".ruff_cache"})
"""Names of folders and files that are never packed: history, caches, and Steerway's own home with its tokens."""

MAX_RULES_BYTES = 256 * 1024


class IgnoreRules:
    """The rules that hold in one folder: its own ignore files, before those of the folders above."""

    def __init__(self, folder: Path, above: "IgnoreRules | None" = None, kinds: tuple[str, ...] = KINDS) -> None:
        """Read the ignore files of `folder`. Raises `Invalid` if one cannot be read."""
        self._folder, self._above = folder, above
        self._specs = {kind: spec for kind in kinds if (spec := _read(folder / kind)) is not None}

    def exclude(self, path: Path, is_folder: bool) -> bool:
        """Return whether a path in this folder, or below it, is left out."""
        return any(self._decide(kind, path, is_folder) for kind in KINDS)

    def _decide(self, kind: str, path: Path, is_folder: bool) -> bool:
        """Return the decision of the nearest folder that has a matching line."""
        spec = self._specs.get(kind)
        if spec is not None:
            name = path.relative_to(self._folder).as_posix() + ("/" if is_folder else "")
            decision = spec.check_file(name).include
            if decision is not None:
                return decision
        return self._above._decide(kind, path, is_folder) if self._above is not None else False


def rules_of(folder: Path) -> IgnoreRules:
    """Return the rules of a folder that is to be packed, with the .gitignore files above it in its repository."""
    above: IgnoreRules | None = None
    for outer in _outer_folders(folder):
        above = IgnoreRules(outer, above, kinds=(".gitignore",))
    return IgnoreRules(folder, above)


def is_never_packed(path: Path, is_folder: bool) -> bool:
    """Return whether a file or folder is left out for what it is: history, a cache, a virtual environment."""
    if path.name in NEVER:
        return True
    return is_folder and ((path / "pyvenv.cfg").is_file() or (path / "conda-meta").is_dir())


def _outer_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders above `folder`, outermost first, from its repository's root; none outside of a repository."""
    if (folder / ".git").exists():
        return
    outer = list(folder.parents)
    roots = [number for number, parent in enumerate(outer) if (parent / ".git").exists()]
    if roots:
        yield from reversed(outer[: roots[0] + 1])


def _read(path: Path) -> GitIgnoreSpec | None:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_RULES_BYTES)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read, so it is unknown what to leave out: {error}") from None
    try:
        return GitIgnoreSpec.from_lines(text.splitlines())
    except ValueError as error:
        raise Invalid(f"{path} has a line that is no pattern: {error}") from None
