"""Documents as contexts of bounded length, in blocks that fill a forward pass or a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trephine.engine.features.corpus import Place, documents
from trephine.engine.models.hosted import HostedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A piece of a document as the model reads it."""

    document: int
    ids: tuple[int, ...]
    """The set's first token included, where it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Contexts of whole documents, and where the document after them begins."""

    contexts: tuple[Context, ...]
    following: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRule:
    """How documents become contexts."""

    first: tuple[int, ...]
    length: int
    """Tokens of a context at most, the first one included."""


def blocks(
    hosted: HostedModel, path: Path, place: Place, rule: ContextRule, *, tokens: int
) -> Iterator[Block]:
    """Yield blocks from a place on; each ends with the document that brings it to `tokens` tokens.

    Raises:
        BrokenCorpusError: At what is no text.
    """
    held: list[Context] = []
    size = 0
    for document in documents(path, place):
        place = document.following
        pieces = _contexts(hosted, document.text, document.number, rule)
        held += pieces
        size += sum(len(piece.ids) for piece in pieces)
        if size >= tokens:
            yield Block(contexts=tuple(held), following=place)
            held, size = [], 0
    if held:
        yield Block(contexts=tuple(held), following=place)


def _contexts(hosted: HostedModel, text: str, number: int, rule: ContextRule) -> list[Context]:
    """Cut a document; what is left with position 0 alone has nothing to count."""
    ids = hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    step = rule.length - len(rule.first)
    cut = ((*rule.first, *ids[start : start + step]) for start in range(0, len(ids), step))
    return [Context(document=number, ids=piece) for piece in cut if len(piece) > 1]
