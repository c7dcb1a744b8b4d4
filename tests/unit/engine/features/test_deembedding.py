"""De-embeddings: what a token's bare embedding puts into a feature, against the model's own modules."""

from __future__ import annotations

import pytest
import torch

from tests.builders import D_VOCAB, FAMILIES, tiny_hosted, tiny_tokenizer
from tests.resident_sets import NAME, reside, resident_set, sae
from trephine.domain.features import ViewDecoder
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.features.deembedding import feature_reads
from trephine.engine.features.handlers import HANDLERS
from trephine.engine.models.lens import extreme_tokens
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened


def view(hosted, feature):
    """What is known of a feature from weights alone."""
    command = ViewDecoder(feature=feature, tokens=4, neighbours=0)
    return finish(HANDLERS[ViewDecoder](Session(hosted=hosted), command))


def check(found, scores):
    """Both ends are those of the scores of tokens, in order: embeddings are padded beyond the tokenizer."""
    scores = scores[: len(tiny_tokenizer())]
    assert [token.id for token, _ in found.excited_by] == scores.topk(4).indices.tolist()
    assert [token.id for token, _ in found.inhibited_by] == (-scores).topk(4).indices.tolist()
    assert [value for _, value in found.excited_by] == pytest.approx(scores.topk(4).values.tolist(), rel=1e-3)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_what_the_mlp_computes_of_embeddings(family):
    """The model's own norm and MLP on every token's embedding; gates, biases, Gemma's scale included."""
    hosted = tiny_hosted(family)
    block, seen = hosted.architecture.blocks[1], []
    handle = block.mlp.down.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    block.mlp.module(block.mlp_norm.module(hosted.architecture.embedding(torch.arange(D_VOCAB))))
    handle.remove()
    check(view(hosted, FeatureRef(layer=1, index=5)), seen[0][:, 5])


@pytest.mark.parametrize("family", FAMILIES)
def test_transcoders_read_through_the_norm(family):
    """Encoder times the normed embedding, less what the norm's bias adds to every token alike."""
    hosted = tiny_hosted(family)
    resident_set(hosted, "jumprelu")
    norm = hosted.architecture.blocks[2].mlp_norm
    normed = norm.module(hosted.architecture.embedding(torch.arange(D_VOCAB)))
    with opened(hosted, NAME, [2]) as resident:
        encoder = resident[2].encoders([7])[0]
    constant = 0 if norm.bias is None else norm.bias @ encoder
    check(view(hosted, FeatureRef(replacement=NAME, layer=2, index=7)), normed @ encoder - constant)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox_sequential"])
def test_attention_dictionaries_read_through_all_heads(family):
    """A prompt of one token attends to nothing else: attention's output there, less constants."""
    hosted = tiny_hosted(family)
    resident_set(hosted, "attn_out")
    block, out = hosted.architecture.blocks[0], []
    with opened(hosted, NAME, [0]) as resident:
        encoder = resident[0].encoders([3])[0]
        scores = feature_reads(hosted.architecture, resident[0], 3)
    post = block.attention_post_norm
    ids = (5, 44, 120, 301)
    for token in ids:
        embedded = hosted.architecture.embedding(torch.tensor([[token]]))
        normed = block.attention_norm.module(embedded)[0, 0]
        plain = normed if block.attention_norm.bias is None else normed - block.attention_norm.bias
        value = torch.einsum("ked,d->ke", block.attention.W_V, plain)
        value = value.repeat_interleave(block.attention.group, 0)
        mixed = torch.einsum("dhe,he->d", block.attention.W_O, value)
        mixed = mixed if post is None else post.centre(mixed) * post.gain
        out.append(float(mixed @ encoder))
    assert scores[list(ids)].tolist() == pytest.approx(out, rel=1e-3, abs=1e-5)


def test_dictionaries_on_the_stream_read_it_bare_and_others_not_at_all():
    """No norm stands before the stream; what a token means to heads' values is not said."""
    hosted = tiny_hosted("gemma2")
    resident_set(hosted, "resid_post")
    with opened(hosted, NAME, [1]) as resident:
        encoder = resident[1].encoders([2])[0]
    scores = hosted.architecture.embedding(torch.arange(D_VOCAB)) @ encoder
    check(view(hosted, FeatureRef(replacement=NAME, layer=1, index=2)), scores)
    reside(hosted, [sae(hosted, Site(kind=SiteKind.ATTN_Z, layer=1))], name="z")
    found = view(hosted, FeatureRef(replacement="z", layer=1, index=2))
    assert (found.excited_by, found.inhibited_by) == ((), ())


@pytest.mark.parametrize("count", [3, 1000])
def test_de_embeddings_leave_out_rows_that_are_of_no_token(count):
    """Embeddings are padded beyond the tokenizer: the strongest of the tokens that there are."""
    hosted = tiny_hosted("llama")
    scores = torch.arange(hosted.info.d_vocab).float()
    spelled = [token for token in range(hosted.info.d_vocab) if hosted.token(token).raw]
    assert len(spelled) < hosted.info.d_vocab - 1
    exciting, inhibiting = extreme_tokens(hosted, scores[None], count)[0]
    assert [(token.id, score) for token, score in exciting] == [(n, float(n)) for n in spelled[::-1][:count]]
    assert [(token.id, score) for token, score in inhibiting] == [(n, float(n)) for n in spelled[:count]]
