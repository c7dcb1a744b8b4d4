"""Activations are read as they are, and ranked without position 0."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from tests.builders import FAMILIES, tiny_hosted
from trephine.domain.activations import RankActivity, ReadActivations
from trephine.domain.errors import (
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
)
from trephine.domain.sites import FeatureRef
from trephine.engine.models.neurons import decoder_norms, neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.activations import HANDLERS
from trephine.engine.runs.rows import RowInput, run_rows

TEXT = " Mary and John went to the store"


def run(hosted, command: Any) -> Any:
    """Carry out a command."""
    return finish(HANDLERS[type(command)](Session(hosted=hosted), command))


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_the_down_projections_input(family):
    """Values come per feature in the order asked for, one per token, bit for bit."""
    hosted = tiny_hosted(family)
    features = (FeatureRef(layer=2, index=63), FeatureRef(layer=0, index=1), FeatureRef(layer=2, index=0))
    result = run(hosted, ReadActivations(text=TEXT, features=features))
    table = numpy.frombuffer(result.values.data, dtype="<f4").reshape(result.values.shape)
    sites = [neuron_site(layer) for layer in range(3)]
    values = run_rows(hosted, [RowInput(hosted.encode(TEXT))], reads=sites, keep_last=1).values[0]
    for row, feature in zip(table, features, strict=True):
        assert row.tolist() == values[neuron_site(feature.layer)][:, feature.index].tolist()
    assert [t.display for t in result.tokens] == [" Mary", " and", " John", " went", " to", " the", " store"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ranking_is_by_contribution_over_all_layers(family):
    """No neuron at any later position contributes more than the last one listed."""
    hosted = tiny_hosted(family)
    ranked = run(hosted, RankActivity(text=TEXT, count=12)).features
    sites = [neuron_site(layer) for layer in range(3)]
    values = run_rows(hosted, [RowInput(hosted.encode(TEXT))], reads=sites, keep_last=1).values[0]
    everything = {
        (site.layer, i, p): float(
            values[site][p, i].abs() * decoder_norms(hosted.architecture, site.layer)[i]
        )
        for site in sites
        for p in range(1, 7)
        for i in range(64)
    }
    listed = [(f.feature.layer, f.feature.index, f.position) for f in ranked]
    assert listed == sorted(everything, key=lambda key: -everything[key])[:12]
    for place, activity in zip(listed, ranked, strict=True):
        assert activity.contribution == pytest.approx(everything[place], rel=1e-5)
        assert activity.position > 0


def test_bad_requests_are_refused():
    """Missing features, other replacement sets, one-token texts and empty rankings are typed errors."""
    hosted = tiny_hosted("llama")
    with pytest.raises(FeatureOutOfRangeError):
        run(hosted, ReadActivations(text=TEXT, features=(FeatureRef(layer=0, index=64),)))
    with pytest.raises(LayerOutOfRangeError):
        run(hosted, ReadActivations(text=TEXT, features=(FeatureRef(layer=3, index=0),)))
    with pytest.raises(ReplacementNotFoundError, match="'tc'"):
        run(hosted, RankActivity(text=TEXT, replacement="tc"))
    with pytest.raises(InvalidRequestError, match="one token"):
        run(hosted, RankActivity(text=" the"))
    with pytest.raises(InvalidRequestError, match="count"):
        run(hosted, RankActivity(text=TEXT, count=0))
