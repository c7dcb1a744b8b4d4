"""Whatever rests on a set that failed admission says so, in the same words, and why."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import tiny_hosted
from tests.dataset_examples import request
from tests.resident_sets import NAME, degrade, resident_set
from tests.unit.engine.edit_evaluation.test_edit_evaluation import FEW, RETAIN, TARGET
from tests.unit.engine.exporting import edit_of
from tests.unit.engine.spurious.test_removal import GIVEN
from trephine.domain.ablation import LogitTarget
from trephine.domain.attention import TraceAttention
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.edit_evaluation import EvaluateEdit
from trephine.domain.edits import EditSet
from trephine.domain.interventions import FeatureTarget, Intervention, Scale
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_removal import RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.verification import Substitute, VerificationOptions, VerifyCircuit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.process.handlers import HANDLERS

WHY = "layer 1: FVU 1.31 is not below 1"
SAID = f"The set {NAME} failed admission and was accepted all the same: {WHY}"
PROMPT = "When Mary went to the store John gave a drink to"
QUICK = VerificationOptions(
    nodes=100,
    groups=4,
    depth_nodes=4,
    adversary_steps=1,
    bootstrap=100,
    control=False,
    substitutes=(Substitute.ZERO,),
)
BRIEF = RemovalBudget(candidates=64, exact=1, counts=(1,), effect_texts=16, fit_texts=32, random_sets=1)


@cache
def hosted() -> HostedModel:
    """A tiny model with a degraded set."""
    torch.set_num_threads(1)
    model = tiny_hosted("llama")
    resident_set(model, "jumprelu")
    degrade(model, WHY)
    return model


def run(command: Any) -> Any:
    """Run a command as the engine does."""
    return finish(HANDLERS[type(command)](Session(hosted=hosted()), command))


@cache
def circuit(replacement: str) -> Circuit:
    """A circuit over the set or over neurons."""
    target = LogitTarget(token=" Mary", against=" John")
    command = DiscoverCircuit(
        prompt=PROMPT, target=target, replacement=replacement, max_feature_nodes=100, verify_nodes=0
    )
    found: Circuit = run(command)
    return found


def edges(replacement: str) -> ExplainEdges:
    """Explain the first edge of a circuit into a feature."""
    found = circuit(replacement)
    columns = [
        np.frombuffer(one.data, one.dtype).tolist() for one in (found.edges.source, found.edges.target)
    ]
    ends = list(zip(*columns, strict=True))
    into = [end for end in ends if found.nodes[end[1]].kind is NodeKind.FEATURE]
    return ExplainEdges(circuit=found, edges=tuple(into[:1]))


def verification(replacement: str) -> VerifyCircuit:
    """Verify a circuit, briefly."""
    found = circuit(replacement)
    kept = tuple(n for n, node in enumerate(found.nodes) if node.kind is NodeKind.FEATURE)
    return VerifyCircuit(circuit=found, kept=kept, options=QUICK)


def evaluation(replacement: str) -> EvaluateEdit:
    """Evaluate an edit of one feature."""
    target = FeatureTarget(feature=FeatureRef(replacement=replacement, layer=1, index=3))
    sets = () if replacement == NEURONS else (EditSet(name=NAME, content_hash=NAME),)
    edit = edit_of(hosted(), Intervention(target=target, operation=Scale(factor=3.0)), sets=sets)
    return EvaluateEdit(edit=edit, sets=(TARGET, RETAIN), controls=FEW, prompting=None)


def removal(replacement: str) -> RemoveSpuriousFeatures:
    """Remove spurious features, on few texts."""
    return RemoveSpuriousFeatures(**{**GIVEN, "replacement": replacement, "budget": BRIEF})


def trace(replacement: str) -> TraceAttention:
    """Trace one attention score."""
    return TraceAttention(prompt=PROMPT, layer=1, head=1, replacement=replacement)


@pytest.mark.parametrize("replacement", [NAME, NEURONS])
@pytest.mark.parametrize("asked", [edges, verification, evaluation, removal, trace])
def test_results_say_that_their_set_failed_admission(asked: Any, replacement: str):
    """Once, in the same words everywhere; results that rest on neurons beside it do not."""
    assert list(run(asked(replacement)).caveats).count(SAID) == (replacement == NAME)


@pytest.mark.parametrize("replacement", [NAME, NEURONS])
def test_circuits_say_it_too(replacement: str):
    """Of one prompt and of a data set."""
    assert list(circuit(replacement).caveats).count(SAID) == (replacement == NAME)
    found = run(request(8, replacement=replacement))
    assert list(found.caveats).count(SAID) == (replacement == NAME)
