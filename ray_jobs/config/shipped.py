"""Configs that are installed with Steerway: the value of CONFIG may be the name of one."""

import sys
from pathlib import Path

SHIPPED = Path(sys.prefix) / "share" / "steerway" / "configs"


def find_config(path: str) -> str:
    """Return the path, or that of the shipped config of this name where there is no such file."""
    shipped = SHIPPED / Path(path).name
    return str(shipped) if not Path(path).expanduser().exists() and shipped.is_file() else path
