"""A run's config and code as a launch request: what a client reads of them, and sends.

The gateway checks the config; the client only finds the files that it names: the script, whose folder is packed and
uploaded, a DeepSpeed file, the files of its data and of its sources, and the secret variables of the user's shell.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.api.launching import Launched, LaunchRequest, Priority
from control_plane.api.versions import release
from control_plane.cli.launching.source_files import SourceFiles, source_files
from control_plane.cli.output.printing import say, show_progress
from control_plane.config_text import from_yaml, read_text
from control_plane.core.model.errors import Invalid
from control_plane.shipped import find_config
from control_plane.storage.code.packing import Bundle, Contents, mebibytes, packed

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

LARGE_BYTES = 1 << 20
"""Bundles above this take long enough to show how far their upload is."""

DATA = "data"
"""Folder of a config's data file in a bundle."""

MODULES = "_modules"
"""Folder of a config's `runtime_env.py_modules` in a bundle."""

GENERATORS = "_generators"
"""Folder of the files of a config's generators in a bundle."""

PriorityOption = Annotated[int, typer.Option("--priority", help="Runs of a higher priority start first; -100 to 100.")]
WaitForNodes = Annotated[
    bool, typer.Option("--wait-for-nodes", help="Accept a run that needs more than the cluster has; it waits.")
]
NoBundle = Annotated[
    bool, typer.Option("--no-bundle", help="Send no code: the script's path is one that the cluster's nodes see.")
]


@dataclass(frozen=True, slots=True)
class LaunchChoices:
    """Choices of the user for a new run, besides its config."""

    env: Sequence[str] = ()
    priority: int = 0
    wait_for_nodes: bool = False
    no_bundle: bool = False


@dataclass(slots=True)
class NamedFiles:
    """Files that a config names, on this machine."""

    script: Path | None = None
    texts: dict[str, str] = field(default_factory=dict)
    data: Path | None = None
    sources: SourceFiles = field(default_factory=SourceFiles)
    modules: dict[str, Path] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


def launch(
    client: "SteerwayClient", config: str, overrides: Sequence[str], choices: LaunchChoices, shares_files: bool
) -> Launched:
    """Begin a run from a config file, with its code. Raises `Invalid` and the errors of `SteerwayClient.launch`.

    `shares_files`: the gateway is this machine's own, so that data need not be sent.
    """
    path = Path(find_config(config)).expanduser()
    text = read_text(path, str(path))
    raw = from_yaml(text, str(path))
    settings = overridden(raw if isinstance(raw, dict) else {}, overrides)
    named = _named_files(settings, path.absolute().parent, choices.no_bundle, shares_files)
    request = LaunchRequest(
        config=text,
        source=path.name,
        files=named.texts,
        overrides=(*overrides, *named.overrides),
        env=tuple(choices.env),
        secrets=shell_secrets(secret_names(settings, choices.env)),
        priority=_checked_priority(choices.priority),
        wait_for_nodes=choices.wait_for_nodes,
        client=release(""),
    )
    with _bundle(named) as bundle:
        if bundle is not None:
            _upload(client, bundle)
            script = named.script.name if named.script is not None else None
            request = request.model_copy(update={"bundle": bundle.sha256, "script": script})
        return client.launch(request)


def secret_names(settings: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Return the names of a config's secret variables, and those in `given`."""
    env = settings.get("env")
    declared = [name for name, value in env.items() if isinstance(value, dict)] if isinstance(env, dict) else []
    return sorted({*map(str, declared), *given})


def shell_secrets(names: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the values of these variables in the user's shell. The gateway names those that are missing."""
    return {name: environ[name] for name in names if name in environ}


def _checked_priority(priority: int) -> Priority:
    if not -100 <= priority <= 100:
        raise Invalid(f"--priority is {priority}, but must be from -100 to 100")
    return priority


def overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings that name files, after the overrides. Malformed ones are the gateway's to refuse."""
    settings = {**raw}
    for override in overrides:
        key, equals, value = override.partition("=")
        *above, name = key.strip().split(".")
        group: Any = settings
        for part in above if equals else ():
            inner = group.get(part)
            group[part] = {**inner} if isinstance(inner, dict) else {} if inner is None else inner
            group = group[part]
            if not isinstance(group, dict):
                break
        if equals and isinstance(group, dict):
            group[name] = from_yaml(value, override)
    return settings


def _named_files(settings: Mapping[str, Any], folder: Path, no_bundle: bool, shares_files: bool) -> NamedFiles:
    named = NamedFiles()
    script = _text_at(settings, "workload", "path")
    if script is not None:
        path = folder / Path(script).expanduser()
        if no_bundle:
            named.overrides.append(f"workload.path={json.dumps(str(path))}")
        elif not path.is_file():
            raise Invalid(
                f"workload.path is {script}, but there is no file {path} on this machine, from where it would be sent; "
                "with --no-bundle it is a path on the cluster"
            )
        else:
            named.script = path
    deepspeed = settings.get("deepspeed")
    if isinstance(deepspeed, str):
        named.texts[deepspeed] = read_text(folder / Path(deepspeed).expanduser(), f"deepspeed: {deepspeed}")
    data = _text_at(settings, DATA, "path")
    if data is not None:
        path = folder / Path(data).expanduser()
        if shares_files or no_bundle or not path.exists():
            # On a machine of its own the gateway says whether it is there.
            named.overrides.append(f"data.path={json.dumps(str(path))}")
        else:
            named.data = path
            named.overrides.append(f"data.path={json.dumps(f'{DATA}/{path.name}')}")
    named.sources = source_files(settings.get("sources"), folder, sends=not (shares_files or no_bundle))
    named.overrides += named.sources.overrides
    _add_generators(named, settings.get("generators"), folder, sends=not (shares_files or no_bundle))
    runtime_env = settings.get("runtime_env")
    modules = runtime_env.get("py_modules") if isinstance(runtime_env, dict) else None
    if isinstance(modules, list) and modules:
        placed = [_module_in(named, str(module), folder, no_bundle) for module in modules]
        named.overrides.append(f"runtime_env.py_modules={json.dumps(placed)}")
    return named


def _add_generators(named: NamedFiles, generators: Any, folder: Path, sends: bool) -> None:
    """Name the files of generators' functions: those that are sent, with their places in the bundle."""
    for name, settings in generators.items() if isinstance(generators, dict) else ():
        path = settings.get("path") if isinstance(settings, dict) else None
        if not isinstance(path, str) or not path:
            continue
        place, file = str(folder / Path(path).expanduser()), folder / Path(path).expanduser()
        if sends and file.is_file():
            place = f"{GENERATORS}/{name}/{file.name}"
            named.modules[place] = file
        named.overrides.append(f"generators.{name}.path={json.dumps(place)}")


def _module_in(named: NamedFiles, module: str, folder: Path, no_bundle: bool) -> str:
    """Return the path in the bundle of a folder with Python modules that is sent; addresses stay as they are."""
    path = folder / Path(module).expanduser()
    if "://" in module:
        return module
    if no_bundle or not path.is_dir():
        return str(path)
    place = f"{MODULES}/{path.name}"
    if named.modules.setdefault(place, path) != path:
        raise Invalid(f"runtime_env.py_modules names two folders {path.name}: {named.modules[place]} and {path}")
    return place


def _text_at(settings: Mapping[str, Any], section: str, name: str) -> str | None:
    inner = settings.get(section)
    value = inner.get(name) if isinstance(inner, dict) else None
    return value if isinstance(value, str) else None


@contextmanager
def _bundle(named: NamedFiles) -> Iterator[Bundle | None]:
    """Provide the packed code of a run, or None if its config names none."""
    if named.script is None and named.data is None and not named.modules and not named.sources.files:
        yield None
        return
    extras = (
        named.modules
        | named.sources.files
        | ({f"{DATA}/{named.data.name}": named.data} if named.data is not None else {})
    )
    with tempfile.TemporaryDirectory(prefix="steerway-") as empty:
        folder = named.script.parent if named.script is not None else Path(empty)
        with packed(folder, Contents(extras=extras)) as bundle:
            yield bundle


def _upload(client: "SteerwayClient", bundle: Bundle) -> None:
    """Upload a bundle; on a terminal, with its progress."""
    shows = bundle.size_bytes > LARGE_BYTES

    def progress(received: int, total: int) -> None:
        if shows:
            show_progress(f"code: {mebibytes(received)} of {mebibytes(total)} sent", received == total)

    client.upload_bundle(bundle.path, progress)
    say(f"code: {bundle.files} file{'' if bundle.files == 1 else 's'}, {mebibytes(bundle.size_bytes)}")
