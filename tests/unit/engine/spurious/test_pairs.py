"""Texts in pairs: what is no pair, who is held out with whom, and heads that pairs train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, balanced, paired
from trephine.domain.errors import InvalidRequestError, SplitLeakageError
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import LabelToken, Pooling, ProbeHead, TokenHead
from trephine.domain.spurious_removal import Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.erasing import erased_head, fit_erased
from trephine.engine.spurious.examples import attributes, read_data, sample_pairs
from trephine.engine.spurious.heads import STOCK, fit_probe
from trephine.engine.spurious.judgement import separation
from trephine.engine.spurious.metrics import pair_figures
from trephine.engine.spurious.pairs import partners, threshold
from trephine.engine.spurious.pooling import Readout
from trephine.engine.spurious.removal import remove_spurious_features
from trephine.engine.spurious.study import open_study

ON_PAIRS = ProbeHead(layer=1, pooling=Pooling.MEAN, pairs=True)
SITE = Readout(layer=1, pooling=Pooling.MEAN)
PAIRED = paired(ambiguous())
GIVEN: dict[str, Any] = {
    "training": PAIRED,
    "test": paired(balanced(), "test pair"),
    "attribute_texts": attribute_texts(),
    "decision": ON_PAIRS,
}
ANSWER, QUESTION, STYLE = 2, 4, 1
"""Axes of vectors that are made here."""


@pytest.fixture(scope="module")
def hosted():
    """A tiny Llama."""
    return tiny_hosted("llama")


REFUSED = {
    "a text without a pair": (
        {"training": (replace(PAIRED[0], pair=None), *PAIRED[1:])},
        InvalidRequestError,
        "training[0].pair",
        "training text 0 is in no pair .1 of 80 are not., and the head is trained on pairs: give its `pair`",
    ),
    "a pair of one": (
        {"training": PAIRED[1:]},
        InvalidRequestError,
        "training[39].pair",
        "'pair 0' has 1 text.s., training text 39; a pair is one text of either label",
    ),
    "a pair of three": (
        {"training": (*PAIRED, replace(PAIRED[0], text="abQdX"))},
        InvalidRequestError,
        "training[80].pair",
        "'pair 0' has 3 text.s., training text 0 and training text 40 and training text 80; a pair is one",
    ),
    "a pair of one label": (
        {"test": tuple(replace(one, pair=f"{place // 2}") for place, one in enumerate(balanced()))},
        InvalidRequestError,
        "test[1].label",
        "both texts of the pair '0', test text 0 and test text 1, have the label 'Q'",
    ),
    "a pair in two splits": (
        {"test": tuple(replace(one, pair="pair 3") for one in balanced())},
        SplitLeakageError,
        "test[47].pair",
        "'pair 3' stands in two splits, as training text 3 and training text 43 and test text 0: keep",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_refused_before_any_work(name: str):
    """With the field, the places, and what to do."""
    changed, error, field, said = REFUSED[name]
    with pytest.raises(error, match=said) as caught:
        RemoveSpuriousFeatures(**{**GIVEN, **changed})
    assert caught.value.context["field"] == field


def test_pairs_may_stand_beside_any_head_and_texts_without_one_beside_a_plain_probe():
    """Only what is trained on pairs needs them; splits that are measured on need none."""
    loose = (replace(PAIRED[0], pair=None), replace(PAIRED[40], pair=None), *PAIRED[1:40], *PAIRED[41:])
    RemoveSpuriousFeatures(**{**GIVEN, "training": loose, "decision": ProbeHead()})
    tokens = tuple(LabelToken(label=label, token=label) for label in "QW")
    RemoveSpuriousFeatures(**{**GIVEN, "decision": TokenHead(tokens=tokens), "refit": False})
    RemoveSpuriousFeatures(**{**GIVEN, "test": balanced()})


def test_a_pair_is_held_out_together(hosted):
    """A fifth is, and both sides are whole pairs; so is a draw of those that a head is trained on."""
    data = read_data(hosted, RemoveSpuriousFeatures(**GIVEN))
    fitted, held_out = ({one.pair for one in texts} for texts in (data.training, data.held_out))
    assert not fitted & held_out
    assert (len(data.training), len(data.held_out)) == (64, 16)
    assert len(partners(data.held_out)) == 8
    drawn = sample_pairs(data.training, 21, seed=0)
    assert len(drawn) == 2 * len(partners(drawn)) == 20


def test_partners_are_named_by_label_and_halves_left_out(hosted):
    """The first label's text stands first, wherever it is in the order."""
    texts = read_data(hosted, RemoveSpuriousFeatures(**GIVEN)).test
    pairs = partners(texts)
    assert len(pairs) == 24
    assert all(texts[a].label == 0 and texts[b].label == 1 for a, b in pairs.tolist())
    assert all(texts[a].pair == texts[b].pair for a, b in pairs.tolist())
    assert len(partners(texts[:24])) == 0
    turned = partners(texts[::-1])
    assert {(texts[::-1][a].text, texts[::-1][b].text) for a, b in turned.tolist()} == {
        (texts[a].text, texts[b].text) for a, b in pairs.tolist()
    }


def test_a_threshold_is_as_far_from_either_label_as_that_label_varies():
    """Half-way where both vary alike, nearer to the one that varies less, and moved with the rewards."""
    pairs = torch.arange(200).reshape(100, 2)
    noise = torch.linspace(-1, 1, 100).repeat_interleave(2)
    second = torch.arange(200) % 2
    alike = 8.0 * second + noise
    assert threshold(alike, pairs) == pytest.approx(4.0, abs=1e-5)
    unlike = 8.0 * second + noise * torch.where(second == 1, 1.0, 3.0)
    assert threshold(unlike, pairs) == pytest.approx(6.0, abs=1e-5)
    assert threshold(2 * unlike + 1, pairs) == pytest.approx(13.0, abs=1e-5)
    assert threshold(8.0 * second, pairs) == 4.0, "who is called first decided"


def _asked(n: int, *, seed: int = 0, told: float = 2.0, apart: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors `(2 n, 6)`, labels and pairs: the answer is written weakly, the pair's question loudly.

    Texts of a pair tell their question by `apart` differently.
    """
    generator = torch.Generator().manual_seed(seed)
    pooled = 0.5 * torch.randn(2 * n, 6, generator=generator)
    y = torch.arange(2 * n) % 2
    pairs = torch.arange(2 * n).reshape(n, 2)
    pooled[:, ANSWER] += told * (2 * y - 1)
    pooled[:, QUESTION] *= apart
    pooled[:, QUESTION] += 20 * torch.randn(n, generator=generator).repeat_interleave(2) + 50
    return pooled, y, pairs


@pytest.mark.parametrize("site", [SITE, STOCK], ids=["probe", "stock"])
def test_a_reward_reads_what_differs_within_pairs(site: Readout):
    """The answer's direction is found, the question's left alone; texts are decided by their label."""
    pooled, y, pairs = _asked(60)
    head = fit_probe(ON_PAIRS, site, pooled, y, pairs)
    assert int(head.direction.abs().argmax()) == ANSWER
    assert abs(float(head.direction[QUESTION])) < 1e-2 * float(head.direction[ANSWER])
    assert (head.margin(pooled)[pairs[:, 1]] > head.margin(pooled)[pairs[:, 0]]).all()
    fresh, label, _ = _asked(400, seed=1)
    assert float((head.decide(fresh) == label).float().mean()) > 0.95
    assert bool(head.bias.any()) == (site != STOCK)


def test_who_stands_first_says_nothing():
    """Turning every label turns the reward, and the order of texts and pairs changes nothing."""
    pooled, y, pairs = _asked(40)
    head = fit_probe(ON_PAIRS, SITE, pooled, y, pairs)
    turned = fit_probe(ON_PAIRS, SITE, pooled, 1 - y, pairs.flip(1))
    torch.testing.assert_close(turned.direction, -head.direction)
    torch.testing.assert_close(turned.bias, -head.bias)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))
    again = fit_probe(ON_PAIRS, SITE, pooled, y, pairs[order])
    torch.testing.assert_close(again.direction, head.direction)


@pytest.mark.parametrize("site", [SITE, STOCK], ids=["probe", "stock"])
def test_a_head_of_least_variance_does_not_follow_the_question(site: Readout):
    """What both texts of a pair share varies within a label and costs weight; a forbidden style gets none."""
    pooled, y, pairs = _asked(200, apart=1.0)
    pooled[:, STYLE] += 6.0 * (2 * y - 1)
    style = torch.zeros(1, 6)
    style[0, STYLE] = 1.0
    head = fit_erased(site, pooled, y, style, pairs=pairs)
    assert head is not None
    assert abs(float(head.direction[STYLE])) < 1e-5 * float(head.direction[ANSWER])
    assert abs(float(head.direction[QUESTION])) < 0.02 * float(head.direction[ANSWER])
    margins = head.margin(pooled)
    assert float((margins[pairs[:, 1]] > margins[pairs[:, 0]]).float().mean()) > 0.99
    assert bool(head.bias.any()) == (site != STOCK)


def test_pairs_move_the_threshold_of_such_a_head_alone():
    """To where either label is as far away as it varies."""
    pooled, y, pairs = _asked(200, apart=1.0)
    pooled[y == 0, ANSWER] *= 2.0
    one, other = (fit_erased(SITE, pooled, y, torch.zeros(0, 6), pairs=own) for own in (pairs, None))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.direction, other.direction)
    rewards = pooled.double() @ one.direction.double()
    assert float(one.bias[0] - one.bias[1]) == pytest.approx(threshold(rewards, pairs), rel=1e-4)
    assert not torch.allclose(one.bias, other.bias, rtol=1e-3)


def test_pairs_are_ranked_in_all_and_by_their_worst_kind():
    """Of three kinds by attribute one is ranked the wrong way round; ties are not right."""
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    margins = torch.tensor([0.0, 1.0, 5.0, 7.0, 2.0, 1.0, 3.0, 3.0])
    known = torch.tensor([0, 1, 0, 1, 1, 0, 0, 0])
    found = pair_figures(margins, pairs, known, resamples=20, seed=0)
    assert [(one.name, one.value) for one in found] == [("pair_accuracy", 0.5), ("worst_pairs", 0.0)]
    unknown = pair_figures(margins, pairs, torch.full((8,), -1), resamples=20, seed=0)
    assert [one.name for one in unknown] == ["pair_accuracy"]


def test_a_whole_removal_is_trained_on_pairs_and_ranks_them(hosted):
    """Head, refits and the head without the attribute; every arm ranks the pairs of the test split."""
    budget = RemovalBudget(
        candidates=96, exact=0, counts=(1, 5), effect_texts=32, fit_texts=64, random_sets=1
    )
    said = Override(feature=FeatureRef(layer=0, index=1), remove=True, reason="so that something goes")
    early = replace(ON_PAIRS, layer=0)
    asked = RemoveSpuriousFeatures(
        **{**GIVEN, "decision": early}, budget=budget, resamples=20, overrides=(said,)
    )
    study = finish(open_study(hosted, asked))
    pooled = finish(study.pool([one.ids for one in study.fitted], (), "again"))
    pairs, y = partners(study.fitted), torch.tensor([one.label for one in study.fitted])
    expected = fit_probe(early, study.readout, pooled, y, pairs)
    torch.testing.assert_close(study.head.direction, expected.direction)
    examples = finish(study.pool([one.ids for one in study.data.attribute], (), "examples"))
    told = separation(examples, attributes(study.data.attribute))[None]
    sparing = fit_erased(study.readout, pooled, y, told, pairs=pairs)
    erased = finish(erased_head(study, (), "erased"))
    assert erased is not None
    assert sparing is not None
    torch.testing.assert_close(erased.direction, sparing.direction)
    report = finish(remove_spurious_features(Session(hosted=hosted), asked))
    assert {Arm.ORIGINAL, Arm.REMOVED, Arm.REFITTED} <= {one.arm for one in report.arms}
    for arm in report.arms:
        names = [one.name for one in arm.figures]
        assert {"pair_accuracy", "worst_pairs", "worst_group"} <= set(names)
    original = report.arm(Arm.ORIGINAL)
    assert original is not None
    ranked = original.figure("pair_accuracy")
    assert ranked is not None
    assert ranked.value > 0.5
    plain = finish(remove_spurious_features(Session(hosted=hosted), replace(asked, test=balanced(4, seed=9))))
    assert all(arm.figure("pair_accuracy") is None for arm in plain.arms)
