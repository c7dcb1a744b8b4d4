"""A feature's page shows what is known, links what lies beside it, and runs nothing of its texts."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tests.unit.pages.circuits import HOSTILE, token
from tests.unit.pages.test_pages import parsed
from trephine.domain.circuits import Node
from trephine.domain.features import (
    CoFiring,
    DecoderView,
    FeatureContext,
    FeatureDescription,
    FeatureIndexInfo,
    FeatureLabel,
    FeatureStatistics,
    Histogram,
    TokenShare,
)
from trephine.domain.sites import FeatureRef
from trephine.pages.feature_page import feature_file, feature_html

FEATURE, NEAR, PARTNER = (FeatureRef(replacement=HOSTILE, layer=12, index=index) for index in (345, 7, 8))


def label(feature: FeatureRef) -> FeatureLabel:
    return FeatureLabel(feature=feature, text=HOSTILE, author=HOSTILE, create_time="2026-01-01T00:00:00Z")


def index() -> FeatureIndexInfo:
    return FeatureIndexInfo(
        replacement=HOSTILE,
        content_hash="c" * 64,
        model=HOSTILE,
        weight_hash="w" * 64,
        corpus=HOSTILE,
        corpus_sha256="d" * 64,
        tokens=123_456,
        contexts=1000,
        documents=10,
        layers=(12,),
        features=2048,
        fired=2000,
        degraded=True,
        begins_with=HOSTILE,
        rule=HOSTILE,
    )


def statistics() -> FeatureStatistics:
    context = FeatureContext(
        tokens=(token(1, HOSTILE), token(2, " store"), token(3, "ש")),
        activations=(-1.0, 4.0, 0.0),
        peak=1,
        document=3,
        position=17,
    )
    return FeatureStatistics(
        feature=FEATURE,
        density=0.00125,
        count=154,
        mean=1.5,
        largest=4.0,
        histogram=Histogram(edges=(0.5, 1.0, 2.0, 4.0), counts=(100, 50, 4)),
        contexts=(context,),
        cofiring=(CoFiring(feature=PARTNER, count=9, of=32, jaccard=0.12),),
        tokens=(TokenShare(token=token(4, HOSTILE), share=0.5),),
    )


def description(**changes: object) -> FeatureDescription:
    view = DecoderView(
        feature=FEATURE,
        promotes=((token(5, HOSTILE), 2.5), (token(6, " shop"), 1.0)),
        suppresses=((token(7, HOSTILE), -3.0),),
        neighbours=((NEAR, 0.42),),
        decoder_norm=1.25,
        threshold=0.3,
    )
    whole = FeatureDescription(
        view=view,
        statistics=statistics(),
        label=label(FEATURE),
        labels=(label(NEAR), label(PARTNER)),
        index=index(),
        index_name="featureIndexes/1",
        caveats=(HOSTILE,),
    )
    return dataclasses.replace(whole, **changes)


def described(node: Node, **changes: object) -> FeatureDescription:
    """The same of another feature: that of a circuit's node."""
    known = description(**changes)
    feature = FeatureRef(replacement=node.replacement, layer=node.layer, index=node.feature)
    return dataclasses.replace(known, view=dataclasses.replace(known.view, feature=feature))


@pytest.mark.parametrize("changes", [{}, {"statistics": None, "index": None, "label": None, "labels": ()}])
def test_only_its_own_script_runs(changes):
    """Hostile texts in every place become no element, attribute or script; nothing is loaded."""
    html = feature_html(description(**changes), beside={(12, 7)})
    elements = parsed(html)
    assert elements.tags.count("script") == 1
    assert not {"img", "iframe", "link", "object"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert not [value for name, value in elements.attributes if name == "src"]
    assert "default-src 'none'" in dict(elements.attributes)["content"] or "default-src &#39;none" in html
    for character in "\x1b\u2028\x00\u202e":
        assert character not in html
    html.encode("utf-8")


def test_what_lies_beside_is_linked_and_nothing_else():
    """A neighbour with a page of its own is a link by the common name; the partner without one is text."""
    elements = parsed(feature_html(description(), beside={(12, 7)}))
    assert [value for name, value in elements.attributes if name == "href"] == [feature_file(NEAR)]
    assert "a" not in parsed(feature_html(description())).tags


def test_the_histogram_has_a_bar_per_bin_of_logarithmic_height():
    """Bars fill the chart; the fullest is the tallest, a rare bin can still be seen; each says its count."""
    html = feature_html(description())
    bars = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', html)]
    assert len(bars) == 3
    assert bars[0] == 120.0
    assert bars[0] > bars[1] > bars[2] > 30
    assert "2 to 4: 4" in html


def test_tokens_are_coloured_by_their_share_of_the_peak():
    """The peak is marked, a negative activation has the other colour, tooltips hold values."""
    html = feature_html(description())
    assert re.search(r'<span class="plus peak" style="--share:1.0" title="4 on  store"> store</span>', html)
    assert re.search(r'<span class="minus" style="--share:0.25" title="−1 on ', html)


def test_figures_and_caveats_are_shown():
    """Density, counts, thresholds, the index and what a reader must know are on the page."""
    html = feature_html(description())
    for text in (
        "0.125%",
        "154 of 123,456",
        "decoder norm",
        "threshold",
        "123,456 positions",
        "9 of 32",
        "0.120",
    ):
        assert text in html
    bare = feature_html(description(statistics=None, index=None, label=None))
    assert "Strongest contexts" not in bare
    assert "<h1>Feature 12:345</h1>" in bare


def test_a_figure_that_is_no_number_is_a_dash():
    """NaN and infinity never reach the page as such."""
    broken = dataclasses.replace(statistics(), mean=float("nan"), largest=float("inf"), density=float("nan"))
    html = feature_html(description(statistics=broken))
    assert ">nan<" not in html
    assert ">inf<" not in html
    assert html.count("<dd>–</dd>") == 3
