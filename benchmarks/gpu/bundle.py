"""Bundle for a GPU machine without network: the source tree, a DeepSpeed wheel, and the command to run there."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from control_plane.core.model.errors import Invalid, SteerwayError

ROOT = Path(__file__).parents[2]
SOURCES = (
    "control_plane",
    "ray_jobs",
    "benchmarks",
    "configs",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
LIMIT_BYTES = 60 << 20
WHEELS = ("deepspeed", "hjson", "py-cpuinfo", "ninja", "einops", "accelerate", "xxhash", "msgpack")
"""DeepSpeed is published as source only; the others are what it and the check need, and GPU images often lack. All are
small. torch, transformers and pydantic are expected on a machine that trains."""

README = """\
The Steerway GPU check, for a machine with a GPU and without a network.

  python3 -m pip install --no-index --no-deps --find-links wheels {wheels}   # only what is missing there
  python3 -m benchmarks.gpu                                                  # about six minutes; JSON lines

Run both in this folder. The last line is the summary: keep all lines. `--only boundary,knobs` and `--budget 120` do
less. The binary wheels are for the Python and the kind of machine that made this bundle.
"""


def import_run(folder: Path) -> str:
    """Write the bundle into `folder`, which must be empty or missing, and return instructions.

    Raises `Invalid` if the folder is not empty, `SteerwayError` if a wheel cannot be built or the bundle is too big.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Invalid(f"{folder} is not empty; name a new folder for the bundle")
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        _copy(ROOT / name, folder / name)
    names = _wheels(folder / "wheels")
    (folder / "README.txt").write_text(README.format(wheels=" ".join(names)))
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size_bytes > LIMIT_BYTES:
        raise SteerwayError(f"the bundle has {size_bytes >> 20} MiB; the limit is {LIMIT_BYTES >> 20} MiB")
    return (
        f"{folder}: {size_bytes / (1 << 20):.1f} MiB. Copy it to the GPU machine, and run in it: "
        f"python3 -m pip install --no-index --no-deps --find-links wheels {' '.join(names)} && "
        "python3 -m benchmarks.gpu"
    )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    elif source.exists():
        shutil.copy2(source, target)


def _wheels(folder: Path) -> list[str]:
    """Build or download the pinned wheels, DeepSpeed without its CUDA kernels, which are built at their first use."""
    folder.mkdir()
    environment = os.environ | {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as built:
        for name in WHEELS:
            isolation = (
                ["--no-build-isolation"] if name == "deepspeed" else []
            )  # its build imports the torch that is here
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", built]
            constraint = ["--constraint", str(ROOT / "constraints.txt")]
            done = subprocess.run(
                [*command, *constraint, name], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise SteerwayError(f"cannot build a wheel of {name}: {done.stderr.strip()[-800:]}")
        for wheel in Path(built).glob("*.whl"):
            shutil.copy2(wheel, folder / wheel.name)
    return list(WHEELS)
