"""Requirements of the GPU check: missing packages, and versions that differ from those tested.

Standard library only, and no package is imported: this must work on a machine without any of them.
"""

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"

MODULES = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "xxhash": "xxhash",
}
"""Packages that the check imports, with their modules."""


def reasons_not_to_run() -> list[str]:
    """Return a sentence for each missing package; none if the check can run."""
    tested = pins()
    return [
        f"{package} is not installed for this Python: the GPU check imports {module}. Install "
        f"{package}{f'=={tested[package]}' if package in tested else ''}; for a machine without network, "
        "run `python -m benchmarks.gpu --bundle DIR` on another one, and copy DIR"
        for package, module in MODULES.items()
        if find_spec(module) is None
    ]


def warnings() -> list[str]:
    """Return a sentence for each package whose version differs from constraints.txt. The check runs nevertheless."""
    tested = pins()
    return [
        f"{package} {version} is installed, {tested[package]} was tested"
        for package, version in versions().items()
        if package in tested and _public(version) != tested[package]
    ]


def versions() -> dict[str, str]:
    """Return the installed version of each package that the check imports, without missing ones."""
    installed = dict[str, str]()
    for package in MODULES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def pins() -> dict[str, str]:
    """Return each package's version in constraints.txt, by its name in lower case; empty without such a file."""
    if not CONSTRAINTS.is_file():
        return {}
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def _public(version: str) -> str:
    """Return the version without its local part: 2.13.0+cu130 is 2.13.0."""
    return version.split("+")[0]
