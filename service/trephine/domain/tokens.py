"""Tokens and chats as values, and the commands that make them."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer

from trephine.domain.commands import Command, Progress


def _decode(value: object) -> object:
    return b64decode(value) if isinstance(value, str) else value


RawBytes = Annotated[
    bytes,
    BeforeValidator(_decode),
    PlainSerializer(lambda value: b64encode(value).decode("ascii"), return_type=str),
]
"""Bytes that travel in JSON as base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token. Byte-level tokens may be no valid text on their own: `display` always is."""

    id: int
    raw: RawBytes
    display: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A tokenised text."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A plain text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize(Command[Tokens, Progress]):
    """Split a text exactly as prompts are split: no token is added."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderChat(Command[Text, Progress]):
    """Apply the model's chat template."""

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveTarget(Command[Token, Progress]):
    """Turn a target text into its one token.

    Raises:
        TargetNotOneTokenError: With the tokens it splits into; `#123` names a token by id.
    """

    text: str
