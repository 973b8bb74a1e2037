"""Every module says in one line what it is, and ARCHITECTURE.md says the same."""

from tests.architecture.tree import DOCUMENT, ROOT, caption, drawing, drawn, entries, modules, read_drawing

MAX_CAPTION_CHARS = 116  # what fits into a line of 120


def test_every_module_begins_with_a_caption_of_one_line() -> None:
    wanting = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if path.name == "__init__.py" and not text.strip():
            continue
        words = caption(path)
        complete = (
            words and len(words) <= MAX_CAPTION_CHARS and text.split('"""')[1].split("\n")[0].rstrip()[-1:] in ".:!?"
        )
        if not complete:
            wanting.append(f"{path.relative_to(ROOT)}: {words!r}")
    assert wanting == []


def test_architecture_document_draws_the_house_as_it_is() -> None:
    """After a change: `python -m tests.architecture.tree`, and read the difference."""
    picture = {path: words.casefold() for path, words in read_drawing(drawn(DOCUMENT.read_text("utf-8"))).items()}
    house = {path: words.casefold() for path, words in entries().items()}
    assert sorted(set(house) - set(picture)) == [], "not in ARCHITECTURE.md"
    assert sorted(set(picture) - set(house)) == [], "in ARCHITECTURE.md only"
    assert {path: (picture[path], house[path]) for path in house if picture[path] != house[path]} == {}


def test_drawing_can_be_read_back() -> None:
    house = entries()
    assert read_drawing(drawing(house)) == house
    assert "control_plane/core/boundary.py" in house
