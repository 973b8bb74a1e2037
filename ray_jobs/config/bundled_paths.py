"""Paths of a config whose code was sent as a bundle: relative ones, inside RUN/code of whichever run uses them.

So forks, replays and runs that were moved to another home have the same config, and each its own code.
"""

from glob import escape, glob
from pathlib import Path

from control_plane.core.model.errors import Invalid
from control_plane.storage.code.unpacked import restore_code
from control_plane.storage.data.configured import check_small_files
from control_plane.storage.layout import RunFiles
from ray_jobs.config.run_config import RunConfig
from ray_jobs.config.runtime_env import is_local
from ray_jobs.config.sections import ScriptWorkload


def located(config: RunConfig, files: RunFiles) -> RunConfig:
    """Return the config with the absolute paths of what it names in the run's code bundle."""
    if config.bundle is None:
        return config
    changes: dict[str, object] = {}
    if isinstance(config.workload, ScriptWorkload):
        changes["workload"] = config.workload.model_copy(update={"path": _inside(files, config.workload.path)})
    if config.data is not None and config.data.path is not None:
        changes["data"] = config.data.model_copy(update={"path": _inside(files, config.data.path)})
    changes["sources"] = {
        name: source if source.path is None else source.model_copy(update={"path": _glob_inside(files, source.path)})
        for name, source in config.sources.items()
    }
    modules = [_inside(files, module) if is_local(module) else module for module in config.runtime_env.py_modules]
    changes["runtime_env"] = config.runtime_env.model_copy(update={"py_modules": modules})
    return config.model_copy(update=changes)


def check_code(config: RunConfig, files: RunFiles, home: Path) -> None:
    """Check a run's code before a job of it is submitted, and unpack it again where it is missing or was changed.

    Raises `Refused` if it is not the code that the signed config names, `NotFound` if it is not here, `Invalid` if the
    bundle does not hold the files that the config names.
    """
    if config.bundle is None:
        return
    restore_code(files, config.bundle, home)
    named = [("runtime_env.py_modules", module) for module in config.runtime_env.py_modules if is_local(module)]
    if isinstance(config.workload, ScriptWorkload):
        named.append(("workload.path", config.workload.path))
    if config.data is not None and config.data.path is not None:
        named.append(("data.path", config.data.path))
    named += [(f"generators.{name}.path", one.path) for name, one in config.generators.items() if one.path is not None]
    for key, path in named:
        if not Path(path).is_absolute() and not (files.code / path).exists():
            raise Invalid(
                f"{config.name}: {key} is {path}, but the code bundle has no such file; is it excluded by a .gitignore "
                "or .rayignore file?"
            )
    for name, source in config.sources.items():
        if source.path is not None and not glob(_glob_inside(files, source.path), recursive=True):
            raise Invalid(f"{config.name}: sources.{name}.path is {source.path}, but no file matches it.")


def check_sources(config: RunConfig, files: RunFiles) -> None:
    """Check the records of small files of a new run's sources. Raises `Invalid` for one that breaks its schema.

    The others are checked by the ranks before the first step.
    """
    try:
        check_small_files(located(config, files).sources)
    except Invalid as error:
        raise Invalid(f"{config.name}: {error.reason}") from None


def _inside(files: RunFiles, path: str) -> str:
    return str(files.code / path)


def _glob_inside(files: RunFiles, path: str) -> str:
    """Return the glob of a source's files: a relative one is inside of the bundle."""
    return path if Path(path).is_absolute() else f"{escape(str(files.code))}/{path}"
