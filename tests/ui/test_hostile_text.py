"""Words of other people on the console's pages: shown as they were written, and never a link, an icon or an order."""

import ast
import re
from pathlib import Path
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from control_plane.core.model.characters import OBEYED
from control_plane.core.model.commands import Command, SaveCheckpoint, SetLearningRate
from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intents import RunAction
from control_plane.core.model.records import CheckpointCommitted, CheckpointFailed, CommandAccepted, CommandSettled
from tests.ui.conftest import Visit
from tests.ui.fake_cluster import FakeCluster
from tests.ui.fake_trainer import FakeTrainer
from ui import gateway, labels
from ui.labels import escape, plain, sentence

LINKS = re.compile(r"https?://|www\.\S|[-.\w+]+@[-\w]+(?:\.[-\w]+)+|:material/\w+:|:[a-z_]\w*:", re.IGNORECASE)
"""What Markdown, as the page reads it, takes for a link or an icon by its looks, escaped or not."""

OPEN = re.compile(r"(?<!\\)(?:!?\[[^\]]*\]\(|<[a-z!/])", re.IGNORECASE)
"""A link, an image or a tag that is not escaped."""

OWN = re.compile(r":[a-z]+(?:-badge)?\[(?::material/\w+: )?|:material/(?!stop:)\w+:")
"""Colours and icons that the console itself sets."""

EVIL = (
    "x www.evil.example/fix WWW.evil.example me@evil.example https://evil.example HTTP://evil.example "
    "![i](http://evil.example/x.png) <img src=x> :material/stop: :red[y] :smile: &lt;b&gt; \u202egnorw \x1b[2J \x9b"
)
"""Without its last words, which are refused in a command: a journal of an earlier release may hold them."""


def meant(text: str) -> str:
    """What the page's Markdown looks for links in: no code, and escapes read."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", re.sub(r"`[^`]*`", "", text))


@pytest.mark.parametrize(
    "text", [*EVIL.split(" "), EVIL, "- item", "1. item", "= x", "# x", "a\nb", "`www.evil.example", "`"]
)
def test_plain_text_is_no_link_no_icon_and_no_order(text: str) -> None:
    for shown in (plain(text), sentence(text)):
        assert LINKS.search(meant(shown)) is None
        assert OPEN.search(re.sub(r"`[^`]*`", "", shown)) is None
        assert OBEYED.search(shown) is None
    assert not re.match(r"[-=#]|\d+\.", plain(text))
    assert OBEYED.search(escape(text)) is None
    assert "<" not in escape(text)


def test_plain_text_is_shown_as_it_was_written() -> None:
    for text in ("lr = 1e-4, at 12:30:40 (rank 1)", "a & b", "C:\\x", "学習率 größer", "1.5 x", "www", "a@b"):
        assert meant(plain(text)).replace(labels.WORD_JOINER, "") == text


def test_a_refusal_keeps_its_commands_and_nothing_else() -> None:
    assert sentence("open what `steer console` prints at http://x") == (
        f"open what `steer console` prints at http\\:{labels.WORD_JOINER}//x"
    )
    assert "[x](http" not in gateway.explain(Unavailable("[x](http://evil.example) is away"))


def shown(app: AppTest) -> list[str]:
    """Everything on the page that is read as Markdown or HTML, or is text."""
    kinds = (app.markdown, app.caption, app.error, app.warning, app.info, app.success, app.subheader, app.toast)
    told = [str(part.value) for kind in kinds for part in kind]
    labelled = (app.button, app.text_input, app.number_input, app.checkbox)
    links = [str(part.proto.label) for part in app.get("page_link")]
    return [*told, *links, *(str(part.label) for kind in labelled for part in kind)]


@pytest.fixture
def hostile(cluster: FakeCluster) -> FakeTrainer:
    """A run whose journal says hostile things wherever it can."""
    made = cluster.create("gpt2-1", EVIL, total_steps=500)
    made.knobs |= {"evil www.evil.example": 0.1}
    cluster.train(made, 5)

    async def tell() -> None:
        generation = made.server._state.generation
        assert generation is not None
        asked = [
            Command(uuid=uuid4(), author=EVIL[:80], intent=intent, reason=EVIL)
            for intent in (
                SetLearningRate(value=1e-4, group=EVIL[:80]),
                SaveCheckpoint(label=EVIL[:80], note=EVIL),
                RunAction(name=EVIL[:200], arguments={EVIL[:200]: EVIL[:200]}),
            )
        ]
        made.server._commit([CommandAccepted(command=each) for each in asked])
        made.server._commit(
            [
                CommandSettled(uuid=asked[0].uuid, status="rejected", step=5, generation=1, reason=EVIL),
                CommandSettled(
                    uuid=asked[2].uuid, status="applied", step=5, generation=1, world_size=4, after={EVIL: EVIL}
                ),
                CheckpointCommitted(checkpoint="step-5", step=5, generation=1, path="x", label=EVIL, note=EVIL),
                CheckpointFailed(checkpoint="step-6", step=6, generation=1, reason=EVIL),
            ]
        )
        made.server._state.knobs["groups"] = [EVIL, f"{EVIL} 2"]
        await made.lose([0], EVIL)

    cluster.do(tell())
    return made


@pytest.mark.parametrize("page", [{}, {"run": "gpt2-1"}], ids=["runs", "run"])
def test_pages_of_a_hostile_journal_hold_no_link(visit: Visit, hostile: FakeTrainer, page: dict[str, str]) -> None:
    app = visit(**page)
    assert not app.exception
    told = [OWN.sub("", each) for each in shown(app)]
    assert sum("evil" in each for each in told) >= (6 if page else 1)
    for each in told:
        assert OBEYED.search(each.replace("\n", "")) is None
        assert "evil" not in each or LINKS.search(meant(each)) is None
        assert OPEN.search(each) is None
    for text in app.text:
        assert OBEYED.search(str(text.value).replace("\n", "")) is None


def test_no_page_makes_html_of_text_past_the_one_place_that_cleans() -> None:
    found = []
    for path in sorted(Path(labels.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if path.name != "labels.py" and (getattr(node, "module", "") == "html" or "html" in names):
                found.append(path.name)
    assert found == []
