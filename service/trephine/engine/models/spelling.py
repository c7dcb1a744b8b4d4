"""How tokens are spelled: the exact bytes of a token, a printable display, text that arrives in pieces.

A byte-level token may be half a character. Its bytes are exact; its display escapes what is no text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from trephine.domain.tokens import Token


@cache
def _byte_of_character() -> dict[str, int]:
    """Invert GPT-2's table that writes every byte as a printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


class Spelling:
    """The bytes of every token of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Look up how the tokenizer writes bytes: GPT-2's alphabet, sentencepiece's, or plain text."""
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self._byte_level = "ByteLevel" in kinds
        self._word_pieces = "WordPiece" in kinds
        self._added = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
        self.special_ids = frozenset(int(i) for i in tokenizer.all_special_ids)
        """Ids that mark structure and are no part of a text."""

    def raw(self, token_id: int) -> bytes:
        """Return the bytes that this token adds to a text; a special token is spelled out."""
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # embeddings are often padded beyond the tokenizer's vocabulary
            return b""
        if self._byte_level:
            table = _byte_of_character()
            return b"".join(bytes([table[c]]) if c in table else c.encode() for c in piece)
        if self._word_pieces:
            return (piece[2:] if piece.startswith("##") else " " + piece).encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def token(self, token_id: int) -> Token:
        """Describe one token; `display` is printable whatever its bytes are."""
        raw = self.raw(token_id)
        return Token(id=token_id, raw=raw, display=display_of(raw) if raw else f"<unused {token_id}>")

    def text(self, ids: Iterable[int]) -> str:
        """Join the bytes of tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.raw(i) for i in ids).decode("utf-8", "replace")


class Transcript:
    """Text of a sequence of tokens, in pieces that are whole characters.

    Special tokens are no text. The pieces, joined, are the text.
    """

    def __init__(self, spelling: Spelling) -> None:
        """Start an empty text."""
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pieces: list[str] = []

    def push(self, token_id: int, *, last: bool) -> str:
        """Add a token; return what became complete with it. The last one flushes half a character."""
        raw = b"" if token_id in self._spelling.special_ids else self._spelling.raw(token_id)
        piece = self._decoder.decode(raw, final=last)
        self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        """Everything that was returned so far."""
        return "".join(self._pieces)


def display_of(raw: bytes) -> str:
    r"""Write bytes so that any terminal or page can show them: `\xf0\x9f`, `\n`, `\u2028` escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _decoder_kinds(tokenizer: Any) -> frozenset[str]:
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return frozenset()
    state = json.loads(decoder.__getstate__())
    return frozenset(part["type"] for part in (state, *state.get("decoders", ())))
