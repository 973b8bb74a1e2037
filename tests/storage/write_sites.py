"""Durable writes and failpoints, read off the source: which write has no failpoint beside it, and which points exist.

A failpoint's site is a literal at the call that writes: `reach("key.file", "before_link")`, or the `at` of a function
that writes on behalf of others and reaches its moments itself.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MODULES = {"os", "shutil", "sqlite3", "tempfile"}
WRITES = {
    "os": {
        "write",
        "pwrite",
        "writev",
        "fsync",
        "fdatasync",
        "rename",
        "replace",
        "link",
        "symlink",
        "unlink",
        "remove",
    }
    | {"truncate", "ftruncate", "mkdir", "makedirs", "rmdir", "removedirs", "sendfile", "copy_file_range", "mknod"},
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copytree"},
    "sqlite3": {"connect"},
    "tempfile": {"NamedTemporaryFile", "mkstemp", "mkdtemp", "TemporaryFile", "TemporaryDirectory"},
}
OF_A_PATH = {"mkdir", "unlink", "rename", "rmdir", "touch", "write_text", "write_bytes", "symlink_to", "hardlink_to"}
OURS = {"persist", "sync", "write_all", "sync_folder", "append", "_discard", "_settle"}
"""Of these, `append` and `sync` are writes only of what is named `_journal` and `_disk`, or as plain functions."""

OF_A_DISK = {"write", "fsync", "create"}
FLAGS = {"O_CREAT", "O_TRUNC"}
POINTERS = {"reach", "halves"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Site:
    """One function that writes, and what in it writes."""

    module: str
    function: str
    writes: tuple[str, ...]
    covered: bool


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def sites(module: str, source: str) -> list[Site]:
    """Every function of a module that writes, and the module's top level if that does."""
    tree = ast.parse(source)
    inside = {id(node) for function in functions(tree) for node in ast.walk(function)}
    found = [(function.name, list(ast.walk(function))) for function in functions(tree)]
    found.append(("<module>", [node for node in ast.walk(tree) if id(node) not in inside]))
    result = []
    for name, nodes in found:
        writes = tuple(sorted({told for node in nodes if (told := _write(node))}))
        if writes:
            result.append(Site(module, name, writes, any(_names_a_point(node) for node in nodes)))
    return result


def _write(node: ast.AST) -> str | None:
    """What this node writes by, or None."""
    if isinstance(node, ast.Attribute) and _owner(node.value) in MODULES:
        # Also where it is not called on the spot: `write: Callable = os.write`.
        return f"{_owner(node.value)}.{node.attr}" if node.attr in WRITES[_owner(node.value)] | FLAGS else None
    if not isinstance(node, ast.Call):
        return None
    called = node.func
    if isinstance(called, ast.Name):
        opened = called.id == "open" and _mode(node, 1) & set("wax+")
        return called.id if opened or called.id in OURS - {"append"} else None
    if not isinstance(called, ast.Attribute) or _owner(called.value) in MODULES:
        return None
    owner, name = _owner(called.value), called.attr
    of_the_journal = name == "append" and owner == "_journal"
    of_a_disk = name in OF_A_DISK | {"sync"} and owner in ("_disk", "disk", "self")
    on_a_path = name in OF_A_PATH or (name == "open" and _mode(node, 0) & set("wax+"))
    renamed = name == "replace" and len(node.args) == 1 and not node.keywords
    ours = name in OURS - {"append", "sync"}
    return f"{owner}.{name}" if of_the_journal or of_a_disk or on_a_path or renamed or ours else None


def _owner(node: ast.AST) -> str:
    """The last name before the dot."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _mode(call: ast.Call, position: int) -> set[str]:
    given = [word.value for word in call.keywords if word.arg == "mode"] or call.args[position : position + 1]
    return {letter for node in given if isinstance(node, ast.Constant) for letter in str(node.value)}


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _names_a_point(node: ast.AST) -> bool:
    """Whether a failpoint is reached here, or a site is handed to a function that reaches it."""
    if not isinstance(node, ast.Call):
        return False
    hands_on = _called(node) in OURS and any(_is_a_site(value) for value in node.args[1:])
    return _called(node) in POINTERS or hands_on


def _is_a_site(node: ast.AST) -> bool:
    literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return literal or (isinstance(node, ast.Name) and node.id == "at")


def points(sources: Iterable[str]) -> set[str]:
    """Every point that can be reached: `site.moment`, for each literal site, with the moments of whom it is handed."""
    trees = [ast.parse(source) for source in sources]
    moments = _moments(trees)
    found = set[str]()
    for tree in trees:
        for node in ast.walk(tree):
            for site, moment in _reached(node, moments):
                if site is not None:
                    found.add(f"{site}.{moment}")
    return found


def _moments(trees: list[ast.Module]) -> dict[str, set[str]]:
    """The moments that each function with a parameter `at` reaches there, by itself or by others."""
    on_behalf = {
        function.name: function
        for tree in trees
        for function in functions(tree)
        if any(argument.arg == "at" for argument in function.args.args)
    }
    found: dict[str, set[str]] = {name: set() for name in on_behalf}
    for _ in on_behalf:  # as often as one can hand on to another
        for name, function in on_behalf.items():
            for node in ast.walk(function):
                found[name] |= {moment for site, moment in _reached(node, found) if site is None}
    return found


def _reached(node: ast.AST, moments: dict[str, set[str]]) -> list[tuple[str | None, str]]:
    """The points that a call reaches. The site is None where it is the caller's `at`."""
    if not isinstance(node, ast.Call):
        return []
    named = [value for value in node.args if _is_a_site(value)]
    if _called(node) == "reach":
        site, moment = node.args
        assert isinstance(moment, ast.Constant), "a moment is a literal"
        return [(_literal(site), str(moment.value))]
    if _called(node) == "halves":
        return [(_literal(node.args[0]), "mid_write")]
    return [(_literal(site), moment) for site in named[-1:] for moment in moments.get(_called(node), ())]


def _literal(node: ast.AST) -> str | None:
    return str(node.value) if isinstance(node, ast.Constant) else None
