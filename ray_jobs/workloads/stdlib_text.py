"""Training text from the source code of the running Python's standard library, which every machine has."""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import DataSettings
from ray_jobs.data.sample_order import Corpus

# Not installed with Python, or left out by some packagers, or tables rather than text.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
    | {"ensurepip", "encodings"}
)
EVALUATION_SHARE = 16  # one file in 16, by the hash of its path, is for evaluation


def read(data: DataSettings, root: Path | None = None) -> Corpus:
    """Return one document for each file, cut at the size caps of `data`. Raises `Invalid` if there is no text.

    The files are in the order of the hash of their path, so that a capped text is a sample of the whole library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = sorted((_hash(path.relative_to(root)), path) for path in _sources(root))
    train = _documents((path for digest, path in files if digest[0] % EVALUATION_SHARE), data.max_train_bytes)
    evaluation = _documents((path for digest, path in files if not digest[0] % EVALUATION_SHARE), data.max_eval_bytes)
    if not train or not evaluation:
        raise Invalid(
            f"data.source stdlib needs Python's standard library as source files, and {root} has too few. "
            "Use data.source wikitext2."
        )
    return Corpus(train, evaluation)


def _sources(root: Path) -> Iterator[Path]:
    """Yield the library's source files. Excluded folders are not walked: site-packages may be many times larger.

    _sysconfigdata is excluded because it holds the paths of the machine that built this Python.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _hash(relative: Path) -> bytes:
    return hashlib.sha256(relative.as_posix().encode("utf-8")).digest()


def _documents(paths: Iterable[Path], cap_bytes: int | None) -> tuple[str, ...]:
    """Return the text of the files, cut at the cap, without empty files."""
    documents, left_bytes = [], cap_bytes
    for path in paths:
        if left_bytes == 0:
            break
        text = path.read_bytes()[:left_bytes]
        left_bytes = None if left_bytes is None else left_bytes - len(text)
        if text.strip():
            documents.append(text.decode("utf-8", errors="replace"))
    return tuple(documents)
