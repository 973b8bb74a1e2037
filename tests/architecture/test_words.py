"""Docstrings and messages use the words of the glossary: no retired word, and no docstring that begins as a riddle."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.tree import PACKAGES, ROOT

RETIRED: dict[str, str] = {
    r"houses?": "package, module, layer",
    r"given up for lost|taken for dead": "declared failed",
    r"heard of|signs? of life": "report, heartbeat",
    r"takes? leave|farewell": "shut down",
    r"last words": "exit reason",
    r"bites?": "terminate",
    r"nurser(?:y|ies)": "process pool",
    r"ha(?:s|ve) (?:the|a) run go on|ha(?:s|ve) it go on": "resume",
    r"go(?:es)? on as": "continue as",
    r"mended": "fixed",
    r"stands? on it": "depends on it",
    r"of elsewhere": "of another installation",
    r"turnstile": "admission control",
    r"front door": "request guard",
    r"descents?|descends?|descending": "fork, transfer",
    r"obstacles?|objections?": "reason",
    r"ticket": "queue entry",
    r"lost (?:the )?trainers|trainers (?:were|are) lost": "trainers failed",
    r"stands still": "is stopped",
    r"beside each other": "side by side",
}
"""Retired words as regular expressions, and the words of the glossary that replace them."""

RIDDLE = re.compile(r"(What|Where|Who|Whoever|Whether|Nobody|So many|Those|Such)\b")
"""A docstring begins with an imperative or a noun phrase."""

PRINTERS = frozenset(
    [
        "print",
        "say",
        "_say",
        "echo",
        "secho",
        "debug",
        "info",
        "warning",
        "error",
        "exception",
        "critical",
        "caption",
        "markdown",
        "write",
        "success",
        "toast",
        "add_argument",
        "Option",
        "Argument",
        "ArgumentParser",
    ]
)
"""Functions whose string arguments a user reads: printers, loggers, help texts and the console's elements."""

Text = tuple[int, bool, str]
"""Line, whether it is a docstring, and the text."""


def texts(source: str) -> Iterator[Text]:
    """Yield the docstrings of a module, and the strings in its exceptions and in calls of `PRINTERS`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield node.body[0].lineno, True, docstring
        elif isinstance(node, ast.Raise) and node.exc is not None:
            yield from _strings(node.exc)
        elif isinstance(node, ast.Call) and _name(node.func) in PRINTERS:
            yield from _strings(node)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _strings(node: ast.AST) -> Iterator[Text]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.lineno, False, part.value


def retired_words(text: str) -> Iterator[tuple[str, str]]:
    """Yield each retired word in a text, with the words that replace it."""
    for retired, replacement in RETIRED.items():
        if word := re.search(rf"\b(?:{retired})\b", text, re.IGNORECASE):
            yield word[0], replacement


def violations(source: str) -> list[str]:
    """Return a sentence for each retired word and each riddle in a module's docstrings and messages."""
    reasons = []
    for line, is_docstring, text in texts(source):
        if is_docstring and (riddle := RIDDLE.match(text)):
            reasons.append(f"line {line}: the docstring begins with '{riddle[0]}'")
        reasons += [f"line {line}: '{word}', say {replacement}" for word, replacement in retired_words(text)]
    return reasons


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_and_messages_use_the_words_of_the_glossary(package: str) -> None:
    found = {
        str(path.relative_to(ROOT)): reasons
        for path in sorted((ROOT / package).rglob("*.py"))
        if (reasons := violations(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "planted",
    [
        '"""Where a run stops."""',
        'def ends():\n    """Write the last words of a rank."""',
        'raise RuntimeError(f"rank {rank} was given up for lost")',
        'log.warning("no sign of life of rank %d", rank)',
        'parser.add_argument("--resume", help="have a run go on")',
        'st.caption("Trainers were lost at step 3")',
    ],
)
def test_a_planted_retired_word_is_found(planted: str) -> None:
    assert len(violations(planted)) == 1


def test_words_in_code_and_in_data_are_free() -> None:
    assert violations('ticket = {"kind": "last words"}\nhouse(ticket)  # the turnstile') == []
