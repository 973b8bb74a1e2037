"""Errors: one tree, which survives the way from process to process."""

import pickle

import pytest

from control_plane.core.model import errors
from control_plane.core.model.errors import Refused, SteerwayError, Unavailable

TREE = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SteerwayError)),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", TREE)
def test_error_keeps_its_reason_and_detail_across_a_pickle(kind: type[SteerwayError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("No such group.", groups=["a"], limit=3)))
    assert type(copy) is kind
    assert (copy.reason, str(copy), copy.detail) == ("No such group.", "No such group.", {"groups": ["a"], "limit": 3})


def test_every_error_has_its_own_slug() -> None:
    slugs = [kind.slug for kind in TREE]
    assert len(slugs) == len(set(slugs))


def test_docstring_draws_every_error() -> None:
    drawing = errors.__doc__ or ""
    assert [kind.__name__ for kind in TREE if kind.__name__ not in drawing] == []


def test_refusals_are_client_errors_and_the_rest_are_not() -> None:
    for kind in TREE:
        assert (400 <= kind.status_hint < 500) == issubclass(kind, Refused), kind
    assert Unavailable.status_hint == 503
