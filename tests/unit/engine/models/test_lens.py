"""What the logit lens lists are tokens."""

from __future__ import annotations

import torch

from tests.builders import tiny_hosted, tiny_tokenizer
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.features import ViewDecoder
from trephine.domain.sites import FeatureRef
from trephine.domain.targets import TokenLogits
from trephine.engine.features.handlers import HANDLERS
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

TEXT = " Mary and John went to the store"


def test_rows_that_are_of_no_token_are_not_promoted():
    """Neither nodes of circuits nor views of features list rows by which embeddings are padded."""
    hosted = tiny_hosted("llama")
    with torch.no_grad():  # the padding ranks first at one end or the other, whatever is read
        hosted.architecture.W_U[len(tiny_tokenizer()) :] *= 100
    look = ViewDecoder(feature=FeatureRef(layer=1, index=5), tokens=4)
    view = finish(HANDLERS[ViewDecoder](Session(hosted=hosted), look))
    assert len(view.promotes) == len(view.suppresses) == 4
    assert all(token.raw for token, _ in (*view.promotes, *view.suppresses))
    command = DiscoverCircuit(prompt=TEXT, target=TokenLogits(tokens=(" Paris",)), max_feature_nodes=8)
    features = [n for n in finish(discover_circuit(hosted, command)).nodes if n.kind is NodeKind.FEATURE]
    assert features
    for node in features:
        assert len(node.promotes) == len(node.suppresses) == 5
        assert not any(word.startswith("<unused") for word in (*node.promotes, *node.suppresses))
