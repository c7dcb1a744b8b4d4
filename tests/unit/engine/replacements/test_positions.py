"""Tokens that a set was never trained on are no part of its figures, and are not spliced."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.replacement_sets import random_text, write_transcoders
from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import (
    Dictionary,
    EvaluateReplacementSet,
    LoadReplacementSet,
    ReplacementSource,
)
from trephine.domain.sites import NEURONS
from trephine.engine.admission.evaluation import evaluate_replacement_set, measure
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.admission.splice import LayerSource, loaded_source
from trephine.engine.admission.verdicts import Verdicts
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.formats.saelens_config import parse_config
from trephine.engine.replacements.positions import Scope, TrainedTokens


@pytest.fixture(scope="module")
def hosted():
    return tiny_hosted("llama")


def parsed(tmp_path, **metadata: Any) -> TrainedTokens:
    config = {
        "architecture": "standard",
        "d_in": 4,
        "d_sae": 8,
        "metadata": {"hook_name": "blocks.0.hook_resid_post", **metadata},
    }
    return parse_config(tmp_path, config).trained_on


def loaded(hosted, folder, **metadata: Any):
    """Load a set whose layers say `metadata` of their training."""
    write_transcoders(hosted, folder, layers=(0, 1))
    for path in folder.glob("*/cfg.json"):
        config = json.loads(path.read_text())
        config["metadata"] |= metadata
        path.write_text(json.dumps(config))
    session = Session(hosted=hosted)
    hosted.replacements.pop("tc", None)
    source = ReplacementSource(name="tc", folder=str(folder))
    return session, finish(load_replacement_set(session, LoadReplacementSet(source=source)))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, TrainedTokens()),
        ({"exclude_special_tokens": False, "seqpos_slice": [None]}, TrainedTokens()),
        ({"exclude_special_tokens": True}, TrainedTokens(without_special=True)),
        ({"exclude_special_tokens": [7, 2, 7]}, TrainedTokens(without=(2, 7))),
        ({"seqpos_slice": [5], "context_size": 16}, TrainedTokens(positions=range(5))),
        ({"seqpos_slice": [1, -4], "context_size": 16}, TrainedTokens(positions=range(1, 12))),
        ({"seqpos_slice": [2, 9, 3]}, TrainedTokens(positions=range(2, 9, 3))),
    ],
)
def test_the_sets_own_word_is_read(metadata, expected, tmp_path):
    """Trap: SAELens' metadata says what was left out of training, and loaders drop it."""
    assert parsed(tmp_path, **metadata) == expected


@pytest.mark.parametrize(
    ("metadata", "error", "says"),
    [
        ({"seqpos_slice": [0, -4]}, UnsupportedReplacementError, "context_size"),
        ({"seqpos_slice": [9, 3]}, BrokenReplacementError, "no position"),
        ({"seqpos_slice": [1, 2, 0]}, BrokenReplacementError, "seqpos_slice"),
        ({"seqpos_slice": "all"}, BrokenReplacementError, "seqpos_slice"),
        ({"exclude_special_tokens": "yes"}, BrokenReplacementError, "true, false or a list"),
        ({"exclude_special_tokens": [1, "a"]}, BrokenReplacementError, "true, false or a list"),
    ],
)
def test_what_cannot_be_honoured_is_refused(metadata, error, says, tmp_path):
    """Nothing is guessed, and nothing is dropped."""
    with pytest.raises(error, match=says):
        parsed(tmp_path, **metadata)


def test_places_leave_out_what_was_left_out(hosted):
    """Position 0, tokens and positions; special tokens are the tokenizer's."""
    special = hosted.tokenizer.all_special_ids[0]
    ids = (9, 8, special, 7, 8, 9)
    assert Scope().places(ids) == [1, 2, 3, 4, 5]
    assert TrainedTokens(without_special=True).scope(hosted).places(ids) == [1, 3, 4, 5]
    assert TrainedTokens(without=(8,), positions=range(0, 5)).scope(hosted).places(ids) == [2, 3]
    assert TrainedTokens(without=(8,)).scope(hosted).counted([ids, (8, 8, 9)]).tolist() == [
        *(False, False, True, True, False, True),
        *(False, False, True),
    ]


def test_layers_that_disagree_are_two_sets(hosted, tmp_path):
    """One rule holds for a whole set."""
    loaded(hosted, tmp_path, seqpos_slice=[1, 50])
    path = tmp_path / "layer_1" / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["seqpos_slice"] = None
    path.write_text(json.dumps(config))
    source = ReplacementSource(name="other", folder=str(tmp_path))
    with pytest.raises(BrokenReplacementError, match="two sets"):
        finish(load_replacement_set(Session(hosted=hosted), LoadReplacementSet(source=source)))


def test_admission_leaves_them_out_and_says_so(hosted, tmp_path):
    """Figures are those of the positions that count; with none of them nothing can be admitted."""
    _, whole = loaded(hosted, tmp_path / "whole")
    _, part = loaded(hosted, tmp_path / "part", seqpos_slice=[1, 9], exclude_special_tokens=True)
    assert "seqpos_slice" in part.admission.why
    assert "exclude_special_tokens" in part.admission.why
    assert "seqpos_slice" not in whole.admission.why
    assert part.admission.layers[0].l0 != whole.admission.layers[0].l0
    assert part.admission.layers[0].l0_first == whole.admission.layers[0].l0_first
    with pytest.raises(UnsupportedReplacementError, match="128 tokens"):
        loaded(hosted, tmp_path / "none", seqpos_slice=[500, 600])


class Spoilt:
    """A layer that writes nonsense from position 10 on."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def decode(self, code: Any) -> Any:
        written = {site: value.clone() for site, value in self._layer.decode(code).items()}
        for value in written.values():
            value[..., 10:, :] += 100.0
        return written


def test_an_evaluation_counts_and_splices_what_was_trained_on(hosted):
    """A perfect dictionary that fails where it was never trained is still perfect; a whole count tells."""
    neurons = loaded_source(hosted, NEURONS, range(3))

    @contextmanager
    def opener(wanted):
        with neurons.open(wanted) as layers:
            yield {layer: Spoilt(layers[layer]) for layer in wanted}

    source = LayerSource(infos=neurons.infos, open=opener)
    contexts = [tuple(row) for row in random_text(hosted, rows=3, length=24, seed=2).tolist()]
    scores = []
    for scope in (Scope(positions=range(0, 10)), Scope()):
        measured = finish(measure(hosted, {Dictionary.GIVEN: source}, contexts, alone=(), scope=scope))
        (spliced,) = Verdicts(measured, source, samples=100, seed=0).spliced(())
        scores.append((spliced, measured))
    (scoped, counts), (whole, _) = scores
    assert counts.positions == [9, 9, 9]
    assert scoped.ce_score.value == pytest.approx(1.0, abs=1e-4)
    assert scoped.error_share.value < 1e-4
    assert scoped.ce_plain.value != whole.ce_plain.value
    assert whole.error_share.value > 0.1
    assert whole.kl_score.value < 0.9


def test_what_follows_is_run_beside_plain_activations(hosted):
    """Tokens that are not spliced keep the plain run's activations wherever they stand."""
    neurons = loaded_source(hosted, NEURONS, range(3))

    @contextmanager
    def opener(wanted):
        with neurons.open(wanted) as layers:
            yield {layer: Spoilt(layers[layer]) for layer in wanted}

    source = LayerSource(infos=neurons.infos, open=opener)
    contexts = [tuple(row) for row in random_text(hosted, rows=2, length=24, seed=3).tolist()]
    scope = Scope(
        positions=range(0, 24, 1), without=frozenset(contexts[0][10:]) | frozenset(contexts[1][10:])
    )
    measured = finish(measure(hosted, {Dictionary.GIVEN: source}, contexts, alone=(), scope=scope))
    (spliced,) = Verdicts(measured, source, samples=100, seed=0).spliced(())
    assert spliced.kl.value < 1e-6


def test_an_evaluation_says_what_it_left_out(hosted, tmp_path):
    """The whole way from the file: fewer positions, and a caveat; controls are fitted on the same."""
    session, _ = loaded(hosted, tmp_path, seqpos_slice=[1, 12])
    text = hosted.decode(random_text(hosted, rows=24, length=32, seed=5).flatten().tolist())
    command = EvaluateReplacementSet(
        name="tc",
        text=text,
        text_name="made up",
        context_tokens=32,
        max_contexts=3,
        layers=(0,),
        controls=(Dictionary.RANDOM,),
        bootstrap=100,
        perturbations=4,
    )
    found = finish(evaluate_replacement_set(session, command))
    assert any("positions 1 to 11" in caveat for caveat in found.caveats)
    assert found.depths
    assert all(score.fvu.value > 0 for score in found.layers)
