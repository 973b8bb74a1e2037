"""What the GPU check needs on the machine: which packages are missing there, and which differ from those tested.

Standard library only, and nothing is imported to find it out: this must answer on a machine that lacks everything.
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
"""The packages that the check imports, and the module by which each is imported."""


def reasons_not_to_run() -> list[str]:
    """One sentence for each package that is missing here; none if the check can run."""
    tested = pins()
    return [
        f"{package} is not installed for this Python: the GPU check imports {module}. Install "
        f"{package}{f'=={tested[package]}' if package in tested else ''}; for a machine without network, "
        "`python -m benchmarks.gpu --bundle DIR` on another one lays down what is needed"
        for package, module in MODULES.items()
        if find_spec(module) is None
    ]


def warnings() -> list[str]:
    """One sentence for each package whose version is not the one in constraints.txt. The check runs all the same."""
    tested = pins()
    return [
        f"{package} {version} is installed, {tested[package]} was tested"
        for package, version in versions().items()
        if package in tested and _public(version) != tested[package]
    ]


def versions() -> dict[str, str]:
    """The installed version of each package that the check imports; without those that are missing."""
    found = dict[str, str]()
    for package in MODULES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def pins() -> dict[str, str]:
    """Each package's version in constraints.txt, by its name in small letters; nothing where there is no such file."""
    if not CONSTRAINTS.is_file():
        return {}
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def _public(version: str) -> str:
    """The version without how it was built: 2.13.0+cu130 is 2.13.0 for another CUDA."""
    return version.split("+")[0]
