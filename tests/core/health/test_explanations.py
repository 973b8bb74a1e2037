"""Every kind of alert, sign and knob is explained, in the document, too, and names lead to their explanation."""

import ast
from typing import get_args

import pytest

from control_plane.core.health.advice import ALERTS, EXPLANATIONS, KNOBS, explain, similar
from control_plane.core.health.signs import SIGNS, names_of, own_name, sign_of
from control_plane.core.model.health import MAKES_SUSPECT, AlertKind
from tests.architecture.tree import ROOT
from tests.core.health.document import DOCUMENT, document
from tests.core.health.series import Healthy

KNOB_MODULES = ("ray_jobs/steering/training_knobs.py", "ray_jobs/hf/hf_knobs.py", "ray_jobs/steering/module_knobs.py")


def test_every_kind_of_alert_is_explained() -> None:
    assert list(ALERTS) == list(get_args(AlertKind))
    assert set(get_args(AlertKind)) >= MAKES_SUSPECT
    for entry in EXPLANATIONS.values():
        assert entry.title
        assert entry.actions, f"{entry.name}: nothing to do about it"
        assert len(entry.meaning) > 20, entry.name
        assert entry.meaning.endswith((".", ")")), entry.name
        assert all(action[0].isupper() or action[0] in "`0123456789" for action in entry.actions), entry.name
        assert all(action.endswith((".", "RUN`.", "`")) for action in entry.actions), entry.name


def test_every_sign_is_explained() -> None:
    assert {sign.pattern for sign in SIGNS} <= set(EXPLANATIONS)
    assert len({sign.pattern for sign in SIGNS}) == len(SIGNS)


def test_links_lead_somewhere() -> None:
    known = set(EXPLANATIONS) | {sign.pattern for sign in SIGNS}
    assert {(entry.name, name) for entry in EXPLANATIONS.values() for name in entry.see if name not in known} == set()


def literal_knob_names() -> set[str]:
    """Return the names of knobs that stand in the source of the trainers as literals."""
    names = {"lr", "dropout"}
    for path in KNOB_MODULES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Knob", "_interval_knob"):
                names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and " " not in str(arg.value)}
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "BOUNDS":
                names |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}  # type: ignore[union-attr]
    return names


def test_every_knob_of_the_trainers_is_explained() -> None:
    names = literal_knob_names()
    assert {"weight_decay", "betas", "gradient_clipping", "total_steps", "eval_steps"} <= names, "the search sees them"
    assert names - set(KNOBS) == set()


def test_every_sign_of_the_synthetic_series_is_in_the_catalogue() -> None:
    names = {name for now in Healthy(1, steps=120, fp16=True) for name in (*now.signs, *now.by_rank)}
    assert {name for name in names if sign_of(name) is None} == set()


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("loss_spike", "loss_spike"),
        ("Loss spike", "loss_spike"),
        ("dead-units", "dead_units"),
        ("dormant/h.3", "dormant/<block>"),
        ("eval/test_loss", "eval/<set>_loss"),
        ("max_grad_norm", "max_grad_norm"),
        ("lr", "lr"),
        ("*.attn.*:p", "PATTERN:ATTRIBUTE"),
        ("loss/aux_weight", "loss/<name>"),
    ],
)
def test_names_lead_to_their_explanation(asked: str, name: str) -> None:
    entry = explain(asked)
    assert entry is not None
    assert entry.name == name


def test_an_unknown_name_has_no_explanation_but_neighbours() -> None:
    assert explain("los_spikes") is None
    assert explain("") is None
    assert "gradient_spike" in similar("gradient_explosion")


def test_own_part_of_a_name() -> None:
    assert own_name("eval/test_loss") == "test"
    assert own_name("hidden_std/h.3") == "h.3"
    assert own_name("loss") == own_name("unknown/x") == ""
    assert names_of("eval/<set>_loss", ["eval/a_loss", "eval/a_acc", "eval/_loss"]) == ["eval/a_loss"]


def test_document_is_made_from_the_data() -> None:
    """After a change: `python -m tests.core.health.document`."""
    assert DOCUMENT.read_text(encoding="utf-8") == document()
