"""Text that every machine has: the source of the running Python's standard library."""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from control_plane.core.errors import Invalid
from ray_jobs.config import DataSettings
from ray_jobs.data import Corpus

# Not installed with Python, or left out by some packagers, or tables rather than text.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
    | {"ensurepip", "encodings"}
)
EVALUATION_SHARE = 16  # one file in 16, by the hash of its path, is for evaluation


def read(data: DataSettings, root: Path | None = None) -> Corpus:
    """One document for each file, cut at the size caps of `data`. Raises `Invalid` if there is no text.

    The files come in the order of the hash of their path, so that a cap takes a sample of the whole library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = sorted((_hash(path.relative_to(root)), path) for path in _sources(root))
    train = _documents((path for digest, path in files if digest[0] % EVALUATION_SHARE), data.max_train_bytes)
    evaluation = _documents((path for digest, path in files if not digest[0] % EVALUATION_SHARE), data.max_eval_bytes)
    if not train or not evaluation:
        raise Invalid(
            f"data.source stdlib found too little source text in {root}: it is not installed with this Python. "
            "Use data.source wikitext2."
        )
    return Corpus(train, evaluation)


def _sources(root: Path) -> Iterator[Path]:
    """Folders that are left out are not walked: what is installed beside the library may be many times larger.

    _sysconfigdata holds the paths of the machine that built this Python.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _hash(relative: Path) -> bytes:
    return hashlib.sha256(relative.as_posix().encode("utf-8")).digest()


def _documents(paths: Iterable[Path], cap_bytes: int | None) -> tuple[str, ...]:
    """The last document is cut where the cap is reached; empty files are left out."""
    documents, left_bytes = [], cap_bytes
    for path in paths:
        if left_bytes == 0:
            break
        text = path.read_bytes()[:left_bytes]
        left_bytes = None if left_bytes is None else left_bytes - len(text)
        if text.strip():
            documents.append(text.decode("utf-8", errors="replace"))
    return tuple(documents)
