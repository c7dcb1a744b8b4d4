"""What the panel of a circuit's page is given."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.pages.circuits import hostile_circuit
from tests.unit.pages.test_feature_page import described
from trephine.app.circuits.circuit_cards import known_features
from trephine.app.features.features import Question
from trephine.domain.circuits import NodeKind
from trephine.domain.errors import ModelNotReadyError, ParentChangedError, ReplacementNotFoundError
from trephine.domain.features import FeatureDescription
from trephine.domain.sites import FeatureRef


class Features:
    """Knows one set under its full name; another has gone."""

    async def describe(
        self, question: Question, layer: int, index: int, *, tokens: int, neighbours: int
    ) -> FeatureDescription:
        if question.replacement == "gone":
            raise ReplacementNotFoundError("there is no set gone", name="replacements/gone")
        node = next(one for one in hostile_circuit().nodes if (one.layer, one.feature) == (layer, index))
        return described(node)


class NoModel:
    async def describe(self, *asked: object, **how: object) -> FeatureDescription:
        raise ModelNotReadyError("models/tiny is loading", name="models/tiny")


async def test_what_can_be_described_is_under_the_names_of_the_nodes():
    """A set that has gone costs its cards alone; the others carry the name that they were asked by."""
    circuit = hostile_circuit()
    nodes = [node for node in circuit.nodes if node.kind is NodeKind.FEATURE]
    wanted = [FeatureRef(replacement="alias", layer=node.layer, index=node.feature) for node in nodes]
    lost = FeatureRef(replacement="gone", layer=0, index=7)
    known = await known_features(Features(), circuit, [lost, *reversed(wanted)])
    assert [one.view.feature for one in known] == wanted


async def test_a_model_that_is_not_there_is_no_reason_to_fail():
    """A page is drawn without cards then."""
    wanted = [FeatureRef(layer=0, index=7)]
    assert await known_features(NoModel(), hostile_circuit(), wanted) == ()


class Strict(Features):
    """Knows features of one content alone."""

    content = "c" * 64

    async def describe(self, question: Question, *asked: int, **how: int) -> FeatureDescription:
        if question.content_hash not in ("", self.content):
            raise ParentChangedError("another set of that name")
        return await super().describe(question, *asked, **how)


async def test_features_of_another_set_of_the_same_name_are_not_described():
    """A panel says nothing rather than what another feature means; what does not say its set is described."""
    circuit = replace(hostile_circuit(), replacement="sae", weight_hash="w" * 64)
    node = next(node for node in circuit.nodes if node.kind is NodeKind.FEATURE)
    sae, neuron = (
        FeatureRef(replacement=name, layer=node.layer, index=node.feature) for name in ("sae", "neurons")
    )
    for content, told in (("c" * 64, [sae]), ("d" * 64, []), ("", [sae])):
        known = await known_features(Strict(), replace(circuit, set_hash=content), [sae, neuron])
        assert [one.view.feature for one in known] == told
    known = await known_features(Strict(), replace(circuit, weight_hash="c" * 64), [neuron])
    assert [one.view.feature for one in known] == [neuron]
