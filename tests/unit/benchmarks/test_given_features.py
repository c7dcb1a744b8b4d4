"""Benches take features by name, so that the table of an earlier draw can be printed again."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.export_draw import add_features
from benchmarks.graft_rounding import FEATURES
from benchmarks.replacements import NAME
from trephine.domain.sites import FeatureRef


def given(*words: str, default: tuple[FeatureRef, ...] | None = None) -> list[FeatureRef] | None:
    """What a bench reads of a command line."""
    parser = argparse.ArgumentParser()
    add_features(parser, default)
    features: list[FeatureRef] | None = parser.parse_args(words).features
    return features


def test_features_are_read_by_layer_and_index():
    """In the order given; without any it is the draw, or the bench's own."""
    named = [
        FeatureRef(replacement=NAME, layer=0, index=1968),
        FeatureRef(replacement=NAME, layer=28, index=87),
    ]
    assert given("--features", "0:1968", "28:87", default=FEATURES) == named
    assert given() is None
    assert given(default=FEATURES) == FEATURES


@pytest.mark.parametrize("word", ["10", "0:", ":4", "0:x", "a:b:c", "0:-1", ""])
def test_what_is_no_feature_is_wrong_use(word, capsys: pytest.CaptureFixture[str]):
    """A number was once how many: it is refused with an example."""
    with pytest.raises(SystemExit):
        given("--features", word)
    assert "is not LAYER:INDEX, as 0:1968" in capsys.readouterr().err
