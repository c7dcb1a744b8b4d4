"""Targets on the command line: what the options mean, and what is refused before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trephine.client.cli.targets import read_vector, wanted_target
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.target_requests import graph_target
from trephine.client.types import (
    AttentionScore,
    FeatureValue,
    SiteKind,
    TokenLogits,
    TopLogits,
)

NOTHING: dict[str, Any] = dict.fromkeys(
    ("tokens", "top_logits", "mass", "feature", "direction", "site", "attention", "positions")
)


@pytest.mark.parametrize(
    ("given", "target", "positions"),
    [
        ({"tokens": [" a"]}, " a", ()),
        ({"tokens": [" a", "#3"], "positions": [2, -1]}, TokenLogits(tokens=(" a", "#3")), (2, -1)),
        ({"top_logits": 5, "mass": 0.5}, TopLogits(limit=5, mass=0.5), ()),
        ({"feature": "24:311@-2"}, FeatureValue(layer=24, index=311), (-2,)),
        ({"attention": "18.2:4:3"}, AttentionScore(layer=18, head=2, key=3), (4,)),
    ],
)
def test_options_name_a_target(given: dict[str, Any], target: object, positions: tuple[int, ...]):
    """Each option is one kind of target, and carries its positions."""
    found = wanted_target(**{**NOTHING, **given})
    assert (found.target, found.positions) == (target, positions)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
def test_a_direction_is_read_from_a_numpy_file(tmp_path: Path, kind: str):
    """Floats of any width come back as they were saved, and the site is resid_post unless it is said."""
    np.save(tmp_path / "probe.npy", np.array([[0.5, -1.25, 3.0]], dtype=kind))
    found = wanted_target(**{**NOTHING, "direction": tmp_path / "probe.npy", "site": "12"})
    message = graph_target(found.target, None, found.positions)
    assert list(message.direction.vector) == [0.5, -1.25, 3.0]
    assert message.direction.name == "probe"
    assert found.target.site.kind is SiteKind.RESID_POST


def test_what_is_no_vector_is_refused(tmp_path: Path):
    """Matrices, integers, other files and objects are never read as a direction."""
    for name, value in (("m", np.ones((2, 2))), ("i", np.arange(3)), ("o", np.array([{}], dtype=object))):
        np.save(tmp_path / f"{name}.npy", value, allow_pickle=True)
        with pytest.raises(LocalFileError, match="no vector"):
            read_vector(tmp_path / f"{name}.npy")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(LocalFileError, match=r"no \.npy file"):
        read_vector(tmp_path / "x.npy")
    with pytest.raises(LocalFileError, match="cannot read"):
        read_vector(tmp_path / "gone.npy")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tokens": [" a"], "top_logits": 3},
        {"tokens": [" a"], "mass": 0.5},
        {"tokens": [" a"], "site": "12"},
        {"feature": "24"},
        {"attention": "18.2:4"},
        {"attention": "18.2:4:3", "positions": [1]},
    ],
)
def test_what_is_no_target_is_refused(given: dict[str, Any]):
    """None, several, or options that do not go together."""
    with pytest.raises(InvalidRequestError):
        wanted_target(**{**NOTHING, **given})


def test_only_a_token_is_held_against_another():
    """The client refuses a feature against a token without asking the server."""
    with pytest.raises(InvalidRequestError, match="only a token"):
        graph_target(FeatureValue(layer=1, index=2), " a", ())
