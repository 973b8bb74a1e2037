"""The core needs no framework: a fresh interpreter finds none after importing it."""

import json
import subprocess
import sys
from pathlib import Path

import control_plane.core

FRAMEWORKS = ("ray", "torch", "transformers", "deepspeed", "fastapi", "streamlit", "httpx", "starlette", "uvicorn")
PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def test_core_imported_in_a_fresh_interpreter_brings_no_framework() -> None:
    folder = Path(next(iter(control_plane.core.__path__)))
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*.py")) if path.stem != "__init__"]
    names = [".".join(("control_plane.core", *path.with_suffix("").parts)) for path in paths]
    assert "control_plane.core.model.state" in names
    done = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert set(names) <= loaded
    assert loaded.isdisjoint(FRAMEWORKS)
