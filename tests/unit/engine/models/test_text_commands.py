"""Tokenize, RenderChat and ResolveTarget, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import hosted_from, tiny_hosted, tiny_model
from trephine.domain.errors import (
    EmptyPromptError,
    InvalidRequestError,
    ModelNotReadyError,
    PromptTooLongError,
    TargetNotOneTokenError,
    TokenOutOfRangeError,
    UnsupportedOptionError,
)
from trephine.domain.tokens import ChatMessage, RenderChat, ResolveTarget, Tokenize
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.models.text import HANDLERS


def run(command: Any, hosted=None) -> Any:
    """Carry out one command on a tiny model."""
    return finish(HANDLERS[type(command)](Session(hosted=hosted or tiny_hosted("llama")), command))


def test_tokenize_lists_ids_bytes_and_displays():
    """Every token carries its id, exact bytes and a printable display; none is added."""
    tokens = run(Tokenize(text=" Mary🙂")).tokens
    assert [t.raw for t in tokens] == [b" Mary", b"\xf0", b"\x9f", b"\x99", b"\x82"]
    assert tokens[1].display == "\\xf0"


def test_bad_texts_are_refused():
    """An empty text and one beyond the context are typed errors."""
    with pytest.raises(EmptyPromptError):
        run(Tokenize(text=""))
    with pytest.raises(PromptTooLongError, match="context of 256"):
        run(Tokenize(text="x" * 257))


def test_render_chat_applies_the_template():
    """The chat ends where the assistant speaks, unless asked not to."""
    messages = (ChatMessage(role="user", content="hi"),)
    assert run(RenderChat(messages=messages)).text == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    closed = RenderChat(messages=messages, add_generation_prompt=False)
    assert run(closed).text == "<|start|>user\nhi<|end|>\n"


def test_chats_that_cannot_be_rendered_are_refused():
    """No message, no template, and a template that raises are typed errors."""
    with pytest.raises(InvalidRequestError, match="at least one message"):
        run(RenderChat(messages=()))
    plain, messages = hosted_from(tiny_model("llama")), (ChatMessage(role="user", content="hi"),)
    plain.tokenizer.chat_template = "{{ raise_exception('users only') }}"
    with pytest.raises(InvalidRequestError, match="users only"):
        run(RenderChat(messages=messages), plain)
    tokenizer_less = tiny_hosted("llama")
    tokenizer_less.info = type(plain.info)(
        **{name: getattr(plain.info, name) for name in plain.info.__slots__} | {"has_chat_template": False}
    )
    with pytest.raises(UnsupportedOptionError, match="no chat template"):
        run(RenderChat(messages=messages), tokenizer_less)


def test_targets_are_exactly_one_token():
    """A text of one token and `#id` resolve; the error of any other lists its tokens with their ids."""
    mary = run(ResolveTarget(text=" Mary"))
    assert mary.display == " Mary"
    assert run(ResolveTarget(text=f"#{mary.id}")) == mary
    with pytest.raises(TargetNotOneTokenError, match=r"splits into 2: ' Mary' \(#\d+\), 's' \(#\d+\)"):
        run(ResolveTarget(text=" Marys"))
    with pytest.raises(TargetNotOneTokenError, match="splits into 0: none"):
        run(ResolveTarget(text=""))
    with pytest.raises(TokenOutOfRangeError, match="0 to 399"):
        run(ResolveTarget(text="#400"))


def test_an_engine_without_a_model_says_so():
    """Every command needs a model first."""
    with pytest.raises(ModelNotReadyError):
        finish(HANDLERS[Tokenize](Session(), Tokenize(text="a")))
