"""Tokens are spelled exactly, shown safely, and joined into text that never splits a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.builders import tiny_hosted, tiny_tokenizer
from trephine.engine.models.spelling import Spelling, Transcript, display_of

TOKENIZER = tiny_tokenizer()
SPELLING = Spelling(TOKENIZER)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_bytes_of_a_byte_level_tokenizer_are_exact(text):
    """The tokens' bytes, joined, are the text's UTF-8, whatever the text."""
    assert b"".join(SPELLING.raw(i) for i in ids(text)) == text.encode()


def test_special_tokens_are_spelled_out():
    """A special token's bytes are its name, so that a prompt can be shown as it was given."""
    assert [SPELLING.raw(i) for i in ids("<|end|> the")] == [b"<|end|>", b" the"]
    assert SPELLING.text(ids("a<|end|>b")) == "a<|end|>b"


def test_ids_beyond_the_tokenizer_have_no_bytes():
    """Embeddings are padded beyond the vocabulary; such an id shows as unused."""
    token = SPELLING.token(399)
    assert (token.raw, token.display) == (b"", "<unused 399>")


def test_sentencepiece_pieces_become_bytes():
    """A sentencepiece-like tokenizer writes spaces as U+2581 and bytes as <0x..>."""
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xF0>": 2, "<0x9F>": 3, "\u2581": 4, "x": 5}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    spelling = Spelling(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [spelling.raw(i) for i in (1, 2, 3, 4, 5)] == [b" the", b"\xf0", b"\x9f", b" ", b"x"]


@pytest.mark.parametrize(
    ("raw", "display"),
    [
        (b" Paris", " Paris"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        (b"\n\t", "\\n\\t"),
        ("\u2028".encode(), "\\u2028"),
        ("\u202e".encode(), "\\u202e"),
        (b"\x1b[31m", "\\x1b[31m"),
        (b"\x00", "\\x00"),
        ("é中🙂".encode(), "é中🙂"),
        (b"</script>", "</script>"),
    ],
)
def test_displays_are_printable(raw, display):
    """Half characters, controls, separators and direction marks are escaped; text is left alone."""
    assert display_of(raw) == display


@given(st.binary(max_size=12))
def test_any_bytes_have_a_printable_display(raw):
    """No bytes make a display that a terminal would act upon or that is no valid string."""
    display = display_of(raw)
    assert display.isprintable()
    display.encode("utf-8")


@settings(deadline=None)
@given(st.text(max_size=20), st.integers(min_value=0, max_value=6))
def test_pieces_are_whole_characters_and_join_to_the_text(text, cut):
    """However many tokens a character takes, every piece is whole; a text cut short ends in U+FFFD."""
    tokens = ids(text)
    tokens = tokens[: max(len(tokens) - cut, 0)]
    transcript = Transcript(SPELLING)
    pieces = [transcript.push(i, last=place == len(tokens) - 1) for place, i in enumerate(tokens)]
    assert "".join(pieces) == transcript.text
    assert transcript.text == b"".join(SPELLING.raw(i) for i in tokens).decode("utf-8", "replace")
    if not cut:
        assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


def test_special_tokens_are_no_text():
    """The end of a text is a token, not something that was said."""
    transcript = Transcript(SPELLING)
    assert [transcript.push(i, last=False) for i in ids(" the<|end|> cat")] == [" the", "", " cat"]


def test_decode_undoes_encode():
    """A hosted model's decode gives back every text that was encoded."""
    hosted = tiny_hosted("llama")
    text = " Mary\u2028🙂\x00 <|start|> and"
    assert hosted.decode(hosted.encode(text)) == text
