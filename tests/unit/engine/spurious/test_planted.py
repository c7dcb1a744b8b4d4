"""Two known neurons carry the attribute: both are found, and removing them frees the decision.

The last letter of a text has three bits in its embedding: the label y, faintly, and p and q. The attribute is
p q, which no linear head can read off the embedding; two gated neurons compute it (silu(+-p) times +-q) and
write it loudly, into six coordinates. Attention writes nothing, so that it reaches the head in no other way.
"""

from __future__ import annotations

import random

import pytest
import torch

from tests.builders import hosted_from, tiny_model
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.findings import Verdict
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import ProbeHead
from trephine.domain.spurious_outcomes import Ground
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures, Standing
from trephine.domain.spurious_texts import AttributeText, LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.removal import remove_spurious_features

PLANTED = {FeatureRef(layer=0, index=5), FeatureRef(layer=0, index=40)}
BITS = [(y, p, q) for y in (-1, 1) for p in (-1, 1) for q in (-1, 1)]
LETTERS = "abcdefghijklmnopqrstuvwx"


@pytest.fixture(scope="module")
def session():
    """A tiny Llama with the two neurons; its other neurons write noise."""
    model = tiny_model("llama", n_layers=2)
    hosted = hosted_from(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.mul_(0.005)
            layer.post_attention_layernorm.weight.fill_(1)
            for bias in (layer.self_attn.o_proj.bias, layer.mlp.down_proj.bias):
                if bias is not None:
                    bias.zero_()
        model.model.norm.weight.fill_(1)
        for place, letter in enumerate(LETTERS):
            (token,) = hosted.encode(letter)
            y, p, q = BITS[place % 8]
            noise = torch.randn(29, generator=generator) * 0.12
            model.model.embed_tokens.weight[token] = torch.cat([torch.tensor([0.25 * y, p, q]), noise])
        mlp = model.model.layers[0].mlp
        for sign, neuron in ((1, 5), (-1, 40)):
            for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
                if projection.bias is not None:
                    projection.bias.zero_()
            mlp.gate_proj.weight[neuron] = 0
            mlp.up_proj.weight[neuron] = 0
            mlp.gate_proj.weight[neuron, 1] = 2 * sign
            mlp.up_proj.weight[neuron, 2] = 1 * sign
            mlp.down_proj.weight[:, neuron] = 0
            mlp.down_proj.weight[26:, neuron] = 0.03
    return Session(hosted=hosted_from(model))


def _texts(count, seed, *, chosen):
    """Distinct texts whose last letter satisfies `chosen(label, attribute)`, with (label, attribute)."""
    draw, seen = random.Random(seed), set()
    while len(seen) < count:
        last = draw.randrange(len(LETTERS))
        y, p, q = BITS[last % 8]
        if chosen(y, p * q):
            letters = [draw.choice(LETTERS) for _ in range(4)] + ["7", LETTERS[last]]
            seen.add(("".join(letters), "yes" if y > 0 else "no", "loud" if p * q > 0 else "soft"))
    return sorted(seen)


def test_the_two_neurons_are_found_and_removed(session):
    """The worst group from none to most (letters that were never seen stay); random neurons change nothing.

    By RelP: the planted neurons dominate the final norm, whose slope attribution patching follows.
    """
    training = [LabelledText(text=t, label=y) for t, y, _ in _texts(120, 0, chosen=lambda y, a: y == a)]
    test = [
        LabelledText(text=t, label=y, attribute=a) for t, y, a in _texts(160, 1, chosen=lambda y, a: True)
    ]
    known = {one.text for one in training}
    command = RemoveSpuriousFeatures(
        training=tuple(training),
        test=tuple(one for one in test if one.text not in known),
        attribute_texts=tuple(
            AttributeText(text=t, attribute=a) for t, _, a in _texts(120, 2, chosen=lambda y, a: True)
        ),
        decision=ProbeHead(penalty=0.1),
        budget=RemovalBudget(exact=2, counts=(1, 2, 5, 20), effect_texts=96, fit_texts=120, random_sets=2),
        estimator=Estimator.RELP,
        resamples=50,
    )
    found = finish(remove_spurious_features(session, command))
    assert found.attributes == ("soft", "loud"), "the head says which attribute goes with which label"
    spurious = [one for one in found.features if one.standing is Standing.SPURIOUS]
    assert {one.feature for one in spurious[:2]} == PLANTED
    assert {one.target.feature for one in found.interventions} == PLANTED, "and nothing else goes"
    assert all(one.exact > 1 for one in spurious[:2]), "ablating one alone moves the decision by a nat"
    worst = {arm.arm: arm.figure("worst_group").value for arm in found.arms}
    assert worst[Arm.ORIGINAL] == 0
    assert worst[Arm.RANDOM] == worst[Arm.RANDOM_REFITTED] == 0
    assert min(worst[Arm.REMOVED], worst[Arm.REFITTED]) > 0.7
    assert found.arm(Arm.ORIGINAL).figure("attribute_agreement").value == 1
    assert found.arm(Arm.REFITTED).figure("attribute_agreement").value < 0.65
    assert found.scores.scr > 0.7
    assert (found.outcome.verdict, found.outcome.ground) == (Verdict.PASS, Ground.TEST)
    assert found.outcome.after.value == pytest.approx(worst[Arm.REFITTED], abs=1e-6)


@pytest.mark.parametrize("names", [{"soft": "a", "loud": "b"}, {"soft": "b", "loud": "a"}])
def test_they_go_without_a_refit_whatever_the_attribute_is_called(session, names):
    """Told by a validation split alone; the alphabet would have them work against the attribute, and stay."""
    training = [LabelledText(text=t, label=y) for t, y, _ in _texts(120, 0, chosen=lambda y, a: y == a)]
    known, splits = {one.text for one in training}, []
    for seed in (1, 5):
        drawn = [one for one in _texts(160, seed, chosen=lambda y, a: True) if one[0] not in known]
        known |= {text for text, _, _ in drawn}
        splits.append(tuple(LabelledText(text=t, label=y, attribute=names[a]) for t, y, a in drawn))
    command = RemoveSpuriousFeatures(
        training=tuple(training),
        test=splits[0],
        validation=splits[1],
        decision=ProbeHead(penalty=0.1),
        refit=False,
        budget=RemovalBudget(exact=0, counts=(1, 2, 5, 20), effect_texts=96, fit_texts=120, random_sets=1),
        estimator=Estimator.RELP,
        resamples=50,
    )
    found = finish(remove_spurious_features(session, command))
    assert found.attributes == (names["soft"], names["loud"])
    assert {one.target.feature for one in found.interventions} >= PLANTED
    assert found.arm(Arm.ORIGINAL).figure("attribute_agreement").value == 1
    assert (found.outcome.verdict, found.outcome.ground) == (Verdict.PASS, Ground.TEST)
