"""Command lines, links and paths in the documents, and the reason why one of them is wrong."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from control_plane.cli.main import app
from tests.architecture.tree import PACKAGES, ROOT

README, QUICKSTART, COMMANDS = ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "commands.md"
TOP = (README, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md")
DOCUMENTS = (*TOP, *sorted((ROOT / "docs").rglob("*.md")))
BASH_BLOCK = re.compile(r"```bash\n(.*?)```", re.S)
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)#\s]+)[^)\s]*\)")
FILES = r"`((?:{})/[\w./-]*)"
NAMED_PATH = re.compile(FILES.format("|".join((*PACKAGES, "tests", "configs", "examples", "docs"))))
MODULE = re.compile(r"`((?:[\w-]+/)*\w+\.py)`")
INLINE_STEER = re.compile(r"`(steer [a-z][^`\n]*)`")
FLAG = re.compile(r"--[a-z][a-z-]+")
PATH_ARGUMENT = re.compile(r"[\w.-]+/[\w./-]+\.\w+")
STEER = get_command(app)


def bash_lines(document: str) -> list[list[str]]:
    """Return the command lines of the bash blocks as words, without comments and prompts."""
    lines = (line for block in BASH_BLOCK.findall(document) for line in block.splitlines())
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def reason_against(words: list[str]) -> str | None:
    """Return the reason why a command line cannot work, or None."""
    match words:
        case ["steer", *arguments]:
            reason = _steer(arguments)
        case ["make", *arguments]:
            reason = _make(arguments)
        case ["python", "-m", module, *_]:
            reason = None if _exists(module) else f"no module is named {module}"
        case ["source" | "git" | "cd" | "ssh", *_]:
            reason = None
        case _:
            reason = "this program is not known to the test"
    missing = [word for word in words if PATH_ARGUMENT.fullmatch(word) and not (ROOT / word).exists()]
    return reason or (f"there is no {missing[0]}" if missing else None)


def _steer(arguments: list[str]) -> str | None:
    """Parse arguments as `steer` does, without running the command."""
    command: Any = STEER
    name, context = "steer", None
    try:
        while isinstance(command, TyperGroup):
            context = command.make_context(name, list(arguments), parent=context)
            name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, list(arguments), parent=context)
    except typer.TyperException as error:
        return str(error.format_message())
    return None


def unknown_options(text: str) -> Iterator[str]:
    """Yield the inline `steer ...` of a document whose command or options do not exist; placeholders are skipped."""
    for code in INLINE_STEER.findall(text):
        command: Any = STEER
        for word in code.split()[1:]:
            if isinstance(command, TyperGroup) and word in command.commands:
                command = command.commands[word]
        members = command.commands.values() if isinstance(command, TyperGroup) and command is not STEER else [command]
        known = {flag for member in members for parameter in member.params for flag in parameter.opts} | {"--help"}
        if command is STEER or set(FLAG.findall(code)) - known:
            yield code


def _make(arguments: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"\b{name}\b" if is_variable else rf"^{name}:"
        if not re.search(pattern, makefile, re.M):
            return f"the Makefile has no {'variable' if is_variable else 'target'} {name}"
    return None


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@cache
def _modules() -> tuple[str, ...]:
    return tuple(str(path) for top in (*PACKAGES, "tests", "examples") for path in (ROOT / top).rglob("*.py"))


def dead_links(document: Path) -> Iterator[str]:
    """Yield the relative links of a document, and the paths and module names between backticks, that do not exist."""
    text = document.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if "://" not in target and not (document.parent / target).exists():
            yield target
    for path in NAMED_PATH.findall(text):
        if not (ROOT / path).exists() and not (ROOT / path).with_suffix(".py").exists():
            yield path
    for module in MODULE.findall(text):
        if not any(path.endswith(f"/{module}") for path in _modules()):
            yield module


def commands(group: Any = STEER, prefix: str = "steer") -> Iterator[str]:
    """Yield every command of `steer`, the members of groups included."""
    if not isinstance(group, TyperGroup):
        yield prefix
        return
    for name, command in group.commands.items():
        yield from commands(command, f"{prefix} {name}")
