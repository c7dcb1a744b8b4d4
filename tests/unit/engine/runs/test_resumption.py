"""A pass that starts above untouched layers gives the numbers of the whole pass, and leaves no trace."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.interventions import at, direction, neuron, whole
from tests.unit.engine.test_law6_reverting import hooks
from trephine.domain.interventions import Ablate, Add, Mode, PatternMode, ProjectOut, Scale, SetTo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.edits.effects import measured_prompt
from trephine.engine.models.quanta import finish
from trephine.engine.runs.resumption import clean_run, resumed, stream_bytes
from trephine.engine.runs.rows import RowInput, run_rows

PROMPT = "When Mary and John went to the store"


def plans(hosted):
    """Interventions whose first layer is 0, 1, 2, and at every kind of site of the last layer."""
    ramp = [float(i % 5 - 2) for i in range(hosted.info.d_model)]
    return [
        (neuron(0, 1, Ablate()), neuron(2, 4, SetTo(value=2.0))),
        (neuron(1, 3, Scale(factor=-2.0), selector=at(2, 5)), neuron(2, 4, Ablate())),
        (neuron(2, 5, Add(amount=3.0)),),
        (direction(SiteKind.RESID_PRE, 2, ramp, Add(amount=1.0)),),
        (direction(SiteKind.RESID_POST, 1, ramp, ProjectOut()),),
        (whole(SiteKind.ATTN_OUT, 2, Scale(factor=0.3)),),
        (whole(SiteKind.EMBED, 0, Scale(factor=1.3)),),
        (),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_is_bit_identical(family):
    """The stream of the clean run is what the pass itself would have computed."""
    hosted = tiny_hosted(family)
    ids = hosted.encode(PROMPT)
    clean = clean_run(hosted.model, hosted.architecture, ids)
    for plan in plans(hosted):
        row = RowInput(ids, plan)
        expected, found = run_rows(hosted, [row]), run_rows(hosted, [row], clean=clean)
        assert found.logits[0].equal(expected.logits[0])
        assert found.applied == expected.applied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_the_whole_pass_gives(family):
    """Rows start together, above the lowest layer of any; a write in place stays in its row (law 7)."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    ids = hosted.encode(PROMPT)
    clean = clean_run(hosted.model, hosted.architecture, ids)
    rows = [RowInput(ids, plan) for plan in plans(hosted)[2:6]]
    expected, found = run_rows(hosted, rows), run_rows(hosted, rows, clean=clean)
    for a, b in zip(found.logits, expected.logits, strict=True):
        # Eager attention's softmax is float32 whatever the model is.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_below_are_not_computed_and_nothing_is_left(family):
    """Their MLPs are not called; afterwards, also after an error, the model is as it was."""
    hosted = tiny_hosted(family)
    blocks = hosted.architecture.blocks
    clean = clean_run(hosted.model, hosted.architecture, hosted.encode(PROMPT))
    before, called = hooks(hosted.model), []
    handles = [
        block.mlp.down.register_forward_pre_hook(lambda *_, layer=block.layer: called.append(layer))
        for block in blocks
    ]
    try:
        run_rows(hosted, [RowInput(clean.ids, (neuron(2, 1, Ablate()),))], clean=clean)
    finally:
        for handle in handles:
            handle.remove()
    assert called == [2]
    with pytest.raises(KeyError), resumed(hosted.architecture, clean, 2):
        raise KeyError
    assert all("forward" not in block.module.__dict__ for block in blocks)
    assert hooks(hosted.model) == before


def test_reading_below_starts_there():
    """A site that is read is computed."""
    hosted = tiny_hosted("llama")
    ids, site = hosted.encode(PROMPT), Site(kind=SiteKind.MLP_OUT, layer=1)
    clean = clean_run(hosted.model, hosted.architecture, ids)
    row = RowInput(ids, (neuron(2, 1, Ablate()),))
    expected, found = (
        run_rows(hosted, [row], reads=[site]),
        run_rows(hosted, [row], reads=[site], clean=clean),
    )
    assert found.values[0][site].equal(expected.values[0][site])


def test_patterns_are_those_of_the_whole_pass():
    """Recorded or frozen patterns need every layer."""
    hosted = tiny_hosted("llama")
    ids = hosted.encode(PROMPT)
    clean = clean_run(hosted.model, hosted.architecture, ids)
    row = RowInput(ids, (neuron(2, 1, SetTo(value=3.0), mode=Mode(patterns=PatternMode.FROZEN)),))
    expected = run_rows(hosted, [row], record_patterns=True)
    found = run_rows(hosted, [row], record_patterns=True, clean=clean)
    assert sorted(found.patterns[0]) == sorted(expected.patterns[0]) == [0, 1, 2]
    assert found.logits[0].equal(expected.logits[0])


def test_another_prompt_is_refused():
    """The stream of one prompt is no other's."""
    hosted = tiny_hosted("llama")
    clean = clean_run(hosted.model, hosted.architecture, hosted.encode(PROMPT))
    with pytest.raises(ValueError, match="clean run"):
        run_rows(hosted, [RowInput(hosted.encode(PROMPT + " and")), RowInput(clean.ids)], clean=clean)


def test_a_long_prompt_is_run_in_full(monkeypatch):
    """Streams that are too large are not kept; the values are the same."""
    hosted = tiny_hosted("llama")
    measured = measured_prompt(hosted, PROMPT, " Mary", " John")
    short = finish(measured.values(plans(hosted)))
    clean = clean_run(hosted.model, hosted.architecture, measured.ids)
    size = sum(stream.numel() * stream.element_size() for stream in clean.streams)
    assert stream_bytes(hosted.architecture, len(measured.ids)) == size
    monkeypatch.setattr("trephine.engine.edits.effects._CLEAN_BYTES", size - 1)
    monkeypatch.setattr("trephine.engine.edits.effects.clean_run", None)
    assert finish(measured.values(plans(hosted))) == pytest.approx(short, abs=1e-5)
