"""Predicted times beside processor times that were measured on SmolLM2, by `benchmarks.prediction_costs`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.spurious_texts import ambiguous, attribute_texts, balanced
from tests.unit.app.circuits.test_circuit_costs import transcoders
from tests.unit.app.house import model_info, small_circuit
from trephine.app.jobs.costs import predict, predict_beside
from trephine.app.spurious.spurious_costs import removal_seconds
from trephine.domain.edit_evaluation import (
    ChoiceItem,
    EvaluateEdit,
    EvaluationSet,
    FeatureControls,
    PromptingOptions,
    SetRole,
)
from trephine.domain.edits import Edit
from trephine.domain.interventions import Ablate, Add, FeatureTarget, Intervention, Operation
from trephine.domain.replacements import Dictionary, EvaluateReplacementSet
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_checks import CheckedSpuriousRemoval
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.verification import Substitute, VerificationOptions, VerifyCircuit

INFO = replace(
    model_info("tiny"),
    n_layers=30,
    n_heads=9,
    d_model=576,
    d_mlp=1536,
    d_vocab=49_152,
    n_parameters=134_515_008,
    memory_bytes=538_060_032,
    context_length=8192,
)
SETS = {"tc": transcoders()}
BRIEF: dict[str, Any] = {
    "groups": 8, "depth_nodes": 10, "adversary_steps": 2, "substitutes": (Substitute.ZERO,), "control": False,
}  # fmt: skip
PLAIN: dict[str, Any] = {"context_tokens": 64, "controls": (), "perturbations": 0}
FEW = FeatureControls(sets=19, wrong_layer_sets=4, tokens=64)
SMALL = RemovalBudget(candidates=256, exact=4, counts=(1, 10), fit_texts=48, effect_texts=16, random_sets=1)


def near(predicted: float, measured: float) -> None:
    """Hold a prediction to half and twice of what was measured."""
    assert 0.5 <= predicted / measured <= 2


@pytest.mark.parametrize(
    ("features", "tokens", "options", "measured"),
    [
        (NEURONS, 6, {}, 15.2),
        (NEURONS, 28, {}, 30.4),
        (NEURONS, 28, {"nodes": 300, "depth_nodes": 100}, 53.4),
        (NEURONS, 105, {**BRIEF, "nodes": 100}, 40.0),
        ("tc", 6, {}, 70.1),
    ],
)
def test_verifications(features: str, tokens: int, options: dict[str, Any], measured: float):
    """Passes, ranks of all single nodes in every resample, and a second examination of a set's control."""
    circuit = small_circuit()
    circuit = replace(circuit, tokens=circuit.tokens * tokens, replacement=features)
    command = VerifyCircuit(circuit=circuit, kept=(0,), options=VerificationOptions(**options))
    near(predict_beside(command, INFO, SETS).seconds, measured)


ITEM = ChoiceItem(
    prompt="When Mary and John went to the store, John gave a drink to", choices=(" Mary", " John"), answer=0
)


def _edit(operation: Operation) -> Edit:
    target = FeatureTarget(feature=FeatureRef(layer=12, index=100))
    return Edit(
        name="quiet", version=1, content_hash="c", reason="", author="", evidence=(), model="smollm2",
        interventions=(Intervention(target=target, operation=operation),), weight_hash="w", create_time="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("items", "texts", "controls", "measured"),
    [
        (20, 0, FeatureControls(), 164.9),
        (20, 0, FEW, 34.5),
        (20, 16, FEW, 33.2),
        (80, 8, FeatureControls(sets=19, wrong_layer_sets=0, retain_tokens=0), 39.3),
    ],
)
def test_evaluations_of_edits(items: int, texts: int, controls: FeatureControls, measured: float):
    """Controls above the edit's layer, distributions that are compared, and passes of few tokens."""
    sets = [EvaluationSet(name="items", role=SetRole.TARGET, items=(ITEM,) * items)]
    if texts:
        sets.append(EvaluationSet(name="texts", role=SetRole.RETAIN, texts=("river " * 58,) * texts))
    command = EvaluateEdit(edit=_edit(Ablate()), sets=tuple(sets), controls=controls)
    near(predict(command, INFO).seconds, measured)


def test_prompts_are_counted_where_they_are_tried():
    """An edit that only removes tries none, unless that is asked for."""
    sets = (EvaluationSet(name="items", role=SetRole.TARGET, items=(ITEM,) * 20),)
    removing, steering = (
        EvaluateEdit(edit=_edit(operation), sets=sets, controls=FEW)
        for operation in (Ablate(), Add(amount=4))
    )
    asked = replace(removing, prompting=PromptingOptions(always=True))
    plain, prompted, wanted = (predict(one, INFO) for one in (removing, steering, asked))
    assert prompted == wanted
    assert prompted.tokens > plain.tokens
    assert prompted.seconds > plain.seconds
    assert predict(replace(steering, prompting=None), INFO) == plain


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"layers": (3, 12), "max_contexts": 4, **PLAIN}, 10.5),
        ({"max_contexts": 2, **PLAIN}, 30.4),
        ({"layers": (3, 12), "max_contexts": 2, **PLAIN, "perturbations": 8}, 8.0),
        ({"layers": (3, 12), "max_contexts": 2, **PLAIN, "controls": (Dictionary.RANDOM,)}, 48.5),
        ({"layers": (3, 12), "max_contexts": 2, **PLAIN, "controls": (Dictionary.FROZEN_DECODER,)}, 69.8),
        ({"layers": (3, 12), "max_contexts": 2, **PLAIN, "controls": (Dictionary.FROZEN_ENCODER,)}, 56.8),
    ],
)
def test_evaluations_of_sets(options: dict[str, Any], measured: float):
    """Passes, distributions, and controls that are fitted in every layer."""
    command = EvaluateReplacementSet(name="tc", text="", text_name="", **options)
    near(predict_beside(command, INFO, SETS).seconds, measured)


@pytest.mark.parametrize(
    ("decision", "fit_texts", "tokens", "measured"),
    [(ProbeHead(layer=2, pooling=Pooling.MEAN), 48, 35, 11.9), (ProbeHead(), 48, 35, 111.8)],
)
def test_removals(decision: Any, fit_texts: int, tokens: int, measured: float):
    """Texts as often as they are pooled, up to the head's layer, and what trains and judges."""
    command = RemoveSpuriousFeatures(
        training=ambiguous(24 if fit_texts == 48 else 60),
        test=balanced(4 if fit_texts == 48 else 16),
        attribute_texts=attribute_texts(8),
        decision=decision,
        refit=isinstance(decision, ProbeHead),
        budget=replace(SMALL, fit_texts=fit_texts),
    )
    texts = len(command.training) + len(command.test) + len(command.attribute_texts)
    layers = 30 if getattr(decision, "layer", None) is None else decision.layer + 1
    checked = CheckedSpuriousRemoval(
        features=layers * 1536, texts=texts, tokens=texts * tokens, longest=2 * tokens
    )
    near(removal_seconds(command, INFO, checked), measured)


@pytest.mark.parametrize(
    ("twinned", "width", "least", "most"), [(True, 2048, 120, 500), (False, 2048, 0, 15), (True, 576, 2, 15)]
)
def test_heads_that_are_settled(twinned: bool, width: int, least: float, most: float):
    """Where twins tell, heads without the attribute are trained again without every part: long if wide.

    One training by all shrinkages was 0.08 s at a width of 576 and 2.4 s at 2,048, of 600 texts.
    """
    training = tuple(replace(one, twin=f"{one.text} too" if twinned else None) for one in ambiguous(60))
    command = RemoveSpuriousFeatures(
        training=training,
        test=balanced(4),
        attribute_texts=() if twinned else attribute_texts(8),
        decision=ProbeHead(layer=2, pooling=Pooling.MEAN),
        budget=SMALL,
    )
    checked = CheckedSpuriousRemoval(features=3 * 1536, texts=100, tokens=3500, longest=70)
    info = replace(INFO, d_model=width)
    with_heads, without = (
        removal_seconds(replace(command, erase=erase), info, checked) for erase in (True, False)
    )
    assert least <= with_heads - without <= most
