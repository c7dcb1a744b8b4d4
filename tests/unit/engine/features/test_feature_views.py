"""Decoders, rankings and contrasts say what the model's weights and activations say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted, tiny_tokenizer
from trephine.domain.errors import (
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
)
from trephine.domain.features import ContrastFeatures, RankByToken, ViewDecoder
from trephine.domain.sites import FeatureRef
from trephine.engine.features.handlers import HANDLERS
from trephine.engine.features.statistics import auroc, benjamini_hochberg, permutation_p
from trephine.engine.models.neurons import decoder_norms, decoders, neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.rows import RowInput, run_rows

TEXT = " Mary and John went to the store"


def run(hosted: Any, command: Any) -> Any:
    return finish(HANDLERS[type(command)](Session(hosted=hosted), command))


@pytest.mark.parametrize("family", FAMILIES)
def test_promoted_tokens_are_those_of_the_logit_lens(family):
    """The listed logits are what the decoder adds at a final norm scale of 1, both ends in order."""
    hosted = tiny_hosted(family)
    view = run(hosted, ViewDecoder(feature=FeatureRef(layer=1, index=5), tokens=4, neighbours=0))
    norm = hosted.architecture.final_norm
    direction = decoders(hosted.architecture, 1, [5])[0]
    logits = (norm.centre(direction) * norm.gain) @ hosted.architecture.W_U.T
    logits = logits[: len(tiny_tokenizer())]  # embeddings are padded beyond the tokenizer
    best = logits.topk(4)
    assert [token.id for token, _ in view.promotes] == best.indices.tolist()
    assert [value for _, value in view.promotes] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert [value for _, value in view.suppresses] == pytest.approx(sorted(logits.tolist())[:4], rel=1e-4)
    assert view.decoder_norm == pytest.approx(float(direction.norm()), rel=1e-5)
    assert view.threshold is None
    assert view.neighbours == ()


def test_neighbours_are_the_nearest_decoders():
    """Cosines are those of the decoders; the feature itself is no neighbour."""
    hosted = tiny_hosted("gemma2")
    view = run(hosted, ViewDecoder(feature=FeatureRef(layer=2, index=7), neighbours=64))
    rows = torch.nn.functional.normalize(decoders(hosted.architecture, 2, range(64)), dim=-1)
    cosines = rows @ rows[7]
    assert len(view.neighbours) == 63
    for feature, cosine in view.neighbours:
        assert feature.index != 7
        assert cosine == pytest.approx(float(cosines[feature.index]), abs=1e-5)
    values = [cosine for _, cosine in view.neighbours]
    assert values == sorted(values, reverse=True)


def test_every_token_gets_its_strongest_features():
    """At each position no feature of any layer contributes more than the ones listed; position 0 has none."""
    hosted = tiny_hosted("qwen3")
    found = run(hosted, RankByToken(text=TEXT, count=3))
    sites = [neuron_site(layer) for layer in range(3)]
    values = run_rows(hosted, [RowInput(hosted.encode(TEXT))], reads=sites, keep_last=1).values[0]
    assert found.positions[0].features == ()
    for position in range(1, 7):
        everything = [
            float(values[site][position, index].abs() * decoder_norms(hosted.architecture, site.layer)[index])
            for site in sites
            for index in range(64)
        ]
        listed = [size for _, _, size in found.positions[position].features]
        assert listed == pytest.approx(sorted(everything, reverse=True)[:3], rel=1e-4)


def test_a_contrast_finds_the_token_that_differs():
    """Sets that differ in one word have features with AUROC 1 whose means are those of the maxima."""
    hosted = tiny_hosted("llama")
    first = tuple(f"The {word} gave a drink to Mary" for word in ("cat", "dog", "store", "capital", "Paris"))
    second = tuple(f"The {word} gave a drink to John" for word in ("cat", "dog", "store", "capital", "Paris"))
    contrast = run(hosted, ContrastFeatures(first=first, second=second, count=10, permutations=199))
    best = contrast.features[0]
    assert best.auroc in (0.0, 1.0)
    assert best.p_value <= 0.02
    assert best.q_value >= best.p_value
    site = neuron_site(best.feature.layer)
    maxima = [
        float(
            run_rows(hosted, [RowInput(hosted.encode(text))], reads=[site], keep_last=1)
            .values[0][site][1:, best.feature.index]
            .max()
        )
        for text in (*first, *second)
    ]
    assert best.mean_first == pytest.approx(sum(maxima[:5]) / 5, abs=1e-4)
    assert best.mean_second == pytest.approx(sum(maxima[5:]) / 5, abs=1e-4)
    assert run(hosted, ContrastFeatures(first=first, second=second, count=10, permutations=199)) == contrast


def test_equal_sets_show_no_difference():
    """Two sets of the same texts differ nowhere: no small q."""
    hosted = tiny_hosted("llama")
    texts = (TEXT, "When the cat went to Paris", "a dog is a cat")
    contrast = run(hosted, ContrastFeatures(first=texts, second=texts, permutations=99))
    assert all(one.mean_difference == 0 and one.auroc == 0.5 for one in contrast.features)
    assert all(one.p_value == 1.0 and one.q_value == 1.0 for one in contrast.features)


def test_statistics_equal_their_definitions():
    """AUROC by pairs, p against enumeration, q by the textbook."""
    first, second = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    assert auroc(first, second).tolist() == pytest.approx([(1 + 0 + 0 + 1 + 1 + 0.5) / 6])
    values = torch.tensor([[9.0], [8.0], [1.0], [2.0], [0.0], [1.5]])
    p_value = permutation_p(values, 2, permutations=9999, seed=3).item()
    assert p_value == pytest.approx(1 / 15, abs=0.01)  # one of 15 choices of two reaches it
    assert benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.5]).double()).tolist() == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 0.5]
    )


def test_what_does_not_exist_is_named():
    """Features, layers, sets and texts that cannot be looked at are typed errors with their field."""
    hosted = tiny_hosted("llama")
    with pytest.raises(FeatureOutOfRangeError, match="0 to 63"):
        run(hosted, ViewDecoder(feature=FeatureRef(layer=0, index=64)))
    with pytest.raises(LayerOutOfRangeError):
        run(hosted, ViewDecoder(feature=FeatureRef(layer=3, index=0)))
    with pytest.raises(ReplacementNotFoundError):
        run(hosted, RankByToken(text=TEXT, replacement="nowhere"))
    with pytest.raises(InvalidRequestError, match="one token"):
        run(hosted, RankByToken(text=" Mary"))
    with pytest.raises(InvalidRequestError) as caught:
        run(hosted, ContrastFeatures(first=(TEXT, " Mary"), second=(TEXT, TEXT)))
    assert caught.value.context["field"] == "first[1]"
    with pytest.raises(InvalidRequestError, match="at least 2 texts"):
        ContrastFeatures(first=(TEXT,), second=(TEXT, TEXT))
