"""Token lists, the concept bottleneck, random dictionaries and skylines, each against what it claims."""

from __future__ import annotations

import pytest
import torch

from trephine.domain.errors import EmptyGroupError, InvalidRequestError
from trephine.engine.erasure.bottleneck import concept_directions, concept_scores
from trephine.engine.erasure.dictionaries import random_dictionary
from trephine.engine.erasure.skyline import Skyline, counts_up_to, skyline_order
from trephine.engine.erasure.tokens import (
    flattened_embeddings,
    strongest_tokens,
    token_associations,
    without_tokens,
)

SHE, HE, THE, RARE = 5, 6, 7, 8


def told() -> tuple[list[list[int]], list[int]]:
    """Forty texts; 5 goes with the second value, 6 with the first, 7 with both, 8 occurs once."""
    texts = [[THE, SHE] if number % 2 else [THE, HE, HE] for number in range(40)]
    texts[0].append(RARE)
    return texts, [number % 2 for number in range(40)]


def test_associations_rank_by_evidence_and_count_a_token_once_per_text():
    """Tokens that always go with a value lead, with opposite signs; a rare one and a common one do not."""
    found = {one.token: one.z_score for one in token_associations(*told())}
    assert found[SHE] > 3.5
    assert found[HE] == pytest.approx(-found[SHE])
    assert abs(found[THE]) < 0.5
    assert abs(found[RARE]) < 1.5
    assert [one.token for one in token_associations(*told())][:2] == [SHE, HE]


def test_the_strongest_tokens_are_deleted_and_no_text_becomes_empty():
    """The list stops at a z-score and at a length; a text of deleted tokens keeps one."""
    found = token_associations(*told())
    assert strongest_tokens(found, above=3.0, at_most=10) == {SHE, HE}
    assert strongest_tokens(found, above=3.0, at_most=1) == {SHE}
    assert without_tokens([THE, SHE, RARE], {SHE}) == [THE, RARE]
    assert without_tokens([SHE, SHE], {SHE}) == [SHE]


def test_associations_need_both_values():
    """One value alone tells nothing."""
    with pytest.raises(InvalidRequestError):
        token_associations([[1], [2]], [1, 1])


def test_flattening_touches_the_chosen_tokens_alone():
    """Chosen rows become the table's mean; the others stay bit for bit."""
    table = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[SHE, THE, HE]])
    flat = flattened_embeddings(table, ids, {SHE, HE})
    assert torch.equal(flat[0, 1], table[THE])
    assert torch.allclose(flat[0, 0], table.mean(0))
    assert torch.allclose(flat[0, 2], table.mean(0))


def test_the_bottleneck_sees_named_concepts_and_nothing_else():
    """What is orthogonal to every concept moves no score but through the length; scores are cosines."""
    concepts, centre = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]]), torch.tensor([1.0, 1.0, 0.0])
    directions = concept_directions(concepts, centre)
    assert torch.allclose(directions, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    scores = concept_scores(torch.tensor([[4.0, 5.0, 0.0], [1.0, 1.0, 9.0]]), directions, centre)
    assert torch.allclose(scores, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    with pytest.raises(InvalidRequestError):
        concept_directions(centre[None], centre)


def test_a_random_dictionary_has_the_size_and_the_l0_that_were_asked_for():
    """Every feature fires on the same share of tokens, and its decoder explains more than the mean."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 16, generator=generator)
    y = x @ torch.randn(16, 8, generator=generator)
    drawn = random_dictionary(x, y, d_sae=64, l0=8, seed=1)
    codes = drawn.encode(x)
    assert float((codes != 0).sum(1).float().mean()) == pytest.approx(8, rel=0.03)
    rates = (codes != 0).float().mean(0)
    assert float(rates.max() - rates.min()) < 0.01
    left = (y - codes @ drawn.W_dec - drawn.b_dec).square().sum() / (y - y.mean(0)).square().sum()
    assert float(left) < 0.9
    assert not torch.equal(random_dictionary(x, y, d_sae=64, l0=8, seed=2).W_enc, drawn.W_enc)
    with pytest.raises(InvalidRequestError):
        random_dictionary(x, y, d_sae=64, l0=64, seed=1)


def test_a_skyline_ranks_attribute_features_and_leaves_task_features_out():
    """Feature 1 follows the attribute, 3 twice as much, 0 the label, 2 nothing much of either."""
    labels, attributes = torch.tensor([0, 0, 1, 1] * 5), torch.tensor([0, 1, 0, 1] * 5)
    contributions = torch.stack(
        [2.0 * labels, 1.0 * attributes, 0.1 * labels, -2.0 * attributes + 0.5 * labels], dim=1
    )
    assert skyline_order(contributions, labels, attributes).tolist() == [3, 1]
    with pytest.raises(EmptyGroupError):
        skyline_order(contributions, labels, labels)


def test_a_skyline_takes_the_fewest_features_of_the_best_worst_group():
    """Counts hold none and all that there are."""
    assert counts_up_to(30, (10, 100)) == (0, 10, 30)
    assert Skyline(counts=(0, 10, 30), worst_groups=(0.1, 0.7, 0.7)).chosen == 10
