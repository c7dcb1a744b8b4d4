"""A pass without logits ends behind the deepest site that is read, with the numbers of the whole pass."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.interventions import neuron
from tests.unit.engine.test_law6_reverting import hooks
from trephine.domain.errors import NothingMatchedError
from trephine.domain.interventions import Ablate
from trephine.domain.sites import Site, SiteKind
from trephine.engine.runs.rows import RowInput, run_rows

PROMPTS = ("When Mary and John went to the store", " the cat")
KINDS = (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.NEURONS, SiteKind.MLP_OUT, SiteKind.RESID_POST)


def blocks_run(hosted, rows, **options: Any):
    """Run rows; return what they gave and the blocks that were computed."""
    run: list[int] = []
    handles = [
        block.module.register_forward_hook(lambda *_, layer=block.layer: run.append(layer))
        for block in hosted.architecture.blocks
    ]
    try:
        return run_rows(hosted, rows, **options), run
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("before", [False, True])
def test_values_are_those_of_the_whole_pass_and_nothing_above_is_computed(family, layer, before):
    """Padded rows with an edit of the read layer and one above it, which plays no part."""
    hosted = tiny_hosted(family)
    edits = (neuron(layer, 1, Ablate()), neuron(2, 4, Ablate()))
    rows = [RowInput(hosted.encode(prompt), edits) for prompt in PROMPTS]
    options = {
        "reads": [Site(kind=kind, layer=layer) for kind in KINDS],
        "reads_before": before,
        "allow_unmatched": True,
    }
    whole, every = blocks_run(hosted, rows, **options)
    left = hooks(hosted.model)
    ended, run = blocks_run(hosted, rows, keep_last=0, **options)
    assert (every, run) == ([0, 1, 2], list(range(layer + 1)))
    assert hooks(hosted.model) == left
    for expected, found in zip(whole.values, ended.values, strict=True):
        assert found.keys() == expected.keys()
        assert all(found[site].equal(expected[site]) for site in expected)
    assert [tuple(logits.shape) for logits in ended.logits] == [(0, hosted.info.d_vocab)] * 2


def test_an_edit_above_what_is_read_is_not_told_to_have_written():
    """What was not computed was not written: refused, or counted as no position where that may be."""
    hosted = tiny_hosted("llama")
    row = RowInput(hosted.encode(PROMPTS[0]), (neuron(2, 4, Ablate()),))
    reads = [Site(kind=SiteKind.MLP_IN, layer=0)]
    with pytest.raises(NothingMatchedError):
        run_rows(hosted, [row], reads=reads, keep_last=0)
    output = run_rows(hosted, [row], reads=reads, keep_last=0, allow_unmatched=True)
    assert output.applied[0][0].positions == 0
