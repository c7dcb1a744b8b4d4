"""Indexes, views, rankings and contrasts of loaded sets of every kind say what the set's own code says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import tiny_hosted, tiny_tokenizer
from tests.resident_sets import D_SAE, KINDS, NAME, reside, resident_set, sae
from tests.unit.engine.features.test_feature_index import array
from trephine.domain.features import ContrastFeatures, IndexFeatures, RankByToken, ViewDecoder
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.features.handlers import HANDLERS
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import lens_logits
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.rows import RowInput, run_rows

TEXT = " Mary and John went to the store and gave a drink to the cat of Paris"


def run(hosted: HostedModel, command: Any) -> Any:
    return finish(HANDLERS[type(command)](Session(hosted=hosted), command))


def coded(hosted: HostedModel, layer: int, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, support and decoder norms, read with the set's own layer."""
    site = layer_info(hosted, NAME, layer).site_in
    values = run_rows(hosted, [RowInput(ids)], reads=[site], keep_last=1).values[0][site]
    with opened(hosted, NAME, (layer,)) as resident:
        code = resident[layer].encode(values.float())
        return code.activations, code.active, resident[layer].decoder_norms()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_counts_the_support(kind: str, tmp_path: Path):
    """A feature fires where it is in the support, position 0 left out, and is summed with its sign."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    corpus, path = tmp_path / "corpus", tmp_path / "index"
    corpus.write_text(TEXT)
    info = run(hosted, IndexFeatures(replacement=NAME, corpus=str(corpus), path=str(path)))
    assert (info.replacement, info.content_hash, info.features) == (NAME, NAME, 3 * D_SAE)
    for layer in range(3):
        activations, active, _ = coded(hosted, layer, hosted.encode(TEXT))
        expected = torch.where(active, activations, 0.0)[1:].double().sum(0)
        assert array(path, layer, "counts", "<i8").tolist() == active[1:].sum(0).tolist()
        assert array(path, layer, "sums", "<f8") == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_views_rankings_and_contrasts_agree_with_the_set(kind: str):
    """The best feature per token contributes most; neighbours have the largest cosines; maxima are right."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    ranked = run(hosted, RankByToken(text=TEXT, replacement=NAME, count=1))
    codes = [coded(hosted, layer, hosted.encode(TEXT)) for layer in range(3)]
    for at in ranked.positions[1:]:
        best = max(float((codes[n][0][at.position].abs() * codes[n][2]).max()) for n in range(3))
        assert [size for _, _, size in at.features] == pytest.approx([best] if best > 0 else [], rel=1e-4)
    feature = FeatureRef(replacement=NAME, layer=1, index=3)
    view = run(hosted, ViewDecoder(feature=feature, neighbours=5, tokens=3))
    with opened(hosted, NAME, (1,)) as resident:
        layer = resident[1]
        joined = torch.cat([layer.decoders(range(D_SAE), site) for site in layer.info.sites_out], dim=1)
        written = sum(layer.decoders((3,), site)[0] for site in layer.info.sites_out)
    cosines = torch.nn.functional.cosine_similarity(joined, joined[3:4])
    assert [value for _, value in view.neighbours] == pytest.approx(
        sorted(cosines.tolist(), reverse=True)[1:6], abs=1e-5
    )
    logits = lens_logits(hosted.architecture, written[None])[0][: len(tiny_tokenizer())]
    assert [value for _, value in view.promotes] == pytest.approx(logits.topk(3).values.tolist(), rel=1e-3)
    texts = (TEXT, " the cat went to Paris", "When John gave Mary a drink", " France is the capital of Paris")
    found = run(
        hosted,
        ContrastFeatures(first=texts[:2], second=texts[2:], replacement=NAME, permutations=99, count=5),
    )
    for one in found.features:
        tops = [
            float(coded(hosted, one.feature.layer, hosted.encode(text))[0][1:, one.feature.index].max())
            for text in texts
        ]
        assert one.mean_first - one.mean_second == pytest.approx(one.mean_difference, abs=1e-6)
        assert (one.mean_first, one.mean_second) == pytest.approx(
            (sum(tops[:2]) / 2, sum(tops[2:]) / 2), abs=1e-4
        )


def test_contexts_begin_as_the_set_says(tmp_path: Path):
    """A set that wants a first token gets it in front of every context, and the index says so."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "relu")
    known = hosted.replacements[NAME]
    admission = replace(known.admitted.admission, begins_with="<|end|>")
    admitted = replace(known.admitted, admission=admission, degraded=True)
    hosted.replacements[NAME] = replace(known, admitted=admitted)
    corpus, path = tmp_path / "corpus", tmp_path / "index"
    corpus.write_text(TEXT)
    info = run(hosted, IndexFeatures(replacement=NAME, corpus=str(corpus), path=str(path), context_tokens=8))
    assert info.begins_with == "<|end|>"
    assert info.degraded
    length = len(hosted.encode(TEXT))
    assert info.contexts == -(-length // 7)
    assert info.tokens == length
    _, active, _ = coded(hosted, 0, [0, *hosted.encode(TEXT)[:7]])
    assert (array(path, 0, "counts", "<i8") >= np.asarray(active[1:].sum(0))).all()


@pytest.mark.parametrize(
    ("kind", "in_stream"), [(SiteKind.ATTN_Z, True), (SiteKind.RESID_MID, True), (SiteKind.MLP_IN, False)]
)
def test_the_lens_reads_what_reaches_the_stream(kind: SiteKind, in_stream: bool):
    """At `attn_z` through the output projection; what is no part of the stream has no lens and says so."""
    hosted = tiny_hosted("llama")
    reside(hosted, [sae(hosted, Site(kind=kind, layer=1))])
    view = run(hosted, ViewDecoder(feature=FeatureRef(replacement=NAME, layer=1, index=2), tokens=3))
    assert (len(view.promotes) == 3) is in_stream
    assert any("no logit lens" in caveat for caveat in view.caveats) is not in_stream
    if kind is SiteKind.ATTN_Z:
        site = Site(kind=kind, layer=1)
        with opened(hosted, NAME, (1,)) as resident:
            decoder = resident[1].decoders((2,), site)[0]
        written = hosted.architecture.blocks[1].attention.out.weight @ decoder
        logits = lens_logits(hosted.architecture, written[None])[0][: len(tiny_tokenizer())]
        assert [value for _, value in view.promotes] == pytest.approx(
            logits.topk(3).values.tolist(), rel=1e-3
        )
