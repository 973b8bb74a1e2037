"""Every module has a docstring that begins with one line, and ARCHITECTURE.md shows that line of every package."""

from tests.architecture.tree import DOCUMENT, ROOT, caption, drawing, drawn, modules, packages, read_drawing

MAX_CAPTION_CHARS = 116  # what fits into a line of 120


def test_every_module_begins_with_a_caption_of_one_line() -> None:
    wanting = []
    for path in modules():
        words = caption(path)
        first_line = path.read_text(encoding="utf-8").partition('"""')[2].split("\n")[0]
        if not words or len(words) > MAX_CAPTION_CHARS or first_line.removesuffix('"""').rstrip()[-1:] not in ".:!?":
            wanting.append(f"{path.relative_to(ROOT)}: {words!r}")
    assert wanting == []


def test_architecture_document_shows_the_packages_as_they_are() -> None:
    """After a change: `python -m tests.architecture.tree`, and read the difference."""
    picture, current = read_drawing(drawn(DOCUMENT.read_text("utf-8"))), packages()
    assert sorted(set(current) - set(picture)) == [], "not in ARCHITECTURE.md"
    assert sorted(set(picture) - set(current)) == [], "in ARCHITECTURE.md only"
    assert {path: (picture[path], text) for path, text in current.items() if picture[path] != text} == {}


def test_drawing_can_be_read_back() -> None:
    current = packages()
    assert read_drawing(drawing(current)) == current
    assert {"control_plane/", "control_plane/core/", "control_plane/core/model/"} <= set(current)
